//! `plexus agent`: runs the agent until it is told to stop.

use std::path::PathBuf;

use clap::Args;

use super::{Error, Result};

const AFTER_HELP: &str = "\
Signals: SIGHUP reads the configuration again, SIGTERM and SIGINT deregister and drain, a second one leaves at once.

Examples:
  plexus agent --config /etc/plexus/plexus.toml
  plexus config check /etc/plexus/plexus.toml     what it would run with";

/// Run the agent of this node
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Agent {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Agent {
    pub(super) fn run(self) -> Result {
        crate::agent::run(&self.config).map_err(Error::Program)
    }
}
