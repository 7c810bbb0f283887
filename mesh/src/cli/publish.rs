//! `plexus publish` and `plexus unpublish`: ports that every node listens on for a service.

use clap::Args;
use hyper::Method;
use nerve::model::{Prefix, PublishMode, PublishedPort, ServiceName};

use super::output::Output;
use super::{Reach, Result, print_change};
use crate::api::{self, Changed, PublishRequest};

const PUBLISH_HELP: &str = "\
Every node of the fleet opens the port, those too that run no instance of the service. It stays published until it is
unpublished, whatever restarts. With `--mode host` only nodes that run an instance open it, and it leads to theirs. A port
belongs to one service: what another one publishes on the same port and address is refused.

Examples:
  plexus publish web 8080                       to the main port of the instances
  plexus publish web 9090:metrics               to their port named `metrics`
  plexus publish web 8080:80                    to their port 80
  plexus publish ftp 30000-30010                a range: each port to the same port of the instances
  plexus publish dns 53/udp
  plexus publish web 80 --address 192.0.2.0/24  only on addresses of that network, on nodes that have one
  plexus publish agent 9100 --mode host         only where an instance runs, and only to that one";

const UNPUBLISH_HELP: &str = "\
New connections are refused at once; those that are open may finish.

Examples:
  plexus unpublish web 8080
  plexus unpublish ftp 30000-30010              a range as it was published, as a whole
  plexus unpublish dns 53/udp";

/// Open a port for a service on every node
#[derive(Debug, Args)]
#[command(after_help = PUBLISH_HELP)]
pub(super) struct Publish {
    /// The service
    service: ServiceName,
    /// The port on every node, and where it leads: PORT[-LAST][:PORT-NAME][/tcp|/udp]
    port: PublishedPort,
    /// Only on addresses within this range, or on this address; as often as needed
    #[arg(long, value_name = "ADDRESS[/LENGTH]")]
    address: Vec<Prefix>,
    /// Which nodes open it, and for whom: `ingress`, or `host`
    #[arg(long, default_value_t)]
    mode: PublishMode,
    #[command(flatten)]
    reach: Reach,
}

/// Close a published port on every node
#[derive(Debug, Args)]
#[command(after_help = UNPUBLISH_HELP)]
pub(super) struct Unpublish {
    /// The service
    service: ServiceName,
    /// The port: PORT[-LAST][/tcp|/udp]
    port: PublishedPort,
    #[command(flatten)]
    reach: Reach,
}

impl Publish {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let mut port = PublishedPort { addresses: self.address, mode: self.mode, ..self.port };
        port.addresses.sort_unstable();
        port.addresses.dedup();
        let what = format!("publishing {port} for {}", self.service);
        let path = api::path::PORTS.replace("{service}", self.service.as_str());
        let body = PublishRequest { port };
        let changed: Changed = self.reach.agent().send(&what, Method::PUT, &path, &body).await?;
        print_change(out, self.reach.json, &changed)
    }
}

impl Unpublish {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("unpublishing {} of {}", self.port, self.service);
        let path = api::path::PORT
            .replace("{service}", self.service.as_str())
            .replace("{port}", &self.port.range().to_string())
            .replace("{protocol}", &self.port.protocol.to_string());
        let changed: Changed = self.reach.agent().send(&what, Method::DELETE, &path, &()).await?;
        print_change(out, self.reach.json, &changed)
    }
}
