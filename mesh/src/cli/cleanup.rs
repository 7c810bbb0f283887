//! `plexus network cleanup`: what agents leave in this node's kernel is taken away, without an agent.

use std::io;

use clap::Args;
use serde::Serialize;

use super::output::Output;
use super::{Error, Reach, Result};
use crate::api::{self, Status};
use crate::{mtls, overlay};

const AFTER_HELP: &str = "\
For a node whose agent is gone for good: an agent that leaves takes nothing of its networks away, so that containers are reached
while it is restarted, nor what keeps other hosts from strict instances. Removes links, routes and the packet filter's tables on
this machine, by their names, and needs no agent, no store and no configuration. Refused while an agent answers at --admin, which
would put everything back: stop it first.

Examples:
  systemctl disable --now plexus && plexus network cleanup";

/// Remove everything of overlay networks and strict instances from this node's kernel
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Cleanup {
    /// Also while an agent answers: one of another machine, or one that takes part in no network any more
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    reach: Reach,
}

/// What was removed.
#[derive(Debug, Serialize)]
struct Done {
    links: Vec<String>,
    routes: Vec<String>,
    rules: usize,
    tables: Vec<String>,
}

impl Cleanup {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        const WHAT: &str = "removing what overlay networks have left";
        // Any other answer than a status is no agent's.
        let running =
            self.reach.agent().get::<Status>(WHAT, api::path::STATUS).await.ok().filter(|_| !self.force);
        if let Some(Status { node, .. }) = running {
            return Err(Error::failed(WHAT, format!("the agent of node {node} runs and would put it back"))
                .hint("stop it first (`systemctl stop plexus`); --force if that is not the agent of this machine"));
        }
        let failed = |error| Error::failed(WHAT, error).hint("run it as root");
        let overlay::Removed { links, routes, rules, mut tables } =
            overlay::cleanup().await.map_err(failed)?;
        tables.extend(mtls::cleanup().await.map_err(failed)?);
        out.as_json(self.reach.json);
        out.answer(&Done { links, routes, rules, tables }, human)?;
        Ok(())
    }
}

fn human(out: &mut Output<'_>, done: &Done) -> io::Result<()> {
    let Done { links, routes, rules, tables } = done;
    for (what, names) in [("link", links), ("route", routes), ("packet filter table", tables)] {
        names.iter().try_for_each(|name| out.line(format!("removed {what} {name}")))?;
    }
    if *rules > 0 {
        out.line(format!("removed {rules} routing rules"))?;
    }
    if links.is_empty() && routes.is_empty() && *rules == 0 && tables.is_empty() {
        return out.line("nothing of overlay networks is here");
    }
    Ok(())
}
