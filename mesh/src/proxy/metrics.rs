//! What the data plane counts.
//!
//! Each thread counts for itself, in numbers that only it writes: no locked instruction and no cache line that threads pass
//! around. They are added up when somebody asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
};

use super::count::{Count, counters, raise};
use super::{Dropped, Plain, tunnel_metrics, udp_metrics};

/// Everything that the data plane counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    tallies: Tallies,
    pub(super) udp: udp_metrics::Tallies,
    pub(super) tunnels: tunnel_metrics::Tallies,
    connect: HistogramVec,
    /// Accepts that the kernel refused for want of descriptors or memory.
    pub(super) accept_errors: IntCounter,
}

/// What one thread counts of one service.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Tally {
    pub(super) accepted: Count,
    pub(super) ended: Count,
    pub(super) to_endpoint: Count,
    pub(super) to_client: Count,
    pub(super) retries: Count,
    dropped: [Count; Dropped::ALL.len()],
    plain: [Count; Plain::ALL.len()],
    without_tunnel: [Count; WithoutTunnel::ALL.len()],
}

/// What becomes of a connection to another node's endpoint for which there is to be a tunnel, and is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutTunnel {
    /// It goes directly.
    InClear,
    /// It does not go there.
    Refused,
}

impl WithoutTunnel {
    const ALL: [Self; 2] = [Self::InClear, Self::Refused];

    fn as_str(self) -> &'static str {
        match self {
            Self::InClear => "in_clear",
            Self::Refused => "refused",
        }
    }
}

/// The tallies of all services and threads, and the families that they become.
#[derive(Debug, Clone)]
struct Tallies {
    of_service: Arc<Mutex<BTreeMap<String, Vec<Arc<Tally>>>>>,
    connections: IntCounterVec,
    active: IntGaugeVec,
    bytes: IntCounterVec,
    retries: IntCounterVec,
    dropped: IntCounterVec,
    plain: IntCounterVec,
    without_tunnel: IntCounterVec,
}

impl Tally {
    pub(super) fn dropped(&self, reason: Dropped) {
        self.dropped[reason as usize].add(1);
    }

    pub(super) fn plain(&self, reason: Plain) {
        self.plain[reason as usize].add(1);
    }

    pub(super) fn without_tunnel(&self, then: WithoutTunnel) {
        self.without_tunnel[then as usize].add(1);
    }
}

impl Metrics {
    /// Counters at zero, not registered yet.
    pub fn new() -> prometheus::Result<Self> {
        let tallies = Tallies {
            of_service: Arc::default(),
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
            plain: counters(
                "plexus_connections_plain_total",
                "Connections to endpoints that see this node's address although the service asks for the client's, by reason.",
                &["service", "reason"],
            )?,
            without_tunnel: counters(
                "plexus_connections_without_tunnel_total",
                "Connections to endpoints of other nodes that were to go by a tunnel and had none, by what became of them.",
                &["service", "then"],
            )?,
        };
        Ok(Self {
            tallies,
            udp: udp_metrics::Tallies::new()?,
            tunnels: tunnel_metrics::Tallies::new()?,
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
        registry.register(Box::new(self.tallies.clone()))?;
        registry.register(Box::new(self.udp.clone()))?;
        registry.register(Box::new(self.tunnels.clone()))?;
        registry.register(Box::new(self.connect.clone()))?;
        registry.register(Box::new(self.accept_errors.clone()))
    }

    /// The tally of a service on the thread with this index.
    pub(super) fn tally(&self, service: &str, thread: usize) -> Arc<Tally> {
        let mut of_service = self.tallies.of_service.lock().unwrap_or_else(PoisonError::into_inner);
        let tallies = of_service.entry(service.to_owned()).or_default();
        while tallies.len() <= thread {
            tallies.push(Arc::default());
        }
        Arc::clone(&tallies[thread])
    }

    pub(super) fn connect_time(&self, service: &str) -> Histogram {
        self.connect.with_label_values(&[service])
    }

    #[cfg(test)]
    pub(super) fn dropped_so_far(&self, service: &str, reason: Dropped) -> u64 {
        let of_service = self.tallies.of_service.lock().unwrap();
        of_service.get(service).into_iter().flatten().map(|tally| tally.dropped[reason as usize].get()).sum()
    }
}

impl Tallies {
    /// Brings the families up to what the threads have counted.
    fn add_up(&self) {
        let of_service = self.of_service.lock().unwrap_or_else(PoisonError::into_inner);
        for (service, tallies) in &*of_service {
            let service = service.as_str();
            let sum = |count: &dyn Fn(&Tally) -> u64| tallies.iter().map(|tally| count(tally)).sum::<u64>();
            let accepted = sum(&|t| t.accepted.get());
            raise(&self.connections, &[service], accepted);
            raise(&self.retries, &[service], sum(&|t| t.retries.get()));
            raise(&self.bytes, &[service, "endpoint"], sum(&|t| t.to_endpoint.get()));
            raise(&self.bytes, &[service, "client"], sum(&|t| t.to_client.get()));
            for reason in Dropped::ALL {
                let count = sum(&|t| t.dropped[reason as usize].get());
                // At zero before it first happens, or `rate()` misses that. Not for services that nobody has asked for here: there
                // are many reasons, and services may be ten thousand.
                if count > 0 || accepted > 0 {
                    raise(&self.dropped, &[service, reason.as_str()], count);
                }
            }
            for reason in Plain::ALL {
                let count = sum(&|t| t.plain[reason as usize].get());
                if count > 0 {
                    raise(&self.plain, &[service, reason.as_str()], count);
                }
            }
            for then in WithoutTunnel::ALL {
                let count = sum(&|t| t.without_tunnel[then as usize].get());
                if count > 0 {
                    raise(&self.without_tunnel, &[service, then.as_str()], count);
                }
            }
            // In this order, so that one that ends in between is not counted below zero.
            let ended = sum(&|t| t.ended.get());
            let open = sum(&|t| t.accepted.get()).saturating_sub(ended);
            self.active.with_label_values(&[service]).set(i64::try_from(open).unwrap_or(i64::MAX));
        }
    }

    fn families(&self) -> [&dyn Collector; 7] {
        let Self { connections, active, bytes, retries, dropped, plain, without_tunnel, .. } = self;
        [connections, active, bytes, retries, dropped, plain, without_tunnel]
    }
}

impl Collector for Tallies {
    fn desc(&self) -> Vec<&Desc> {
        self.families().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.add_up();
        // A family without a series cannot be written.
        let families = self.families().into_iter().flat_map(Collector::collect);
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(families: Vec<MetricFamily>) -> String {
        prometheus::TextEncoder::new().encode_to_string(&families).unwrap()
    }

    #[test]
    fn each_reason_has_its_own_counter() {
        let metrics = Metrics::new().unwrap();
        let threads = [metrics.tally("web", 0), metrics.tally("web", 1)];
        for reason in Dropped::ALL {
            threads[0].dropped(reason);
            threads[1].dropped(reason);
            metrics.tallies.add_up();
            assert_eq!(metrics.tallies.dropped.with_label_values(&["web", reason.as_str()]).get(), 2);
        }
        for then in WithoutTunnel::ALL {
            threads[0].without_tunnel(then);
            metrics.tallies.add_up();
            assert_eq!(metrics.tallies.without_tunnel.with_label_values(&["web", then.as_str()]).get(), 1);
        }
        for reason in Plain::ALL {
            threads[1].plain(reason);
            metrics.tallies.add_up();
            assert_eq!(metrics.tallies.plain.with_label_values(&["web", reason.as_str()]).get(), 1);
        }
    }

    #[test]
    fn a_service_that_was_asked_for_has_every_reason_at_zero() {
        let metrics = Metrics::new().unwrap();
        let (web, _quiet) = (metrics.tally("web", 0), metrics.tally("quiet", 0));
        web.accepted.add(1);
        let series = |of: &str, end: &str| {
            let text = written(metrics.tallies.collect());
            let dropped = text.lines().filter(|line| line.starts_with("plexus_connections_dropped_total{"));
            dropped.filter(|line| line.contains(of) && line.ends_with(end)).count()
        };
        assert_eq!((series("web", " 0"), series("quiet", "")), (Dropped::ALL.len(), 0));
        web.dropped(Dropped::ConnectFailed);
        assert_eq!((series("web", " 0"), series("connect_failed", " 1")), (Dropped::ALL.len() - 1, 1));
    }

    #[test]
    fn what_is_open_was_accepted_and_has_not_ended() {
        let metrics = Metrics::new().unwrap();
        metrics.tally("web", 0).accepted.add(3);
        metrics.tally("web", 1).accepted.add(2);
        metrics.tally("web", 1).ended.add(1);
        let text = written(metrics.tallies.collect());
        assert!(text.contains("plexus_connections_active{service=\"web\"} 4"), "{text}");
        assert!(text.contains("plexus_connections_total{service=\"web\"} 5"), "{text}");
    }
}
