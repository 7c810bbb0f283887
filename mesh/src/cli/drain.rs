//! `plexus drain` and `plexus undrain`: no new traffic for an instance or a node, or traffic again.

use clap::Args;
use hyper::Method;
use nerve::model::{InstanceId, ServiceName};

use super::output::Output;
use super::{Reach, Result, print_change};
use crate::api::{self, Changed, DrainRequest};

const DRAIN_HELP: &str = "\
Open connections go on; new ones go to other instances. It lasts until `plexus undrain`, over restarts of the agent.

Examples:
  plexus drain web-a-8080          one instance
  plexus drain --node              every instance of the node that is asked";

const UNDRAIN_HELP: &str = "\
Examples:
  plexus undrain web-a-8080
  plexus undrain --node";

/// What is drained.
#[derive(Debug, Args)]
struct Target {
    /// The instance
    #[arg(required_unless_present = "node", conflicts_with = "node")]
    id: Option<InstanceId>,
    /// Every instance of the node that is asked
    #[arg(long)]
    node: bool,
    /// The instance's service, where several instances have that id
    #[arg(long, value_name = "SERVICE", requires = "id")]
    service: Option<ServiceName>,
    #[command(flatten)]
    reach: Reach,
}

/// Give an instance, or a whole node, no new traffic
#[derive(Debug, Args)]
#[command(after_help = DRAIN_HELP)]
pub(super) struct Drain {
    #[command(flatten)]
    target: Target,
}

/// Give a drained instance or node traffic again
#[derive(Debug, Args)]
#[command(after_help = UNDRAIN_HELP)]
pub(super) struct Undrain {
    #[command(flatten)]
    target: Target,
}

impl Drain {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        self.target.set(true, out).await
    }
}

impl Undrain {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        self.target.set(false, out).await
    }
}

impl Target {
    async fn set(self, draining: bool, out: &mut Output<'_>) -> Result {
        let verb = if draining { "draining" } else { "undraining" };
        let what = self.id.as_ref().map_or_else(|| format!("{verb} the node"), |id| format!("{verb} {id}"));
        let body = DrainRequest { instance: self.id, service: self.service, draining };
        let changed: Changed = self.reach.agent().send(&what, Method::PUT, api::path::DRAIN, &body).await?;
        print_change(out, self.reach.json, &changed)
    }
}
