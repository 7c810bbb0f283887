//! `plexus doctor`: what is wrong on this node, and what to do about it.

use std::io;

use clap::Args;

use super::output::{Output, Tone};
use super::{Error, Reach, Result};
use crate::api::{self, Checkup, Finding};

const AFTER_HELP: &str = "\
Looks at the agent, the store, what overlay networks need on this machine, and probes every other node that takes part in one:
small and full-size packets, through the tunnel and beneath it. Exit code 1 if something is wrong.

Examples:
  plexus doctor
  plexus doctor --json | jq -r '.findings[] | select(.state != \"good\").message'";

/// Find out what is wrong on this node, above all with overlay networks
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Doctor {
    #[command(flatten)]
    reach: Reach,
}

impl Doctor {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let answer: Checkup = self.reach.agent().get("looking for what is wrong", api::path::DOCTOR).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, human)?;
        let bad = answer.findings.iter().filter(|finding| finding.state == Finding::BAD).count();
        if bad == 0 {
            return Ok(());
        }
        let of = answer.findings.len();
        Err(Error::failed(
            format!("node {}", answer.node),
            format!("{bad} of {of} things are not as they should be"),
        ))
    }
}

fn human(out: &mut Output<'_>, answer: &Checkup) -> io::Result<()> {
    let width =
        answer.findings.iter().map(|finding| finding.subject.chars().count()).max().unwrap_or_default();
    for Finding { subject, state, message, advice } in &answer.findings {
        let (mark, tone) = match state.as_str() {
            Finding::GOOD => ("✓", Tone::Good),
            Finding::BAD => ("✗", Tone::Bad),
            _ => ("!", Tone::Warning),
        };
        out.toned_line(tone, format!("{mark} {subject:width$}  {message}"))?;
        if let Some(advice) = advice {
            out.toned_line(Tone::Plain, format!("  {:width$}  → {advice}", ""))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_finding_and_one_for_what_to_do() {
        let finding = |subject: &str, state: &str, advice: Option<&str>| Finding {
            subject: subject.to_owned(),
            state: state.to_owned(),
            message: "seen".to_owned(),
            advice: advice.map(str::to_owned),
        };
        let findings =
            vec![finding("nft", Finding::GOOD, None), finding("b on blue", Finding::BAD, Some("do this"))];
        let mut printed = Vec::new();
        let answer = Checkup { node: nerve::model::NodeName::new("a").unwrap(), findings };
        human(&mut Output::new(&mut printed, false), &answer).unwrap();
        let printed = String::from_utf8(printed).unwrap();
        assert_eq!(printed, "✓ nft        seen\n✗ b on blue  seen\n             → do this\n");
    }
}
