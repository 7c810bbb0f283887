//! The log: lines on standard error, for people or for machines, at a level that a reload can change.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{Log, LogFormat};

/// The way to the level.
#[derive(Debug, Clone)]
pub(super) struct Level(reload::Handle<EnvFilter, Registry>);

/// Logs from now on. An error means that something else logs already.
pub(super) fn start(log: &Log) -> anyhow::Result<Level> {
    let (filter, level) = reload::Layer::new(filter(log));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(filter);
    match log.format {
        LogFormat::Text => registry.with(lines).try_init()?,
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(Level(level))
}

/// Logs warnings and errors for people, as the demo does.
pub(super) fn start_quiet() -> anyhow::Result<()> {
    let lines =
        fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).without_time();
    tracing_subscriber::registry().with(EnvFilter::new("error")).with(lines).try_init()?;
    Ok(())
}

impl Level {
    /// Takes over the level of a configuration that was read again.
    pub(super) fn set(&self, log: &Log) {
        if let Err(error) = self.0.reload(filter(log)) {
            tracing::warn!(%error, "the log level cannot be changed");
        }
    }
}

fn filter(log: &Log) -> EnvFilter {
    EnvFilter::new(log.level.as_str())
}
