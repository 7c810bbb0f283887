//! What the checks count.

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::host::Lack;
use crate::model::Health;

/// Counters of the checks. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) probes: IntCounterVec,
    pub(super) latency: HistogramVec,
    pub(super) instances: IntGaugeVec,
    pub(super) slot_waits: IntCounter,
    pub(super) host_faults: IntCounterVec,
    pub(super) held: IntCounter,
}

#[allow(clippy::expect_used, reason = "the names and labels are constants; a wrong one fails every test")]
impl Default for Metrics {
    fn default() -> Self {
        let vec = |name, help, labels| IntCounterVec::new(Opts::new(name, help), labels).expect("constant");
        let buckets =
            vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let latency =
            HistogramOpts::new("plexus_check_latency_seconds", "How long probes took").buckets(buckets);
        let instances = Opts::new("plexus_check_instances", "Local instances by health");
        let held = "Times that an instance was held down because it came and went";
        let waits = "Probes that waited because the limit of concurrent probes was reached";
        let metrics = Self {
            probes: vec("plexus_check_probes_total", "Probes by kind and result", &["kind", "result"]),
            latency: HistogramVec::new(latency, &["kind"]).expect("constant"),
            instances: IntGaugeVec::new(instances, &["health"]).expect("constant"),
            slot_waits: IntCounter::new("plexus_check_slot_waits_total", waits).expect("constant"),
            host_faults: vec(
                "plexus_check_host_faults_total",
                "Probes that say nothing of their target, since this host lacked something for them",
                &["lacks"],
            ),
            held: IntCounter::new("plexus_check_flapping_total", held).expect("constant"),
        };
        for health in [Health::Passing, Health::Warning, Health::Starting, Health::Critical] {
            metrics.instances_of(health).set(0);
        }
        for lack in Lack::ALL {
            metrics.host_faults.with_label_values(&[lack.as_str()]).inc_by(0);
        }
        metrics
    }
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// One of the names is taken.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.probes.clone()))?;
        registry.register(Box::new(self.latency.clone()))?;
        registry.register(Box::new(self.instances.clone()))?;
        registry.register(Box::new(self.slot_waits.clone()))?;
        registry.register(Box::new(self.host_faults.clone()))?;
        registry.register(Box::new(self.held.clone()))
    }

    pub(super) fn instances_of(&self, health: Health) -> prometheus::IntGauge {
        self.instances.with_label_values(&[health.to_string().as_str()])
    }
}
