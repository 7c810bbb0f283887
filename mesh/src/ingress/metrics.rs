//! What ingress counts.

use prometheus::{IntCounter, IntGauge, Registry};

/// Listeners by state.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Open listeners.
    pub(super) open: IntGauge,
    /// Wanted listeners that somebody else serves here.
    pub(super) held: IntGauge,
    /// Wanted listeners that could not be opened.
    pub(super) failed: IntGauge,
    /// Connections reset because a drain's deadline passed.
    pub(super) forced: IntCounter,
}

impl Metrics {
    /// Counters at zero, not registered yet.
    pub fn new() -> prometheus::Result<Self> {
        Ok(Self {
            open: IntGauge::new(
                "plexus_listeners_open",
                "Published and localhost ports that this node listens on.",
            )?,
            held: IntGauge::new(
                "plexus_listeners_held",
                "Published ports that an instance of this node has itself, or Docker for one: they are not listened on while that is so.",
            )?,
            failed: IntGauge::new(
                "plexus_listeners_failed",
                "Ports that this node is to listen on and cannot.",
            )?,
            forced: IntCounter::new(
                "plexus_drain_forced_connections_total",
                "Connections that were reset because the port's drain deadline passed.",
            )?,
        })
    }

    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.open.clone()))?;
        registry.register(Box::new(self.held.clone()))?;
        registry.register(Box::new(self.failed.clone()))?;
        registry.register(Box::new(self.forced.clone()))
    }
}
