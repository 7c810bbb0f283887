//! What is counted of steering.

use prometheus::{IntCounter, IntGauge, Registry};

/// Whether answers are steered, and how often that had to be mended.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// 1 while the kernel has the rules.
    pub(super) on: IntGauge,
    /// Times that something of ours was missing or changed, and was put back.
    pub(super) repairs: IntCounter,
}

impl Metrics {
    /// Counters at zero, not registered yet.
    pub fn new() -> prometheus::Result<Self> {
        Ok(Self {
            on: IntGauge::new(
                "plexus_steer_on",
                "1 while what endpoints answer to clients' addresses is steered to this agent.",
            )?,
            repairs: IntCounter::new(
                "plexus_steer_repairs_total",
                "Times that rules or routes of the steering were changed by somebody else, and put back.",
            )?,
        })
    }

    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.on.clone()))?;
        registry.register(Box::new(self.repairs.clone()))
    }
}
