//! What Docker asks, counted.

use prometheus::{IntCounterVec, Opts, Registry};

/// Calls of Docker.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// By method and outcome: `done`, `refused`.
    pub(super) calls: IntCounterVec,
}

impl Metrics {
    /// Counters at zero, not registered yet.
    ///
    /// # Errors
    /// A name breaks Prometheus's rules.
    pub fn new() -> prometheus::Result<Self> {
        let calls = Opts::new("plexus_docker_calls_total", "Calls of Docker, by method and outcome.");
        Ok(Self { calls: IntCounterVec::new(calls, &["method", "outcome"])? })
    }

    /// Makes them visible.
    ///
    /// # Errors
    /// A name is taken.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.calls.clone()))
    }
}
