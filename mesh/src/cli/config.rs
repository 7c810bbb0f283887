//! `plexus config check FILE`: is the configuration right, and what does it mean?

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output::Output;
use super::{Error, Result};
use crate::config::{self, Machine};

const AFTER_HELP: &str = "\
Prints the configuration that the agent would run with: every key, the defaults included; passwords are hidden. All
mistakes are told at once, with file, line and key. Nothing is contacted, and a running agent is not touched.

Examples:
  plexus config check /etc/plexus/plexus.toml
  plexus config check plexus.toml --json | jq .dns";

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
#[command(after_help = AFTER_HELP)]
struct Check {
    /// The configuration file
    file: PathBuf,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl Config {
    pub(super) fn run(self, out: &mut Output<'_>) -> Result {
        let Action::Check(check) = self.action;
        check.run(out)
    }
}

impl Check {
    fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("checking {}", self.file.display());
        let config = config::Config::load(&self.file, &Machine::this()).map_err(|errors| {
            let problems = if errors.total() == 1 { "problem" } else { "problems" };
            let listed: String = errors.iter().map(|problem| format!("\n  {problem}")).collect();
            Error::failed(&what, format!("{} {problems}{listed}", errors.total()))
        })?;
        let text = config.to_toml().map_err(|error| Error::failed(&what, error))?;
        out.as_json(self.json);
        out.answer(&config, |out, _| out.line(text.trim_end()))?;
        Ok(())
    }
}
