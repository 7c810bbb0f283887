//! `plexus agent`: runs the agent until it is told to stop.

use std::path::PathBuf;

use clap::Args;

use super::{Error, Output, Result};
use crate::agent::Succession;
use crate::config::{Checked, Files, Machine, Nerve};
use crate::identity::Token;

const AFTER_HELP: &str = "\
Signals: SIGHUP reads the configuration again, SIGUSR2 starts the program anew (as it is on disk now), which takes over,
SIGTERM and SIGINT deregister and drain, a second one leaves at once.

Examples:
  plexus agent --config /etc/plexus/plexus.toml
  plexus agent --config /etc/plexus/plexus.toml --take-over     instead of the one that runs
  plexus agent --config /etc/plexus/plexus.toml --nerve /etc/nerve/nerve.conf.json     with what Nerve registers
  plexus agent --config /etc/plexus/plexus.toml --synapse /etc/synapse/synapse.conf.json     with what Synapse serves
  plexus agent --config /etc/plexus/plexus.toml --join TOKEN     a new node of a mesh with an authority
  plexus config check /etc/plexus/plexus.toml     what it would run with";

/// Run the agent of this node
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Agent {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Take over from the agent that runs with the same state directory: sockets, registrations, checks; it finishes its
    /// connections and ends. Without one, start as ever
    #[arg(long)]
    take_over: bool,

    /// The main file of a configuration of SmartStack's Nerve, which is taken as it is: `[source.nerve] file`
    #[arg(long, value_name = "FILE")]
    nerve: Option<PathBuf>,

    /// Instead of the `instance_id` of that file: `[source.nerve] instance_id`
    #[arg(long, value_name = "ID", requires = "nerve")]
    instance_id: Option<String>,

    /// The main file of a configuration of SmartStack's Synapse, which is taken as it is: `[source.synapse] file`
    #[arg(long, value_name = "FILE")]
    synapse: Option<PathBuf>,

    /// What lets this node in for the first time, or after its certificate has ended: a join token
    #[arg(long, value_name = "TOKEN", env = "PLEXUS_JOIN", hide_env_values = true)]
    join: Option<Token>,

    /// Only say whether the configuration, and those of Nerve and Synapse, are right
    #[arg(long)]
    check_config: bool,
}

impl Agent {
    pub(super) fn run(self) -> Result {
        let succession = if self.take_over { Succession::TakeOver } else { Succession::Alone };
        let Self { config, nerve, instance_id, synapse, join, check_config, .. } = self;
        let nerve = nerve.map(|file| Nerve { file, instance_id });
        let files = Files { config, nerve, synapse, token: join };
        if check_config {
            check(&files)
        } else {
            crate::agent::run(&files, succession).map_err(Error::Program)
        }
    }
}

fn check(files: &Files) -> Result {
    let config = files.load(&Machine::this()).map_err(|errors| Error::Program(errors.into()))?;
    let checked = config.check_sources().map_err(|wrong| Error::Program(anyhow::anyhow!(wrong)))?;
    let Checked { instances, services, lacks } = checked;
    let taken =
        services.map_or_else(String::new, |services| format!(" and takes {services} services of Synapse's"));
    let mut out = Output::stdout();
    out.line(format!("the configuration is right; it defines {instances} instances{taken}"))?;
    for lack in lacks {
        out.line(lack)?;
    }
    Ok(())
}
