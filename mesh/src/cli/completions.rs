//! `plexus completions SHELL`: the completion script of a shell.

use clap::Args;
use clap_complete::Shell;

use super::Result;
use super::output::Output;

const AFTER_HELP: &str = "\
Examples:
  plexus completions bash > /etc/bash_completion.d/plexus
  plexus completions zsh > \"${fpath[1]}/_plexus\"
  plexus completions fish > ~/.config/fish/completions/plexus.fish";

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, program: &mut clap::Command, out: &mut Output<'_>) -> Result {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, program, "plexus", &mut script);
        out.line(String::from_utf8_lossy(&script).trim_end())?;
        Ok(())
    }
}
