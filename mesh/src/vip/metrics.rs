//! What virtual addresses count.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Claims, releases and routes.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// By how the store decided: `done`, `taken`, `failed`.
    pub(super) claims: IntCounterVec,
    /// Addresses that this agent freed, by why: `gone`, `off`, `surplus`.
    pub(super) released: IntCounterVec,
    /// Services that lack an address although a range is there.
    pub(super) lacking: IntGauge,
    /// Routes made, those made again included.
    pub(super) routes_added: IntCounter,
    /// Ranges that are local here.
    pub(super) ranges_local: IntGauge,
}

impl Metrics {
    /// Counters at zero, not registered yet.
    pub fn new() -> prometheus::Result<Self> {
        Ok(Self {
            claims: IntCounterVec::new(
                Opts::new(
                    "plexus_vip_claims_total",
                    "Virtual addresses that this agent tried to claim, by outcome.",
                ),
                &["outcome"],
            )?,
            released: IntCounterVec::new(
                Opts::new("plexus_vip_released_total", "Virtual addresses that this agent freed, by reason."),
                &["reason"],
            )?,
            lacking: IntGauge::new("plexus_vip_lacking", "Services that wait for a virtual address.")?,
            routes_added: IntCounter::new(
                "plexus_vip_routes_added_total",
                "Routes of virtual ranges that this agent made, those that had been taken away included.",
            )?,
            ranges_local: IntGauge::new(
                "plexus_vip_ranges_local",
                "Virtual ranges that are local on this node.",
            )?,
        })
    }

    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.claims.clone()))?;
        registry.register(Box::new(self.released.clone()))?;
        registry.register(Box::new(self.lacking.clone()))?;
        registry.register(Box::new(self.routes_added.clone()))?;
        registry.register(Box::new(self.ranges_local.clone()))
    }
}
