//! `plexus dns top`: which names this node is asked for most, and by whom.

use clap::Args;

use super::super::output::{Cell, Output, Table};
use super::super::{Reach, Result};
use crate::api::{self, TopEntry};

const AFTER_HELP: &str = "\
Of the last one to two minutes. QUERIES are counted while there are up to a thousand a second, and estimated beyond; OVER is by how much
they may be too high. --json has up to 512 names, and as many clients.

Examples:
  plexus dns top
  plexus dns top --lines 50
  plexus dns top --json | jq -r '.clients[] | select(.per_second > 100) | .what'";

const NAMES: &[&str] = &["NAME", "QUERIES", "OVER", "PER SECOND"];
const CLIENTS: &[&str] = &["CLIENT", "QUERIES", "OVER", "PER SECOND"];

/// Show the names that are asked for most, and who asks
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Top {
    #[command(flatten)]
    reach: Reach,

    /// So many names, and so many clients
    #[arg(long, value_name = "N", default_value_t = 20)]
    lines: usize,
}

impl Top {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let path = api::path::DNS_TOP;
        let answer: api::TopList = self.reach.agent().get("asking for the most frequent names", path).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, |out, answer| {
            out.line(format!("{} queries in {:.0} s", answer.queries, answer.window_seconds))?;
            for (head, entries) in [(NAMES, &answer.names), (CLIENTS, &answer.clients)] {
                out.line("")?;
                let mut table = Table::new(head);
                entries.iter().take(self.lines).for_each(|entry| table.row(row(entry)));
                out.table(&table)?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

fn row(entry: &TopEntry) -> [Cell; 4] {
    [
        Cell::from(&entry.what),
        Cell::from(entry.queries),
        Cell::from(entry.over),
        Cell::from(format!("{:.1}", entry.per_second)),
    ]
}
