//! `plexus deregister ID`: takes back a `plexus register`.

use clap::Args;
use hyper::Method;
use nerve::model::{InstanceId, ServiceName};

use super::output::Output;
use super::{Reach, Result, print_change};
use crate::api::{self, Changed};

const AFTER_HELP: &str = "\
Only what was registered through the agent can be deregistered; what a file defines ends with the file.

Examples:
  plexus deregister web-a-8080";

/// Deregister an instance of this node
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Deregister {
    /// The instance
    id: InstanceId,
    /// Its service, where several instances have that id
    #[arg(long, value_name = "SERVICE")]
    service: Option<ServiceName>,
    #[command(flatten)]
    reach: Reach,
}

impl Deregister {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("deregistering {}", self.id);
        let mut path = api::path::INSTANCE.replace("{id}", self.id.as_str());
        if let Some(service) = &self.service {
            path = format!("{path}?service={service}");
        }
        let changed: Changed = self.reach.agent().send(&what, Method::DELETE, &path, &()).await?;
        print_change(out, self.reach.json, &changed)
    }
}
