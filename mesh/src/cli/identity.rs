//! `plexus identity`: who this node is, and whom it believes.

use clap::Args;

use super::output::{Cell, Output, Table, Tone};
use super::{Reach, Result};
use crate::api::{self, IdentityInfo};

const AFTER_HELP: &str = "\
AUTHORITY is the SHA-256 digest of its certificate, as `openssl x509 -fingerprint -sha256` has it.

Examples:
  plexus identity
  plexus identity --json | jq -r .not_after";

/// Show who this node proves to be
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Identity {
    #[command(flatten)]
    reach: Reach,
}

impl Identity {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let answer: IdentityInfo =
            self.reach.agent().get("asking for the identity", api::path::IDENTITY).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, |out, answer| {
            let mut table = Table::new(&["", ""]);
            let mut row = |what: &str, value: Cell| table.row([Cell::from(what), value]);
            match (&answer.id, &answer.not_after) {
                (Some(id), Some(end)) => {
                    row("IDENTITY", Cell::from(id));
                    row("UNTIL", Cell::from(end));
                }
                _ => row("IDENTITY", Cell::new("none yet", Tone::Warning)),
            }
            answer.authorities.iter().for_each(|authority| row("AUTHORITY", Cell::from(authority)));
            row("SIGNS", Cell::from(if answer.signs { "yes" } else { "no" }));
            for revoked in &answer.revoked {
                row("REVOKED", Cell::new(format!("{} at {}", revoked.node, revoked.at), Tone::Warning));
            }
            if let Some(problem) = &answer.problem {
                row("PROBLEM", Cell::new(problem, Tone::Bad));
            }
            out.table(&table)
        })?;
        Ok(())
    }
}
