//! What the name server counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

/// Queries by outcome, and what became of forwarded ones.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) queries: IntCounterVec,
    pub(super) forwarded: IntCounterVec,
    pub(super) answer: Histogram,
    pub(super) unsent: IntCounter,
}

impl Metrics {
    /// Counters at zero, not registered yet.
    pub fn new() -> prometheus::Result<Self> {
        Ok(Self {
            queries: IntCounterVec::new(
                Opts::new("plexus_dns_queries_total", "Questions answered, by transport and response code."),
                &["transport", "code"],
            )?,
            forwarded: IntCounterVec::new(
                Opts::new("plexus_dns_forwarded_total", "Questions for other names, by what became of them."),
                &["result"],
            )?,
            answer: Histogram::with_opts(
                HistogramOpts::new("plexus_dns_answer_seconds", "Time to answer, upstream included.")
                    .buckets(vec![0.00001, 0.0001, 0.001, 0.01, 0.1, 1.0, 5.0]),
            )?,
            unsent: IntCounter::new("plexus_dns_unsent_total", "Answers that the socket did not take.")?,
        })
    }

    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.queries.clone()))?;
        registry.register(Box::new(self.forwarded.clone()))?;
        registry.register(Box::new(self.answer.clone()))?;
        registry.register(Box::new(self.unsent.clone()))
    }
}
