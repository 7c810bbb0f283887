//! `plexus nodes`: every node that runs an agent.

use clap::Args;

use super::endpoints::stands_in;
use super::output::{Cell, Output, Table, Tone};
use super::{Reach, Result, stale_banner};
use crate::api;

const AFTER_HELP: &str = "\
SERVING is how many of the node's instances get traffic, of how many it registered. The node that answers has a `*`.

Examples:
  plexus nodes
  plexus nodes --json | jq -r '.nodes[].address'";

/// List the nodes of the fleet
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Nodes {
    #[command(flatten)]
    reach: Reach,
}

impl Nodes {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let answer: api::Nodes = self.reach.agent().get("listing the nodes", api::path::NODES).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, |out, answer| {
            stale_banner(out, answer.stale.as_ref())?;
            let mut table = Table::new(&["NAME", "ADDRESS", "ZONE", "VERSION", "STATUS", "SERVING"]);
            for node in &answer.nodes {
                let mark = if node.name == answer.this { "*" } else { "" };
                let status = if node.draining {
                    Cell::new("draining", Tone::Warning)
                } else {
                    Cell::new("alive", Tone::Good)
                };
                table.row([
                    Cell::from(format!("{}{mark}", node.name)),
                    Cell::from(node.address),
                    Cell::from(stands_in(node.region.as_ref(), node.zone.as_ref())),
                    Cell::from(&node.version),
                    status,
                    Cell::from(format!("{}/{}", node.serving, node.instances)),
                ]);
            }
            if table.is_empty() {
                return out.line("no node is registered yet");
            }
            out.table(&table)
        })?;
        Ok(())
    }
}
