//! What is counted of mutual TLS besides what the data plane counts of tunnels.

use prometheus::{IntCounter, IntGauge, Registry};

/// Peers, and who came in the clear.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Other nodes that take tunnels.
    pub(super) peers: IntGauge,
    /// Addresses here that are reached by tunnels alone.
    pub(super) walled: IntGauge,
    /// Packets that would have begun a connection with one of them in the clear.
    pub(super) refused: IntCounter,
}

impl Metrics {
    /// Counters at zero, not registered yet.
    pub fn new() -> prometheus::Result<Self> {
        Ok(Self {
            peers: IntGauge::new("plexus_mtls_peers", "Other nodes that take tunnels.")?,
            walled: IntGauge::new(
                "plexus_mtls_strict_addresses",
                "Addresses of instances of this node that other hosts reach by tunnels alone.",
            )?,
            refused: IntCounter::new(
                "plexus_mtls_plain_refused_total",
                "Attempts of other hosts to reach them otherwise, which were refused.",
            )?,
        })
    }

    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.peers.clone()))?;
        registry.register(Box::new(self.walled.clone()))?;
        registry.register(Box::new(self.refused.clone()))
    }
}
