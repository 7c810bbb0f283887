//! `plexus watchers`: where this node looks for services, and how that goes.

use clap::Args;

use super::output::{Cell, Output, Table, Tone};
use super::{Reach, Result};
use crate::api::{self, WatcherInfo};

const AFTER_HELP: &str = "\
In the order in which they are believed: where two name one address and port, the first counts. SINCE is for how long the
place has been heard, or not.

Examples:
  plexus watchers
  plexus watchers --json | jq '.watchers[] | select(.connected | not)'";

/// List the places where services are looked for
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Watchers {
    #[command(flatten)]
    reach: Reach,
}

impl Watchers {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let answer: api::WatcherList =
            self.reach.agent().get("listing the watchers", api::path::WATCHERS).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, |out, answer| {
            let mut table = Table::new(&[
                "NAME", "KIND", "SERVICE", "PLACE", "STATUS", "SINCE", "CHANGED", "ENTRIES", "PROBLEM",
            ]);
            answer.watchers.iter().for_each(|watcher| table.row(row(watcher)));
            out.table(&table)
        })?;
        Ok(())
    }
}

fn row(watcher: &WatcherInfo) -> [Cell; 9] {
    let status = match (watcher.connected, &watcher.instead) {
        (false, _) => Cell::new("out of reach", Tone::Bad),
        (true, Some(_)) => Cell::new("empty", Tone::Warning),
        (true, None) => Cell::new("heard", Tone::Good),
    };
    let changed =
        watcher.changed_seconds_ago.map_or_else(|| "never".to_owned(), |ago| format!("{} ago", ago_of(ago)));
    [
        Cell::from(&watcher.name),
        Cell::from(&watcher.kind),
        Cell::from(watcher.service.as_ref().map_or("", |service| service.as_str())),
        Cell::from(&watcher.place),
        status,
        Cell::from(ago_of(watcher.for_seconds)),
        Cell::from(changed),
        Cell::from(watcher.entries),
        Cell::from(problem(watcher)),
    ]
}

fn ago_of(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

/// What is to be known of it, in one cell.
fn problem(watcher: &WatcherInfo) -> String {
    let error = watcher.last_error.as_ref().filter(|_| !watcher.connected).cloned();
    let instead = watcher.instead.as_ref().map(|instead| format!("it names no server: {instead} are used"));
    let refused = watcher.refused.first().map(|first| match watcher.refused.len() - 1 {
        0 => first.clone(),
        more => format!("{first}, and {more} more"),
    });
    [error, instead, refused].into_iter().flatten().collect::<Vec<_>>().join("; ")
}
