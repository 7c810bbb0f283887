//! `plexus status`: how this node's agent is, and everything that fails on it.

use std::io;
use std::time::Duration;

use clap::Args;

use super::output::{Output, Tone};
use super::{Reach, Result, stale_banner};
use crate::api;

const AFTER_HELP: &str = "\
Examples:
  plexus status
  plexus status --json | jq '.problems'";

/// Show how an agent is, and everything that fails on its node
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Status {
    #[command(flatten)]
    reach: Reach,
}

impl Status {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let answer: api::Status = self.reach.admin.get("asking for the status", api::path::STATUS).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, human)?;
        Ok(())
    }
}

fn human(out: &mut Output<'_>, answer: &api::Status) -> io::Result<()> {
    stale_banner(out, answer.stale.as_ref())?;
    let ready =
        if answer.ready { "ready".to_owned() } else { format!("awaits {}", answer.awaited.join(", ")) };
    let uptime = humantime::format_duration(Duration::from_secs(answer.uptime_seconds));
    out.line(format!("node      {} ({})", answer.node, answer.address))?;
    out.line(format!("agent     {}, {}, {ready}, up {uptime}", answer.version, answer.phase))?;
    out.line(format!("store     {}", answer.store))?;
    out.line(format!("catalog   {}, {} services", answer.catalog, answer.services))?;
    if answer.problems.is_empty() {
        return out.toned_line(Tone::Good, "problems  none");
    }
    out.toned_line(Tone::Bad, format!("problems  {}", answer.problems.len()))?;
    answer
        .problems
        .iter()
        .try_for_each(|problem| out.toned_line(Tone::Bad, format!("  {}: {}", problem.what, problem.message)))
}
