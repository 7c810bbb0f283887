//! `plexus agent`: the agent of this node as a process, with its signals.

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::logging::{self, Level};
use super::replace::Replacement;
use super::signals::{Asked, Signals};
use super::systemd::Notifier;
use super::{Agent, Origin, Phase, Succession};
use crate::config::{Config, Files, Machine};
use crate::inherited::Inherited;
use crate::sys::fds::{Passed, take_passed};

/// Runs the agent that the configuration files describe, until it is told to stop or another one has taken over.
///
/// # Errors
/// The configuration is wrong, something that nothing runs without cannot be had, or another agent is in the way.
pub fn run(files: &Files, succession: Succession) -> anyhow::Result<()> {
    let config = files.load(&Machine::this())?;
    let level = logging::start(&config.log)?;
    raise_file_limit();
    let origin = Origin { inherited: activated()?, succession: Some(succession), ..Origin::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(files, config, origin, &level))
}

/// The sockets that the service manager opened for this process.
fn activated() -> anyhow::Result<Inherited> {
    let inherited = Inherited::default();
    for Passed { name, descriptor } in take_passed()? {
        match inherited.add(descriptor) {
            Ok(socket) => {
                tracing::info!(%socket, name, "the service manager opened a socket");
                inherited.lend(socket);
            }
            Err(error) => tracing::warn!(name, %error, "the service manager passed what is not of use"),
        }
    }
    Ok(inherited)
}

/// Returns when the agent has left or is replaced and has finished its connections, or when the node's name is another agent's; at once when the process is asked to leave
/// a second time, or after it was replaced: what is left of the agent then ends with the process.
async fn supervise(files: &Files, config: Config, origin: Origin, level: &Level) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("listen to signals")?;
    let notifier = Notifier::from_env();
    let serves = format!("node {} serves", config.node.name);
    let agent = Agent::start_from(config, origin)?;
    let (mut phase, mut leaves) = (agent.phase(), agent.phase());
    let (mut announced, mut has_its_name) = (false, false);
    let mut taken = Ok(());
    let mut replacement = Replacement::default();
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Leave(signal) => {
                    tracing::info!(signal, "asked to leave; once more leaves at once");
                    notifier.stopping("deregistered, draining");
                    agent.stop();
                    break;
                }
                Asked::Reload => {
                    notifier.reloading();
                    reload(files, &agent, level).await;
                    notifier.ready(&serves);
                }
                Asked::Replace => replacement.start(),
            },
            Ok(_) = phase.wait_for(|phase| *phase >= Phase::Ready), if !announced => {
                announced = true;
                if agent.has_taken_over() { notifier.ready_instead(&serves) } else { notifier.ready(&serves) }
            }
            decided = agent.has_its_name(), if !has_its_name => {
                has_its_name = decided.is_ok();
                if decided.is_err() {
                    taken = decided;
                    agent.stop();
                    break;
                }
            }
            // Nobody asked: another agent has taken over, and speaks to the service manager from now on.
            Ok(_) = leaves.wait_for(|phase| *phase >= Phase::Draining) => break,
            status = replacement.ended() => tracing::error!(
                status = status.map_or_else(|error| error.to_string(), |status| status.to_string()),
                "the program that was to take over has ended; what it said stands above. This one goes on"
            ),
        }
    }
    tokio::select! {
        () = agent.join() => tracing::info!("left"),
        signal = signals.leave() => tracing::warn!(signal, "leaving at once, with what connections are open"),
    }
    taken.context("the agent cannot start")
}

/// Reads the files again. One that is wrong changes nothing.
async fn reload(files: &Files, agent: &Agent, level: &Level) {
    match files.load(&Machine::this()) {
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
