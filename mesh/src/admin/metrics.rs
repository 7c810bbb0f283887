//! Counters of the admin interface.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// What the admin interface did.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Answers by status code.
    pub(super) responses: IntCounterVec,
    /// Requests and connections that were not looked at, by reason.
    pub(super) refused: IntCounterVec,
    /// Open connections.
    pub(super) connections: IntGauge,
}

impl Default for Metrics {
    #[allow(clippy::expect_used, reason = "names and labels are literals that follow Prometheus's rules")]
    fn default() -> Self {
        let counters = |name: &str, help: &str, label: &str| {
            IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid metric")
        };
        Self {
            responses: counters("plexus_admin_responses_total", "Answers of the admin interface.", "code"),
            refused: counters(
                "plexus_admin_refused_total",
                "Requests and connections that the admin interface refused unread.",
                "reason",
            ),
            connections: IntGauge::new(
                "plexus_admin_connections",
                "Open connections of the admin interface.",
            )
            .expect("a valid metric"),
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
        registry.register(Box::new(self.connections.clone()))
    }
}
