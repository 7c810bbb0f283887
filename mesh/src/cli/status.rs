//! `plexus status`: how this node's agent is, and everything that fails on it.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use nerve::model::Health;

use super::endpoints::listens_on;
use super::output::{Cell, Output, Table, Tone};
use super::{Reach, Result, stale_banner};
use crate::api::{self, LocalInstance};

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
        let answer: api::Status = self.reach.agent().get("asking for the status", api::path::STATUS).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, human)?;
        Ok(())
    }
}

fn instances(out: &mut Output<'_>, instances: &[LocalInstance]) -> io::Result<()> {
    let mut table = Table::new(&["SERVICE", "ID", "ADDRESS", "HEALTH", "STORE", "SOURCE", "REASON"]);
    for instance in instances {
        let health = match instance.health {
            shown if shown.is_serving() && instance.draining => Cell::new("draining", Tone::Warning),
            shown => health(shown),
        };
        let store = if instance.registered { "registered" } else { &instance.registration };
        table.row([
            Cell::from(&instance.service),
            Cell::from(&instance.id),
            Cell::from(listens_on(instance.address, instance.socket.as_ref())),
            health,
            Cell::new(store, if instance.registered { Tone::Plain } else { Tone::Warning }),
            Cell::from(&instance.source),
            Cell::from(&instance.health_reason),
        ]);
    }
    if table.is_empty() {
        return out.line("instances none");
    }
    out.line("")?;
    out.table(&table)?;
    out.line("")
}

/// One word for how it is.
pub(super) fn health(health: Health) -> Cell {
    let tone = match health {
        Health::Passing => Tone::Good,
        Health::Warning | Health::Starting => Tone::Warning,
        Health::Critical => Tone::Bad,
    };
    Cell::new(health, tone)
}

fn human(out: &mut Output<'_>, answer: &api::Status) -> io::Result<()> {
    stale_banner(out, answer.stale.as_ref())?;
    let uptime = humantime::format_duration(Duration::from_secs(answer.uptime_seconds));
    out.line(format!("node      {} ({})", answer.node, answer.address))?;
    out.line(format!("agent     {}, {}, up {uptime}", answer.version, answer.phase))?;
    if let Some(before) = &answer.took_over {
        let at = UNIX_EPOCH + Duration::from_secs(before.at_unix_seconds);
        let at = humantime::format_rfc3339_seconds(at);
        out.line(format!("          took over from pid {} ({}) at {at}", before.pid, before.version))?;
    }
    if !answer.ready {
        out.toned_line(Tone::Warning, format!("awaits    {}", answer.awaited.join(", ")))?;
    }
    out.line(format!("store     {}", answer.store))?;
    out.line(format!("catalog   {}, {} services", answer.catalog, answer.services))?;
    instances(out, &answer.instances)?;
    if answer.problems.is_empty() {
        return out.toned_line(Tone::Good, "problems  none");
    }
    out.toned_line(Tone::Bad, format!("problems  {}", answer.problems.len()))?;
    answer
        .problems
        .iter()
        .try_for_each(|problem| out.toned_line(Tone::Bad, format!("  {}: {}", problem.what, problem.message)))
}
