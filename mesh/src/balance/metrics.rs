//! What the balancers count, by service. A series appears when there is something to tell: ten thousand services that are
//! well do not make a hundred thousand zeros.

use std::sync::OnceLock;

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::outlier::Ejection;
use super::refused::Refused;

/// Everything that the balancers count. Clones share it.
#[derive(Debug, Clone)]
pub struct Metrics {
    picks: IntCounterVec,
    refused: IntCounterVec,
    ejections: IntCounterVec,
    ejections_prevented: IntCounterVec,
    ejected: IntGaugeVec,
    queue: IntGaugeVec,
    queued: IntCounterVec,
    spilled: IntCounterVec,
    panic: IntGaugeVec,
    affinity_evictions: IntCounterVec,
}

/// The counters of one service.
#[derive(Debug)]
pub(super) struct ServiceMetrics {
    all: Metrics,
    service: String,
    /// Endpoints picked for new connections; the retry budget reads it too.
    pub(super) picks: IntCounter,
    refused: [OnceLock<IntCounter>; Refused::ALL.len()],
    ejected: OnceLock<IntGauge>,
    queue: OnceLock<IntGauge>,
    queued: OnceLock<IntCounter>,
    spilled: OnceLock<IntCounter>,
    affinity_evictions: OnceLock<IntCounter>,
}

impl Metrics {
    /// Nothing counted, not registered yet.
    pub fn new() -> prometheus::Result<Self> {
        let counters =
            |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let gauges = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["service"]);
        Ok(Self {
            picks: counters(
                "plexus_balance_picks_total",
                "Endpoints picked for new connections, without retries.",
                &["service"],
            )?,
            refused: counters(
                "plexus_balance_refused_total",
                "Connections and retries refused by a limit, by reason.",
                &["service", "reason"],
            )?,
            ejections: counters(
                "plexus_balance_ejections_total",
                "Endpoints ejected for what was seen of them, by reason.",
                &["service", "reason"],
            )?,
            ejections_prevented: counters(
                "plexus_balance_ejections_prevented_total",
                "Ejections that did not happen because the largest share was ejected already.",
                &["service"],
            )?,
            ejected: gauges("plexus_balance_ejected", "Endpoints that are ejected now.")?,
            queue: gauges("plexus_balance_queue_length", "Connections that wait for a place.")?,
            queued: counters(
                "plexus_balance_queued_total",
                "Connections that had to wait for a place.",
                &["service"],
            )?,
            spilled: counters(
                "plexus_balance_spilled_total",
                "Connections sent outside of their zone, subset or split group because that was full.",
                &["service"],
            )?,
            panic: gauges(
                "plexus_balance_panic",
                "1 while all endpoints are balanced over, the unwell too.",
            )?,
            affinity_evictions: counters(
                "plexus_balance_affinity_evictions_total",
                "Clients forgotten before their time because the affinity table was full.",
                &["service"],
            )?,
        })
    }

    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let all: [Box<dyn Collector>; 10] = [
            Box::new(self.picks.clone()),
            Box::new(self.refused.clone()),
            Box::new(self.ejections.clone()),
            Box::new(self.ejections_prevented.clone()),
            Box::new(self.ejected.clone()),
            Box::new(self.queue.clone()),
            Box::new(self.queued.clone()),
            Box::new(self.spilled.clone()),
            Box::new(self.panic.clone()),
            Box::new(self.affinity_evictions.clone()),
        ];
        all.into_iter().try_for_each(|collector| registry.register(collector))
    }

    pub(super) fn of_service(&self, service: &str) -> ServiceMetrics {
        ServiceMetrics {
            all: self.clone(),
            service: service.to_owned(),
            picks: self.picks.with_label_values(&[service]),
            refused: [const { OnceLock::new() }; Refused::ALL.len()],
            ejected: OnceLock::new(),
            queue: OnceLock::new(),
            queued: OnceLock::new(),
            spilled: OnceLock::new(),
            affinity_evictions: OnceLock::new(),
        }
    }
}

impl ServiceMetrics {
    pub(super) fn refused(&self, reason: Refused) {
        self.refused[reason as usize]
            .get_or_init(|| self.all.refused.with_label_values(&[self.service.as_str(), reason.as_str()]))
            .inc();
    }

    #[cfg(test)]
    pub(super) fn refused_so_far(&self, reason: Refused) -> u64 {
        self.refused[reason as usize].get().map_or(0, IntCounter::get)
    }

    pub(super) fn ejection(&self, reason: Ejection) {
        self.all.ejections.with_label_values(&[self.service.as_str(), reason.as_str()]).inc();
    }

    pub(super) fn ejection_prevented(&self) {
        self.all.ejections_prevented.with_label_values(&[self.service.as_str()]).inc();
    }

    /// Moves the gauge of a service, to which each of its balancers adds its own, from what one `shown` to `now`.
    pub(super) fn note_ejected(&self, shown: &mut u32, now: u32) {
        if *shown != now {
            let gauge =
                self.ejected.get_or_init(|| self.all.ejected.with_label_values(&[self.service.as_str()]));
            gauge.add(i64::from(now) - i64::from(*shown));
            *shown = now;
        }
    }

    pub(super) fn queue(&self) -> &IntGauge {
        self.queue.get_or_init(|| self.all.queue.with_label_values(&[self.service.as_str()]))
    }

    pub(super) fn queued(&self) {
        self.queued.get_or_init(|| self.all.queued.with_label_values(&[self.service.as_str()])).inc();
    }

    pub(super) fn spilled(&self) {
        self.spilled.get_or_init(|| self.all.spilled.with_label_values(&[self.service.as_str()])).inc();
    }

    pub(super) fn affinity_evicted(&self) {
        self.affinity_evictions
            .get_or_init(|| self.all.affinity_evictions.with_label_values(&[self.service.as_str()]))
            .inc();
    }

    /// Several balancers of a service may be in panic at a time: each adds itself.
    pub(super) fn panic(&self, by: i64) {
        self.all.panic.with_label_values(&[self.service.as_str()]).add(by);
    }
}
