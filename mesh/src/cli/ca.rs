//! `plexus ca`: the authority of a mesh, and the one that takes its place.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hyper::Method;

use super::output::{Cell, Output, Table, Tone};
use super::{Error, Reach, Result, print_change};
use crate::api::{self, AbortRequest, Changed, RotationInfo, RotationPhase, Rotations};
use crate::identity::{Authorities, AuthorityError, TrustDomain};

const INIT_HELP: &str = "\
Whoever has the key that is made can be any node: keep the directory where nodes that certify others read it, and nowhere else.

Examples:
  plexus ca init /etc/plexus/ca";

const ROTATE_HELP: &str = "\
The first time, a new authority is made beside the one in DIRECTORY; copy the directory to each node that certifies others, as before.
They go on by themselves: every node learns to believe both, gets a certificate of the new one, and believes the old one no more. Once
that is done, the same command has the new one take the old one's place in the directory, on each of those nodes; the old key is gone then.
In between it shows how far it is.

Examples:
  plexus ca rotate /etc/plexus/ca
  plexus ca rotate /etc/plexus/ca --abort    take it back, and once more to remove the new key";

const STATUS_HELP: &str = "\
Examples:
  plexus ca status
  plexus ca status --json | jq -r '.rotation.waits_for[].node'";

/// So many of the nodes that are waited for are shown.
const SHOWN: usize = 20;

/// Make the authority of a mesh, and replace it
#[derive(Debug, Args)]
pub(super) struct Ca {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Make a key and its certificate in a directory
    #[command(after_help = INIT_HELP)]
    Init {
        /// Where; it has none yet
        directory: PathBuf,
        /// What the mesh calls itself
        #[arg(long, value_name = "NAME", default_value_t)]
        trust_domain: TrustDomain,
    },
    /// Replace the authority by a new one, or show how far that is
    #[command(after_help = ROTATE_HELP)]
    Rotate {
        /// Where its key is
        directory: PathBuf,
        /// Take it back, at any time before the old one is dropped
        #[arg(long)]
        abort: bool,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show how far the replacing of the authority is
    #[command(after_help = STATUS_HELP)]
    Status {
        #[command(flatten)]
        reach: Reach,
    },
}

impl Ca {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        match self.command {
            CaCommand::Init { directory, trust_domain } => init(&directory, &trust_domain, out),
            CaCommand::Rotate { directory, abort: false, reach } => rotate(&directory, &reach, out).await,
            CaCommand::Rotate { directory, abort: true, reach } => abort(&directory, &reach, out).await,
            CaCommand::Status { reach } => {
                let answer = status(&reach).await?;
                out.as_json(reach.json);
                out.answer(&answer, show)?;
                Ok(())
            }
        }
    }
}

fn init(directory: &Path, trust_domain: &TrustDomain, out: &mut Output<'_>) -> Result {
    let authorities = Authorities::create(directory, trust_domain)
        .map_err(|error| Error::failed("making an authority", error))?;
    let authority = authorities.root();
    out.line(format!("made the authority of {} in {}", authority.trust_domain(), directory.display()))?;
    out.line(format!("  its digest: {}", authority.fingerprint()))?;
    out.line(format!(
        "  a node that certifies others has in its configuration: [identity] authority = {directory:?}"
    ))?;
    Ok(())
}

async fn status(reach: &Reach) -> Result<Rotations> {
    reach.agent().get("asking how far the authority is replaced", api::path::ROTATION).await
}

fn is_under_way(rotation: &RotationInfo) -> bool {
    match rotation.phase {
        RotationPhase::Trust | RotationPhase::Renew | RotationPhase::Revert => true,
        RotationPhase::Done | RotationPhase::Aborted => false,
    }
}

async fn rotate(directory: &Path, reach: &Reach, out: &mut Output<'_>) -> Result {
    let failed = |error: AuthorityError| Error::failed("replacing the authority", error);
    let refused = |why: &str| {
        let why = format!("{}: {why}", directory.display());
        Err(Error::failed("replacing the authority", why))
    };
    let authorities = Authorities::load(directory).map_err(failed)?;
    let answer = status(reach).await?;
    let (root, next) = (authorities.root().fingerprint().to_string(), authorities.next());
    let next = next.map(|next| next.fingerprint().to_string());
    match (next, &answer.rotation) {
        (Some(next), Some(last)) if last.to == next && last.phase == RotationPhase::Done => {
            Authorities::promote(directory).map_err(failed)?;
            out.line(format!(
                "{next} is the authority in {} now; the key of {root} is gone",
                directory.display()
            ))?;
            out.line("  do the same on each node that certifies others")?;
            Ok(())
        }
        (Some(next), Some(last)) if last.to == next && last.phase == RotationPhase::Aborted => {
            refused("it was taken back: `plexus ca rotate --abort` removes the new key")
        }
        (Some(_), _) => {
            out.as_json(reach.json);
            out.answer(&answer, show)?;
            Ok(())
        }
        (None, Some(last)) if is_under_way(last) => refused(
            "another key is being introduced, which is not here: copy the directory from where that was begun",
        ),
        (None, Some(last)) if last.phase == RotationPhase::Done && last.from == root => refused(
            "its authority has been replaced already: copy the directory from a node that certifies others",
        ),
        (None, _) => {
            let both = Authorities::begin(directory).map_err(failed)?;
            let next = both.next().map(|next| next.fingerprint().to_string()).unwrap_or_default();
            out.line(format!(
                "made the authority {next} in {}, which is to replace {root}",
                directory.display()
            ))?;
            out.line("  copy the directory to each node that certifies others; they go on by themselves")?;
            out.line("  `plexus ca status` shows how far it is")?;
            Ok(())
        }
    }
}

async fn abort(directory: &Path, reach: &Reach, out: &mut Output<'_>) -> Result {
    let failed = |error: AuthorityError| Error::failed("taking back a new authority", error);
    let authorities = Authorities::load(directory).map_err(failed)?;
    let answer = status(reach).await?;
    let next = authorities.next().map(|next| next.fingerprint().to_string());
    let is_here = |rotation: &RotationInfo| next.as_ref() == Some(&rotation.to);
    match &answer.rotation {
        Some(last) if is_under_way(last) && last.phase != RotationPhase::Revert => {
            let what = "taking back a new authority";
            let path = api::path::ROTATION_ABORT;
            let changed: Changed = reach.agent().send(what, Method::PUT, path, &AbortRequest {}).await?;
            print_change(out, reach.json, &changed)
        }
        Some(last) if last.phase == RotationPhase::Revert => {
            out.as_json(reach.json);
            out.answer(&answer, show)?;
            Ok(())
        }
        Some(last) if last.phase == RotationPhase::Done && is_here(last) => {
            let why = "the old authority is dropped already: begin another rotation";
            Err(Error::failed("taking back a new authority", why))
        }
        _ if next.is_some() => {
            Authorities::withdraw(directory).map_err(failed)?;
            out.line(format!("the new key is removed from {}", directory.display()))?;
            out.line("  do the same on each node that certifies others")?;
            Ok(())
        }
        _ => Err(Error::failed("taking back a new authority", "there is none")),
    }
}

fn show(out: &mut Output<'_>, answer: &Rotations) -> std::io::Result<()> {
    let Some(rotation) = &answer.rotation else {
        return out.line("the authority was not replaced yet, nor is it being");
    };
    let (word, tone) = match rotation.phase {
        RotationPhase::Trust => ("1 of 3: nodes learn to believe the new authority", Tone::Warning),
        RotationPhase::Renew => ("2 of 3: nodes get certificates of the new authority", Tone::Warning),
        RotationPhase::Done => ("done: the old authority is not believed any more", Tone::Good),
        RotationPhase::Revert => ("taken back: nodes get certificates of the old authority", Tone::Warning),
        RotationPhase::Aborted => ("taken back", Tone::Good),
    };
    let mut table = Table::new(&["", ""]);
    let mut row = |what: &str, value: Cell| table.row([Cell::from(what), value]);
    row("PHASE", Cell::new(word, tone));
    row("FROM", Cell::from(&rotation.from));
    row("TO", Cell::from(&rotation.to));
    if is_under_way(rotation) {
        let ready = rotation.nodes.saturating_sub(rotation.waits_for.len());
        row("NODES", Cell::from(format!("{ready} of {}", rotation.nodes)));
        for awaited in rotation.waits_for.iter().take(SHOWN) {
            row("WAITS FOR", Cell::new(format!("{}: {}", awaited.node, awaited.why), Tone::Warning));
        }
        if let Some(more @ 1..) = rotation.waits_for.len().checked_sub(SHOWN) {
            row("WAITS FOR", Cell::from(format!("{more} more")));
        }
    }
    out.table(&table)
}
