//! `plexus agent`: the agent of this node as a process, with its signals.

use std::path::Path;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::logging::{self, Level};
use super::signals::{Asked, Signals};
use super::systemd::Notifier;
use super::{Agent, Phase};
use crate::config::{Config, Machine};

/// Runs the agent that the configuration file describes, until it is told to stop.
///
/// # Errors
/// The configuration is wrong, or something that nothing runs without cannot be had.
pub fn run(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file, &Machine::this())?;
    let level = logging::start(&config.log)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(file, config, &level))
}

/// Returns when the agent has left, or at once when the process is asked to leave a second time: what is left of the
/// agent then ends with the process.
async fn supervise(file: &Path, config: Config, level: &Level) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("listen to signals")?;
    let notifier = Notifier::from_env();
    let node = config.node.name.clone();
    let agent = Agent::start(config, None)?;
    let mut phase = agent.phase();
    let mut announced = false;
    let signal = loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Leave(signal) => break signal,
                Asked::Reload => {
                    notifier.reloading();
                    reload(file, &agent, level).await;
                    notifier.ready(&format!("node {node} serves"));
                }
            },
            Ok(_) = phase.wait_for(|phase| *phase >= Phase::Ready), if !announced => {
                announced = true;
                notifier.ready(&format!("node {node} serves"));
            }
        }
    };
    tracing::info!(signal, "asked to leave; once more leaves at once");
    notifier.stopping("deregistered, draining");
    agent.stop();
    tokio::select! {
        () = agent.join() => tracing::info!("left"),
        signal = signals.leave() => tracing::warn!(signal, "leaving at once, with what connections are open"),
    }
    Ok(())
}

/// Reads the file again. One that is wrong changes nothing.
async fn reload(file: &Path, agent: &Agent, level: &Level) {
    match Config::load(file, &Machine::this()) {
        Ok(config) => {
            level.set(&config.log);
            agent.reload(config).await;
        }
        Err(errors) => {
            tracing::error!("the configuration is not read again; what runs stays as it is:\n{errors}")
        }
    }
}

/// Every connection takes two descriptors; the soft limit is for programs that use `select(2)`.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "file limit"),
        Err(error) => tracing::warn!(%error, "the file limit cannot be raised; fewer connections fit"),
    }
}
