//! What synapse counts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use nerve::store::SnapshotCause;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::catalog::{Catalog, Freshness};

/// The catalog's size, its standing against the store, and what was done to it.
#[derive(Debug, Clone)]
pub struct Metrics {
    services: IntGauge,
    endpoints: IntGauge,
    nodes: IntGauge,
    networks: IntGauge,
    subnets: IntGauge,
    unconfirmed: IntGauge,
    stale: IntGauge,
    stale_seconds: StaleSeconds,
    pub(crate) changes: IntCounterVec,
    pub(crate) refused: IntCounterVec,
    pub(crate) unknown: IntCounter,
    snapshots: IntCounterVec,
    pub(crate) apply: Histogram,
    pub(crate) restored: IntCounterVec,
    pub(crate) memory_saves: IntCounterVec,
    pub(crate) memory_save_seconds: Histogram,
}

/// How long ago the store last confirmed the catalog, computed when it is asked for.
#[derive(Debug, Clone)]
struct StaleSeconds {
    gauge: Gauge,
    /// `None` while the store is within reach.
    since: Arc<Mutex<Option<SystemTime>>>,
}

impl Collector for StaleSeconds {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = since.and_then(|since| since.elapsed().ok()).unwrap_or_default();
        self.gauge.set(elapsed.as_secs_f64());
        self.gauge.collect()
    }
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
            networks: IntGauge::new("plexus_catalog_networks", "Overlay networks in the catalog.")?,
            subnets: IntGauge::new(
                "plexus_catalog_subnets",
                "Subnets of overlay networks that nodes hold, in the catalog.",
            )?,
            unconfirmed: IntGauge::new(
                "plexus_catalog_unconfirmed",
                "Instances, nodes and subnets that the store no longer lists and that are kept for the reconnect grace.",
            )?,
            stale: IntGauge::new(
                "plexus_catalog_stale",
                "1 while the store does not confirm the catalog: it is out of reach or has not answered yet.",
            )?,
            stale_seconds: StaleSeconds {
                gauge: Gauge::new(
                    "plexus_catalog_stale_seconds",
                    "For how long the store has not confirmed the catalog; 0 while it is within reach.",
                )?,
                since: Arc::default(),
            },
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
            unknown: IntCounter::new(
                "plexus_catalog_unknown_keys_total",
                "Keys of the store that mean nothing to this version and were left out.",
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
            restored: counters(
                "plexus_catalog_restored_settings_total",
                "Settings of services that a store had lost with its data: written back, found written back, failed.",
                "result",
            )?,
            memory_saves: counters(
                "plexus_memory_saves_total",
                "Times that the catalog was saved to disk, by result.",
                "result",
            )?,
            memory_save_seconds: Histogram::with_opts(
                HistogramOpts::new("plexus_memory_save_seconds", "Time to save the catalog to disk.")
                    .buckets(vec![0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0]),
            )?,
        })
    }

    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let all: [Box<dyn Collector>; 16] = [
            Box::new(self.services.clone()),
            Box::new(self.endpoints.clone()),
            Box::new(self.nodes.clone()),
            Box::new(self.networks.clone()),
            Box::new(self.subnets.clone()),
            Box::new(self.unconfirmed.clone()),
            Box::new(self.stale.clone()),
            Box::new(self.stale_seconds.clone()),
            Box::new(self.changes.clone()),
            Box::new(self.refused.clone()),
            Box::new(self.unknown.clone()),
            Box::new(self.snapshots.clone()),
            Box::new(self.apply.clone()),
            Box::new(self.restored.clone()),
            Box::new(self.memory_saves.clone()),
            Box::new(self.memory_save_seconds.clone()),
        ];
        all.into_iter().try_for_each(|collector| registry.register(collector))
    }

    pub(crate) fn note_size(&self, catalog: &Catalog, unconfirmed: usize) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.services.set(gauge(catalog.service_count()));
        self.endpoints.set(gauge(catalog.endpoint_count()));
        self.nodes.set(gauge(catalog.node_count()));
        self.networks.set(gauge(catalog.network_count()));
        self.subnets.set(gauge(catalog.subnet_count()));
        self.unconfirmed.set(gauge(unconfirmed));
    }

    pub(crate) fn note_freshness(&self, freshness: &Freshness) {
        let mut since = self.stale_seconds.since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = match freshness {
            Freshness::Awaiting => Some(SystemTime::now()),
            Freshness::Live => None,
            Freshness::Stale { since, .. } => Some(*since),
        };
        self.stale.set(i64::from(since.is_some()));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn staleness_is_computed_when_it_is_asked_for() {
        let (metrics, registry) = (Metrics::new().unwrap(), Registry::new());
        metrics.register(&registry).unwrap();
        let seconds = || {
            let families = registry.gather();
            let family = families.iter().find(|f| f.name() == "plexus_catalog_stale_seconds").unwrap();
            family.get_metric()[0].get_gauge().get_value()
        };
        let since = SystemTime::now() - Duration::from_secs(60);
        metrics.note_freshness(&Freshness::Stale { since, reason: String::new() });
        assert!((60.0..120.0).contains(&seconds()), "{}", seconds());
        metrics.note_freshness(&Freshness::Live);
        assert_eq!((seconds(), metrics.stale.get()), (0.0, 0));
    }
}
