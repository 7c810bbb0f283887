//! `plexus dns uninstall`: what `install` did is undone.

use std::io;

use clap::Args;
use serde::Serialize;

use super::files::{Step, apply, read};
use super::host::{Host, Method, ResolvConf, reload};
use super::install::print_steps;
use super::text::MARK;
use crate::cli::Result;
use crate::cli::output::{Output, Tone};

const WHAT: &str = "having this host find names as before";

const AFTER_HELP: &str = "\
Removes the files that `plexus dns install` wrote, and gives back the /etc/resolv.conf that was there before, unless somebody else has
changed it since. Needs no agent. Twice is once.

Examples:
  plexus dns uninstall --dry-run
  plexus dns uninstall";

/// Have this host resolve names as before `install`
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Uninstall {
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct Done {
    dry_run: bool,
    changed: bool,
    steps: Vec<Step>,
    notes: Vec<String>,
}

impl Uninstall {
    pub(super) fn run(self, out: &mut Output<'_>) -> Result {
        let host = Host::this();
        let (mut all, mut notes) = (Vec::new(), Vec::new());
        // All of it is looked at before any of it is done.
        let mut parts = Vec::new();
        for method in [Method::Resolved, Method::Dnsmasq, Method::ResolvConf] {
            parts.push((method, steps(&host, method)?));
        }
        for (method, steps) in parts {
            if !self.dry_run && !steps.is_empty() {
                apply(&steps)?;
                notes.extend(reload(&host, method, &steps)?);
            }
            all.extend(steps);
        }
        out.as_json(self.json);
        let done = Done { dry_run: self.dry_run, changed: !all.is_empty(), steps: all, notes };
        out.answer(&done, human)?;
        Ok(())
    }
}

pub(super) fn steps(host: &Host, method: Method) -> Result<Vec<Step>> {
    match host.drop_in(method) {
        // What begins otherwise somebody else wrote, who takes it away.
        Some(file) => {
            let ours = read(&file)?.filter(|text| text.starts_with(MARK));
            Ok(ours.map(|before| Step::Remove { file, before }).into_iter().collect())
        }
        None => of_resolv_conf(host),
    }
}

fn of_resolv_conf(host: &Host) -> Result<Vec<Step>> {
    let remove = |file, before| Step::Remove { file, before };
    Ok(match host.look_at_resolv_conf()? {
        ResolvConf::Untouched { .. } => Vec::new(),
        ResolvConf::HalfDone { text } => {
            let written = read(&host.written())?.map(|before| remove(host.written(), before));
            written.into_iter().chain([remove(host.kept(), text)]).collect()
        }
        ResolvConf::Installed { text, before: None } => {
            vec![remove(host.resolv_conf(), text.clone()), remove(host.written(), text)]
        }
        ResolvConf::Installed { text, before: Some(_) } => {
            vec![remove(host.written(), text), Step::GiveBack { file: host.resolv_conf(), from: host.kept() }]
        }
        ResolvConf::Changed => return Err(host.changed_since(WHAT)),
    })
}

fn human(out: &mut Output<'_>, done: &Done) -> io::Result<()> {
    print_steps(out, &done.steps, done.dry_run)?;
    if !done.changed {
        out.line("nothing of `plexus dns install` is here")?;
    }
    done.notes.iter().try_for_each(|note| out.toned_line(Tone::Warning, format!("note: {note}")))
}
