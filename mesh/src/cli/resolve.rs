//! `plexus resolve NAME`: what DNS would answer on this node, and why.

use std::io;

use clap::Args;

use super::client::escape;
use super::output::{Output, Tone};
use super::{Reach, Result};
use crate::api;

const AFTER_HELP: &str = "\
The name is looked up as it is, without a search list: write it with the mesh's domain.

Examples:
  plexus resolve web.mesh.internal
  plexus resolve tasks.web.mesh.internal
  plexus resolve web.mesh.internal --type SRV";

/// Show what DNS answers on this node, and why
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Resolve {
    /// The name
    name: String,
    /// The record type: A, AAAA, SRV, …
    #[arg(long = "type", value_name = "TYPE", default_value = "A")]
    record_type: String,
    #[command(flatten)]
    reach: Reach,
}

impl Resolve {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let path =
            format!("{}?name={}&type={}", api::path::RESOLVE, escape(&self.name), escape(&self.record_type));
        let what = format!("resolving {}", self.name);
        let answer: api::Resolution = self.reach.agent().get(&what, &path).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, human)?;
        Ok(())
    }
}

fn human(out: &mut Output<'_>, answer: &api::Resolution) -> io::Result<()> {
    // A name that is not of the mesh is not asked for here: only its way is told.
    let code = if answer.code.is_empty() { "forwarded" } else { &answer.code };
    let tone =
        if answer.code == "NOERROR" && !answer.answers.is_empty() { Tone::Good } else { Tone::Warning };
    out.toned_line(tone, format!("{} {}: {code}", answer.name, answer.record_type))?;
    answer.answers.iter().try_for_each(|record| out.toned_line(Tone::Plain, record))?;
    answer.why.iter().try_for_each(|sentence| out.toned_line(Tone::Plain, format!("; {sentence}")))
}
