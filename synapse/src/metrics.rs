//! What synapse counts.

use nerve::store::SnapshotCause;
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::catalog::Catalog;

/// The catalog's size, its standing against the store, and what was done to it.
#[derive(Debug, Clone)]
pub struct Metrics {
    services: IntGauge,
    endpoints: IntGauge,
    nodes: IntGauge,
    pub(crate) unconfirmed: IntGauge,
    pub(crate) stale: IntGauge,
    pub(crate) last_contact: IntGauge,
    pub(crate) changes: IntCounterVec,
    pub(crate) refused: IntCounterVec,
    snapshots: IntCounterVec,
    pub(crate) apply: Histogram,
    pub(crate) restored: IntCounter,
    pub(crate) memory_saves: IntCounterVec,
}

impl Metrics {
    /// Counters at zero, not registered yet.
    pub fn new() -> prometheus::Result<Self> {
        let counters =
            |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        Ok(Self {
            services: IntGauge::new("plexus_catalog_services", "Services in the catalog.")?,
            endpoints: IntGauge::new("plexus_catalog_endpoints", "Endpoints in the catalog.")?,
            nodes: IntGauge::new("plexus_catalog_nodes", "Nodes in the catalog.")?,
            unconfirmed: IntGauge::new(
                "plexus_catalog_unconfirmed",
                "Instances and nodes that the store no longer lists and that are kept for the reconnect grace.",
            )?,
            stale: IntGauge::new(
                "plexus_catalog_stale",
                "1 while the store is out of reach and the last known good is served.",
            )?,
            last_contact: IntGauge::new(
                "plexus_catalog_last_contact_timestamp_seconds",
                "When the store was last heard of.",
            )?,
            changes: counters(
                "plexus_catalog_changes_total",
                "Changes heard from the store, by kind.",
                "kind",
            )?,
            refused: counters(
                "plexus_catalog_refused_records_total",
                "Records of the store that were not taken, by reason.",
                "reason",
            )?,
            snapshots: counters(
                "plexus_catalog_snapshots_total",
                "Whole snapshots taken from the store, by cause.",
                "cause",
            )?,
            apply: Histogram::with_opts(
                HistogramOpts::new(
                    "plexus_catalog_apply_seconds",
                    "Time to apply what one event of the watch brought.",
                )
                .buckets(vec![0.00001, 0.0001, 0.001, 0.01, 0.1, 1.0]),
            )?,
            restored: IntCounter::new(
                "plexus_catalog_restored_settings_total",
                "Settings of services that were written back after the store had lost its data.",
            )?,
            memory_saves: counters(
                "plexus_memory_saves_total",
                "Times that the catalog was saved to disk, by result.",
                "result",
            )?,
        })
    }

    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let all: [Box<dyn Collector>; 12] = [
            Box::new(self.services.clone()),
            Box::new(self.endpoints.clone()),
            Box::new(self.nodes.clone()),
            Box::new(self.unconfirmed.clone()),
            Box::new(self.stale.clone()),
            Box::new(self.last_contact.clone()),
            Box::new(self.changes.clone()),
            Box::new(self.refused.clone()),
            Box::new(self.snapshots.clone()),
            Box::new(self.apply.clone()),
            Box::new(self.restored.clone()),
            Box::new(self.memory_saves.clone()),
        ];
        all.into_iter().try_for_each(|collector| registry.register(collector))
    }

    pub(crate) fn note_size(&self, catalog: &Catalog) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.services.set(gauge(catalog.service_count()));
        self.endpoints.set(gauge(catalog.endpoint_count()));
        self.nodes.set(gauge(catalog.node_count()));
    }

    pub(crate) fn note_snapshot(&self, cause: SnapshotCause) {
        let word = match cause {
            SnapshotCause::First => "first",
            SnapshotCause::Resync => "resync",
            SnapshotCause::Reset => "reset",
        };
        self.snapshots.with_label_values(&[word]).inc();
    }
}
