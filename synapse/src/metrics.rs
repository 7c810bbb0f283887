//! What synapse counts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use nerve::store::SnapshotCause;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

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
    pub(crate) watchers: WatcherMetrics,
}

/// What is counted of each watcher beside the store's.
#[derive(Debug, Clone)]
pub(crate) struct WatcherMetrics {
    connected: IntGaugeVec,
    entries: IntGaugeVec,
    changes: IntCounterVec,
    errors: IntCounterVec,
    emptied: IntCounterVec,
}

impl WatcherMetrics {
    fn new() -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["watcher"]);
        let counter = |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &["watcher"]);
        Ok(Self {
            connected: gauge(
                "plexus_watcher_connected",
                "1 while the place that a watcher follows is heard.",
            )?,
            entries: gauge("plexus_watcher_entries", "Instances that a watcher says its service has.")?,
            changes: counter("plexus_watcher_changes_total", "Times that a watcher changed the catalog.")?,
            errors: counter(
                "plexus_watcher_errors_total",
                "Times that a watcher's place was out of reach or could not be understood.",
            )?,
            emptied: counter(
                "plexus_watcher_emptied_total",
                "Times that a watcher's place named no server, and others were used instead.",
            )?,
        })
    }

    fn collectors(&self) -> [Box<dyn Collector>; 5] {
        let Self { connected, entries, changes, errors, emptied } = self.clone();
        [Box::new(connected), Box::new(entries), Box::new(changes), Box::new(errors), Box::new(emptied)]
    }

    pub(crate) fn note(&self, watcher: &str, entries: usize, changed: bool) {
        self.connected.with_label_values(&[watcher]).set(1);
        self.entries.with_label_values(&[watcher]).set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.changes.with_label_values(&[watcher]).inc_by(u64::from(changed));
    }

    pub(crate) fn failed(&self, watcher: &str) {
        self.connected.with_label_values(&[watcher]).set(0);
        self.errors.with_label_values(&[watcher]).inc();
    }

    /// It is followed no more. One of its name may have taken its place already, and counts on.
    pub(crate) fn forget(&self, watcher: &str) {
        let _ = self.connected.remove_label_values(&[watcher]);
        let _ = self.entries.remove_label_values(&[watcher]);
    }

    pub(crate) fn emptied(&self, watcher: &str) {
        self.emptied.with_label_values(&[watcher]).inc();
    }
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
            watchers: WatcherMetrics::new()?,
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
        all.into_iter()
            .chain(self.watchers.collectors())
            .try_for_each(|collector| registry.register(collector))
    }

    pub(crate) fn note_unconfirmed(&self, unconfirmed: usize) {
        self.unconfirmed.set(i64::try_from(unconfirmed).unwrap_or(i64::MAX));
    }

    pub(crate) fn note_size(&self, catalog: &Catalog) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.services.set(gauge(catalog.service_count()));
        self.endpoints.set(gauge(catalog.endpoint_count()));
        self.nodes.set(gauge(catalog.node_count()));
        self.networks.set(gauge(catalog.network_count()));
        self.subnets.set(gauge(catalog.subnet_count()));
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
