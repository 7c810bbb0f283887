//! What the registrar counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::{check, source};

/// Counters of the registrar and of what it drives. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Those of the checks.
    pub checks: check::Metrics,
    /// Those of the sources.
    pub sources: source::Metrics,
    pub(super) registered: IntGauge,
    pub(super) pending: IntGauge,
    pub(super) writes: IntCounterVec,
    pub(super) repairs: IntCounter,
    pub(super) paced: IntCounter,
    pub(super) sessions_lost: IntCounter,
    pub(super) refused: IntGaugeVec,
}

#[allow(clippy::expect_used, reason = "the names and labels are constants; a wrong one fails every test")]
impl Default for Metrics {
    fn default() -> Self {
        let gauge = |name, help| IntGauge::new(name, help).expect("constant");
        let counter = |name, help| IntCounter::new(name, help).expect("constant");
        let writes = Opts::new("plexus_registrar_writes_total", "Records brought to the store, by result");
        let refused = Opts::new("plexus_registrar_refused", "Records that are not written, by reason");
        let metrics = Self {
            checks: check::Metrics::default(),
            sources: source::Metrics::default(),
            registered: gauge(
                "plexus_registrar_registered_instances",
                "Local instances that the store has confirmed",
            ),
            pending: gauge(
                "plexus_registrar_pending_writes",
                "Records whose newest state is not in the store yet",
            ),
            writes: IntCounterVec::new(writes, &["result"]).expect("constant"),
            repairs: counter(
                "plexus_registrar_repairs_total",
                "Records found deleted or altered by someone else and written again",
            ),
            paced: counter(
                "plexus_registrar_paced_total",
                "Times that writing waited so as not to storm the store",
            ),
            sessions_lost: counter(
                "plexus_registrar_session_losses_total",
                "Sessions lost; everything is registered anew after each",
            ),
            refused: IntGaugeVec::new(refused, &["reason"]).expect("constant"),
        };
        for reason in ["duplicate_node", "duplicate_instance"] {
            metrics.refused.with_label_values(&[reason]).set(0);
        }
        metrics
    }
}

impl Metrics {
    /// Registers every metric, those of the checks and sources included.
    ///
    /// # Errors
    /// One of the names is taken.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        self.checks.register(registry)?;
        self.sources.register(registry)?;
        registry.register(Box::new(self.registered.clone()))?;
        registry.register(Box::new(self.pending.clone()))?;
        registry.register(Box::new(self.writes.clone()))?;
        registry.register(Box::new(self.repairs.clone()))?;
        registry.register(Box::new(self.paced.clone()))?;
        registry.register(Box::new(self.sessions_lost.clone()))?;
        registry.register(Box::new(self.refused.clone()))
    }
}
