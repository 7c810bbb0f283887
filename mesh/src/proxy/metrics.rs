//! What the data plane counts. The labels of a listener are looked up once, when it is opened.

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::Dropped;

/// Everything that the data plane counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    connections: IntCounterVec,
    active: IntGaugeVec,
    bytes: IntCounterVec,
    retries: IntCounterVec,
    dropped: IntCounterVec,
    connect: HistogramVec,
    /// Accepts that the kernel refused for want of descriptors or memory.
    pub(super) accept_errors: IntCounter,
}

/// The counters of one service's connections.
#[derive(Debug, Clone)]
pub(super) struct ServiceMetrics {
    pub(super) connections: IntCounter,
    pub(super) active: IntGauge,
    pub(super) to_endpoint: IntCounter,
    pub(super) to_client: IntCounter,
    pub(super) retries: IntCounter,
    pub(super) connect: Histogram,
    dropped: [IntCounter; Dropped::ALL.len()],
}

impl Metrics {
    /// Counters at zero, not registered yet.
    pub fn new() -> prometheus::Result<Self> {
        Ok(Self {
            connections: counters("plexus_connections_total", "Client connections accepted.", &["service"])?,
            active: IntGaugeVec::new(
                Opts::new("plexus_connections_active", "Client connections that are open."),
                &["service"],
            )?,
            bytes: counters(
                "plexus_bytes_total",
                "Bytes moved, by the side they went to.",
                &["service", "to"],
            )?,
            retries: counters(
                "plexus_connect_retries_total",
                "Attempts to connect to an endpoint that failed and were made again elsewhere, or given up.",
                &["service"],
            )?,
            dropped: counters(
                "plexus_connections_dropped_total",
                "Client connections that were not served to their end, by reason.",
                &["service", "reason"],
            )?,
            connect: HistogramVec::new(
                HistogramOpts::new(
                    "plexus_connect_seconds",
                    "Time to connect to an endpoint, retries included.",
                )
                .buckets(vec![0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0, 5.0]),
                &["service"],
            )?,
            accept_errors: IntCounter::new(
                "plexus_accept_errors_total",
                "Accepts refused by the kernel: out of descriptors or memory.",
            )?,
        })
    }

    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let all: [Box<dyn Collector>; 7] = [
            Box::new(self.connections.clone()),
            Box::new(self.active.clone()),
            Box::new(self.bytes.clone()),
            Box::new(self.retries.clone()),
            Box::new(self.dropped.clone()),
            Box::new(self.connect.clone()),
            Box::new(self.accept_errors.clone()),
        ];
        all.into_iter().try_for_each(|collector| registry.register(collector))
    }

    pub(super) fn of_service(&self, service: &str) -> ServiceMetrics {
        ServiceMetrics {
            connections: self.connections.with_label_values(&[service]),
            active: self.active.with_label_values(&[service]),
            to_endpoint: self.bytes.with_label_values(&[service, "endpoint"]),
            to_client: self.bytes.with_label_values(&[service, "client"]),
            retries: self.retries.with_label_values(&[service]),
            connect: self.connect.with_label_values(&[service]),
            dropped: Dropped::ALL.map(|reason| self.dropped.with_label_values(&[service, reason.as_str()])),
        }
    }
}

impl ServiceMetrics {
    pub(super) fn dropped(&self, reason: Dropped) {
        self.dropped[reason as usize].inc();
    }

    #[cfg(test)]
    pub(super) fn dropped_so_far(&self, reason: Dropped) -> u64 {
        self.dropped[reason as usize].get()
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        let metrics = Metrics::new().unwrap();
        let service = metrics.of_service("web");
        for reason in Dropped::ALL {
            service.dropped(reason);
            assert_eq!(metrics.dropped.with_label_values(&["web", reason.as_str()]).get(), 1);
        }
    }
}
