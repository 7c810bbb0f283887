//! What the store's client counts. One set serves every store of an agent.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::{Error, ErrorKind, SnapshotCause};

/// From an in-memory store's microseconds to the longest request timeout anyone sets.
const LATENCY_BUCKETS: [f64; 12] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Counters of the store's client.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: HistogramVec,
    errors: IntCounterVec,
    connects: IntCounterVec,
    failovers: IntCounterVec,
    snapshots: IntCounterVec,
    disconnects: IntCounter,
    ignored_keys: IntCounter,
    sessions_lost: IntCounter,
}

impl Default for Metrics {
    #[allow(clippy::expect_used, reason = "names and labels are constants that the tests below construct")]
    fn default() -> Self {
        let vec = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("constant names")
        };
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("constant names");
        let requests = HistogramOpts::new(
            "plexus_store_request_seconds",
            "How long calls to the store took, failed ones too, by operation.",
        );
        Self {
            requests: HistogramVec::new(requests.buckets(LATENCY_BUCKETS.to_vec()), &["operation"])
                .expect("constant names"),
            errors: vec(
                "plexus_store_errors_total",
                "Failed calls to the store, by operation and kind.",
                &["operation", "kind"],
            ),
            connects: vec(
                "plexus_store_connects_total",
                "Attempts to open a client on an endpoint of the store, by result.",
                &["result"],
            ),
            failovers: vec(
                "plexus_store_failovers_total",
                "Moves away from an endpoint of the store that failed, by that endpoint.",
                &["endpoint"],
            ),
            snapshots: vec(
                "plexus_store_watch_snapshots_total",
                "Whole snapshots that watches yielded, by cause.",
                &["cause"],
            ),
            disconnects: counter(
                "plexus_store_watch_disconnects_total",
                "Times that a watch lost its store and said so.",
            ),
            ignored_keys: counter(
                "plexus_store_ignored_keys_total",
                "Keys read from the store that are no paths of ours and were left out.",
            ),
            sessions_lost: counter(
                "plexus_store_sessions_lost_total",
                "Sessions that were lost before they were closed.",
            ),
        }
    }
}

impl Metrics {
    /// Adds all of them to `registry`.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.requests.clone()))?;
        for vec in [&self.errors, &self.connects, &self.failovers, &self.snapshots] {
            registry.register(Box::new(vec.clone()))?;
        }
        for counter in [&self.disconnects, &self.ignored_keys, &self.sessions_lost] {
            registry.register(Box::new(counter.clone()))?;
        }
        Ok(())
    }

    /// A call ended.
    pub(super) fn observe<T>(&self, operation: &'static str, took: Duration, result: &Result<T, Error>) {
        self.latency(operation).observe(took.as_secs_f64());
        if let Err(error) = result {
            self.errors.with_label_values(&[operation, kind_label(error.kind)]).inc();
        }
    }

    pub(super) fn connected(&self, succeeded: bool) {
        self.connects.with_label_values(&[if succeeded { "ok" } else { "failed" }]).inc();
    }

    pub(super) fn failed_over(&self, from: &str) {
        self.failovers.with_label_values(&[from]).inc();
    }

    pub(super) fn snapshot(&self, cause: SnapshotCause) {
        let cause = match cause {
            SnapshotCause::First => "first",
            SnapshotCause::Resync => "resync",
            SnapshotCause::Reset => "reset",
        };
        self.snapshots.with_label_values(&[cause]).inc();
    }

    pub(super) fn disconnected(&self) {
        self.disconnects.inc();
    }

    pub(super) fn key_ignored(&self) {
        self.ignored_keys.inc();
    }

    pub(super) fn session_lost(&self) {
        self.sessions_lost.inc();
    }

    fn latency(&self, operation: &'static str) -> Histogram {
        self.requests.with_label_values(&[operation])
    }
}

/// The word for `kind` in metrics.
fn kind_label(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::SessionLost => "session_lost",
        ErrorKind::Denied => "denied",
        ErrorKind::Invalid => "invalid",
        ErrorKind::Corrupt => "corrupt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_under_our_name() {
        let (metrics, registry) = (Metrics::default(), Registry::new());
        metrics.register(&registry).unwrap();
        metrics.observe::<()>("get", Duration::from_millis(1), &Ok(()));
        metrics.connected(true);
        metrics.failed_over("a:1");
        metrics.snapshot(SnapshotCause::First);
        let names: Vec<_> = registry.gather().iter().map(|family| family.name().to_owned()).collect();
        assert!(names.iter().all(|name| name.starts_with("plexus_store_")), "{names:?}");
        // `errors` has no error yet and is not shown.
        assert_eq!(names.len(), 7, "{names:?}");
    }
}
