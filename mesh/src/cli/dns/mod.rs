//! `plexus dns`: the name server of a node.

mod top;

use clap::{Args, Subcommand};

use super::Result;
use super::output::Output;

/// Look at the name server of a node
#[derive(Debug, Args)]
pub(super) struct Dns {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Top(top::Top),
}

impl Dns {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        match self.command {
            Command::Top(command) => command.run(out).await,
        }
    }
}
