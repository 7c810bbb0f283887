//! What the output counts.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::compare::{Kind, Reload};
use super::server::Reason;

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Failure {
    /// Nobody answers at a socket.
    Socket,
    /// HAProxy refused a command.
    Command,
    /// The check refused a configuration.
    Check,
    /// A configuration could not be written.
    Write,
    /// The command to reload failed.
    Reload,
    /// It ended well, and HAProxy runs what it ran before.
    Unchanged,
    /// The state file could not be written.
    StateFile,
}

impl Failure {
    const ALL: [Self; 7] = [
        Self::Socket,
        Self::Command,
        Self::Check,
        Self::Write,
        Self::Reload,
        Self::Unchanged,
        Self::StateFile,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Command => "command",
            Self::Check => "check",
            Self::Write => "write",
            Self::Reload => "reload",
            Self::Unchanged => "unchanged",
            Self::StateFile => "state_file",
        }
    }
}

/// Counters and gauges.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    reloads: IntCounterVec,
    commands: IntCounterVec,
    failures: IntCounterVec,
    refused: IntCounterVec,
    pub(super) writes: IntCounter,
    pub(super) pending: IntGauge,
    pub(super) left: IntGauge,
}

impl Metrics {
    /// All of them at zero, not registered yet.
    pub(super) fn new() -> prometheus::Result<Self> {
        let counters =
            |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        let metrics = Self {
            reloads: counters(
                "plexus_haproxy_reloads_total",
                "Reloads of HAProxy, by what made them necessary.",
                "reason",
            )?,
            commands: counters(
                "plexus_haproxy_runtime_commands_total",
                "What HAProxy was told while it ran, and did, by kind.",
                "command",
            )?,
            failures: counters(
                "plexus_haproxy_failures_total",
                "What failed towards HAProxy, by reason.",
                "reason",
            )?,
            refused: counters(
                "plexus_haproxy_refused_total",
                "Instances and lines that are not in HAProxy's configuration, by reason.",
                "reason",
            )?,
            writes: IntCounter::new(
                "plexus_haproxy_writes_total",
                "Times that HAProxy's configuration was replaced.",
            )?,
            pending: IntGauge::new(
                "plexus_haproxy_reload_pending",
                "1 while HAProxy has to be reloaded and was not yet.",
            )?,
            left: IntGauge::new(
                "plexus_haproxy_disabled_servers",
                "Servers that have gone and that HAProxy keeps, disabled, until it is reloaded or their last connection ends.",
            )?,
        };
        for reason in Reload::ALL {
            metrics.reloads.with_label_values(&[reason.as_str()]).reset();
        }
        for kind in Kind::ALL {
            metrics.commands.with_label_values(&[kind.as_str()]).reset();
        }
        for failure in Failure::ALL {
            metrics.failures.with_label_values(&[failure.as_str()]).reset();
        }
        for reason in Reason::ALL {
            metrics.refused.with_label_values(&[reason.as_str()]).reset();
        }
        Ok(metrics)
    }

    /// Makes them visible.
    pub(super) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let Self { reloads, commands, failures, refused, writes, pending, left } = self.clone();
        let all: [Box<dyn Collector>; 7] = [
            Box::new(reloads),
            Box::new(commands),
            Box::new(failures),
            Box::new(refused),
            Box::new(writes),
            Box::new(pending),
            Box::new(left),
        ];
        all.into_iter().try_for_each(|collector| registry.register(collector))
    }

    pub(super) fn reloaded(&self, reason: Reload) {
        self.reloads.with_label_values(&[reason.as_str()]).inc();
    }

    pub(super) fn told(&self, kind: Kind) {
        self.commands.with_label_values(&[kind.as_str()]).inc();
    }

    pub(super) fn failed(&self, failure: Failure) {
        self.failures.with_label_values(&[failure.as_str()]).inc();
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused.with_label_values(&[reason.as_str()]).inc();
    }
}
