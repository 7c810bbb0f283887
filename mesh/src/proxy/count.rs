//! Numbers that one thread writes and anyone reads: no locked instruction, no cache line that threads pass around.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::{IntCounterVec, Opts};

/// A number that one thread writes and anyone reads.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// For the thread that owns it.
    pub(super) fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Raises a counter to `total`.
pub(super) fn raise(counters: &IntCounterVec, labels: &[&str], total: u64) {
    let counter = counters.with_label_values(labels);
    counter.inc_by(total.saturating_sub(counter.get()));
}

pub(super) fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}
