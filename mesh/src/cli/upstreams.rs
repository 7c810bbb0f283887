//! `plexus upstreams`: whom this node asks for names outside its domain, and how they do.

use std::time::Duration;

use clap::Args;

use super::output::{Cell, Output, Table, Tone};
use super::{Reach, Result};
use crate::api::{self, UpstreamInfo};

const AFTER_HELP: &str = "\
Those for all names in the order of preference, then those of routes. One that does not answer is passed over for a while; TIME is how
long it usually takes. FAILED are answers that say that it failed, UNANSWERED questions without any.

Examples:
  plexus upstreams
  plexus upstreams --json | jq '.upstreams[] | select(.problem)'";

/// List the servers that other names are asked of
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Upstreams {
    #[command(flatten)]
    reach: Reach,
}

impl Upstreams {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let answer: api::UpstreamList =
            self.reach.agent().get("listing the upstreams", api::path::UPSTREAMS).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, |out, answer| {
            let mut table = Table::new(&[
                "UPSTREAM",
                "NAMES",
                "STATUS",
                "TIME",
                "ANSWERED",
                "FAILED",
                "UNANSWERED",
                "PROBLEM",
            ]);
            answer.upstreams.iter().for_each(|upstream| table.row(row(upstream)));
            out.table(&table)
        })?;
        Ok(())
    }
}

fn row(upstream: &UpstreamInfo) -> [Cell; 8] {
    let status = match (upstream.failures_in_a_row, upstream.passed_over_for_ms) {
        (0, _) if upstream.answered + upstream.failed == 0 => Cell::from("not asked"),
        (0, _) => Cell::new("answers", Tone::Good),
        (_, Some(_)) => Cell::new("passed over", Tone::Bad),
        (_, None) => Cell::new("doubted", Tone::Warning),
    };
    let time = upstream
        .time_us
        .map_or_else(String::new, |time| humantime::format_duration(Duration::from_micros(time)).to_string());
    [
        Cell::from(&upstream.upstream),
        Cell::from(upstream.domain.as_ref().map_or_else(|| "all".to_owned(), |domain| format!("*.{domain}"))),
        status,
        Cell::from(time),
        Cell::from(upstream.answered),
        Cell::from(upstream.failed),
        Cell::from(upstream.unanswered),
        Cell::from(problem(upstream)),
    ]
}

fn problem(upstream: &UpstreamInfo) -> String {
    let case = (!upstream.keeps_case).then(|| "gives back other letters: no 0x20".to_owned());
    upstream.problem.iter().cloned().chain(case).collect::<Vec<_>>().join("; ")
}
