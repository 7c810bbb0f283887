//! Counters of the admin interface.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// What the admin interface did.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Answers by status code.
    pub(super) responses: IntCounterVec,
    /// Requests and connections that were not served, by reason.
    pub(super) refused: IntCounterVec,
    /// Open connections.
    pub(super) connections: IntGauge,
    /// Requests that wait for a change.
    pub(super) waiting: IntGauge,
}

/// Counted for as long as it lives, also past a panic.
pub(super) struct Open(IntGauge);

impl Open {
    pub(super) fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    #[allow(clippy::expect_used, reason = "names and labels are literals that follow Prometheus's rules")]
    fn default() -> Self {
        let counters = |name: &str, help: &str, label: &str| {
            IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid metric")
        };
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("a valid metric");
        Self {
            responses: counters("plexus_admin_responses_total", "Answers of the admin interface.", "code"),
            refused: counters(
                "plexus_admin_refused_total",
                "Requests and connections that the admin interface refused.",
                "reason",
            ),
            connections: gauge("plexus_admin_connections", "Open connections of the admin interface."),
            waiting: gauge("plexus_admin_waiting", "Requests to the admin interface that wait for a change."),
        }
    }
}

impl Metrics {
    /// Makes them part of `/metrics`.
    ///
    /// # Errors
    /// One of the names is taken.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.responses.clone()))?;
        registry.register(Box::new(self.refused.clone()))?;
        registry.register(Box::new(self.connections.clone()))?;
        registry.register(Box::new(self.waiting.clone()))
    }
}
