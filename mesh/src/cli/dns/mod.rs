//! `plexus dns`: what has to do with this node's name server.
//!
//! `top` tells what it is asked. `install` and `uninstall` change files of this host, and nothing else does: `host` looks how it finds names,
//! `server` chooses where the agent is asked, `text` and `resolv_conf` say what the files are to be (pure), `files` does it, all of it or
//! nothing.

mod files;
mod host;
mod install;
mod resolv_conf;
mod server;
#[cfg(test)]
mod tests;
mod text;
mod top;
mod uninstall;

use clap::{Args, Subcommand};

use super::Result;
use super::output::Output;

/// Work with this node's name server
#[derive(Debug, Args)]
pub(super) struct Dns {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Top(top::Top),
    Install(install::Install),
    Uninstall(uninstall::Uninstall),
}

impl Dns {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        match self.action {
            Action::Top(command) => command.run(out).await,
            Action::Install(command) => command.run(out).await,
            Action::Uninstall(command) => command.run(out),
        }
    }
}
