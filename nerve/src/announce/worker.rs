//! What the writers of every kind of registry have in common: what they are told, and what they tell.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::Metrics;
use crate::source::{Announcement, InstanceKey};

/// What is to stand.
pub(super) type Desired = BTreeMap<InstanceKey, Arc<Announcement>>;

/// What a writer is told; the newest counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Orders {
    pub(super) desired: Arc<Desired>,
    /// Another agent announces the same from now on: end, and leave to it what it has.
    pub(super) handed_over: bool,
}

/// Waits until something is to stand; `false`: nothing ever will again.
pub(super) async fn is_wanted(orders: &mut watch::Receiver<Orders>) -> bool {
    let anything = |orders: &Orders| orders.handed_over || !orders.desired.is_empty();
    orders.wait_for(anything).await.is_ok_and(|orders| !orders.handed_over)
}

/// What a writer tells.
#[derive(Debug)]
pub(super) struct Shared {
    /// Where it writes, in words.
    place: String,
    metrics: Metrics,
    problem: Mutex<Option<String>>,
    /// How many stand there.
    pub(super) standing: watch::Sender<usize>,
}

impl Shared {
    pub(super) fn new(place: String, metrics: Metrics) -> Self {
        Self { place, metrics, problem: Mutex::default(), standing: watch::Sender::new(0) }
    }

    /// Where it writes, in words.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Why not everything stands that is to.
    pub(super) fn problem(&self) -> Option<String> {
        self.lock().clone()
    }

    pub(super) fn fails(&self, reason: &str) {
        self.metrics.failures.inc();
        let before = self.lock().replace(reason.to_owned());
        if before.is_none() {
            tracing::warn!(registry = self.place, reason, "instances cannot be announced; it is tried again");
        }
    }

    pub(super) fn stands(&self) {
        if self.lock().take().is_some() {
            tracing::info!(registry = self.place, "all instances are announced again");
        }
    }

    pub(super) fn changed(&self, how: &str) {
        self.metrics.changes.with_label_values(&[how]).inc();
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing panics while it is held.
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
