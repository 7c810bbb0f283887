//! `plexus` as a plugin of container runtimes (CNI), and `plexus cni install`, which tells them so.
//!
//! A runtime runs the program without arguments, says in `CNI_…` variables what is to be done to which container, and gives the
//! network's configuration on standard input. The answer, or the failure, is JSON on standard output. What is asked for is done by
//! the agent of the node, over its admin address, as for every other command: nothing here touches the kernel or keeps anything.
//!
//! `call` is what was asked, `configuration` what was on standard input, `plugin` does it, `delegate` runs a plugin that has
//! addresses to give, `answer` and `failure` are what is told. The specification is
//! <https://github.com/containernetworking/cni/blob/main/SPEC.md>; words in quotes are from there.

mod answer;
mod call;
mod configuration;
mod delegate;
mod failure;
mod install;
mod plugin;
mod version;

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::Result;
use super::error::Error;
use super::output::Output;

/// Connect the containers of a runtime that speaks CNI
#[derive(Debug, Args)]
pub(super) struct Cni {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Install(install::Install),
}

impl Cni {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        match self.command {
            Command::Install(command) => command.run(out).await,
        }
    }
}

/// Is it a container runtime that runs this program? It gives a plugin no arguments, and a person gives no command to do.
pub(super) fn is_called(arguments: &[OsString]) -> bool {
    arguments.len() <= 1 && std::env::var_os(call::COMMAND).is_some()
}

/// Does what a container runtime asks for.
pub(super) async fn run(out: &mut Output<'_>) -> Result {
    let answer = plugin::run(|name| std::env::var_os(name), tokio::io::stdin()).await;
    let answer = answer.map_err(|failure| Error::Plugin(failure.json()))?;
    if let Some(answer) = answer {
        out.line(answer.to_string())?;
    }
    Ok(())
}
