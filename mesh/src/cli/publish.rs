//! `plexus publish` and `plexus unpublish`: ports that every node listens on for a service.

use clap::Args;
use hyper::Method;
use nerve::model::{PublishedPort, ServiceName};

use super::output::Output;
use super::{Reach, Result, print_change};
use crate::api::{self, Changed, PublishRequest};

const PUBLISH_HELP: &str = "\
Every node of the fleet opens the port, those too that run no instance of the service. It stays published until it is
unpublished, whatever restarts.

Examples:
  plexus publish web 8080                 to the main port of the instances
  plexus publish web 9090:metrics         to their port named `metrics`
  plexus publish dns 53/udp";

const UNPUBLISH_HELP: &str = "\
New connections are refused at once; those that are open may finish.

Examples:
  plexus unpublish web 8080
  plexus unpublish dns 53/udp";

/// Open a port for a service on every node
#[derive(Debug, Args)]
#[command(after_help = PUBLISH_HELP)]
pub(super) struct Publish {
    /// The service
    service: ServiceName,
    /// The port on every node, and where it leads: PORT[:PORT-NAME][/tcp|/udp]
    port: PublishedPort,
    #[command(flatten)]
    reach: Reach,
}

/// Close a published port on every node
#[derive(Debug, Args)]
#[command(after_help = UNPUBLISH_HELP)]
pub(super) struct Unpublish {
    /// The service
    service: ServiceName,
    /// The port: PORT[/tcp|/udp]
    port: PublishedPort,
    #[command(flatten)]
    reach: Reach,
}

impl Publish {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("publishing {} for {}", self.port, self.service);
        let path = api::path::PORTS.replace("{service}", self.service.as_str());
        let body = PublishRequest { port: self.port };
        let changed: Changed = self.reach.admin.send(&what, Method::PUT, &path, &body).await?;
        print_change(out, self.reach.json, &changed)
    }
}

impl Unpublish {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("unpublishing {} of {}", self.port, self.service);
        let path = api::path::PORT
            .replace("{service}", self.service.as_str())
            .replace("{port}", &self.port.port.to_string())
            .replace("{protocol}", &self.port.protocol.to_string());
        let changed: Changed = self.reach.admin.send(&what, Method::DELETE, &path, &()).await?;
        print_change(out, self.reach.json, &changed)
    }
}
