//! The agent: composition of all rooms, and the only place where runtimes and root tasks are made.

pub mod demo;

use std::path::Path;

/// Runs the agent that the configuration file describes, until it is told to stop.
///
/// # Errors
/// It could not start, or what it lives on failed.
pub fn run(config: &Path) -> anyhow::Result<()> {
    anyhow::bail!("this build has no agent to run {} with", config.display())
}
