//! `plexus agent`: runs the agent until it is told to stop.

use std::path::PathBuf;

use clap::Args;

use super::{Error, Result};
use crate::agent::Succession;

const AFTER_HELP: &str = "\
Signals: SIGHUP reads the configuration again, SIGUSR2 starts the program anew (as it is on disk now), which takes over,
SIGTERM and SIGINT deregister and drain, a second one leaves at once.

Examples:
  plexus agent --config /etc/plexus/plexus.toml
  plexus agent --config /etc/plexus/plexus.toml --take-over     instead of the one that runs
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
}

impl Agent {
    pub(super) fn run(self) -> Result {
        let succession = if self.take_over { Succession::TakeOver } else { Succession::Alone };
        crate::agent::run(&self.config, succession).map_err(Error::Program)
    }
}
