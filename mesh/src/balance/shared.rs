//! What a balancer shares with its endpoints, leases, permits and tickets: they outlive an update, and may outlive it.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::clock;
use super::limits::Gate;
use super::metrics::ServiceMetrics;
use super::outlier::Census;
use super::queue::Queue;
use super::retry::Budget;
use super::settings::Settings;

/// Everything about a service that is not its endpoints.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: ArcSwap<Settings>,
    pub(super) metrics: Arc<ServiceMetrics>,
    pub(super) queue: Arc<Queue>,
    pub(super) gate: Arc<Gate>,
    pub(super) census: Census,
    pub(super) budget: Budget,
}

impl Shared {
    pub(super) fn new(metrics: ServiceMetrics) -> Self {
        let metrics = Arc::new(metrics);
        Self {
            settings: ArcSwap::from_pointee(Settings::default()),
            queue: Arc::new(Queue::new(Arc::clone(&metrics))),
            gate: Arc::new(Gate::new(Arc::clone(&metrics))),
            metrics,
            census: Census::default(),
            budget: Budget::default(),
        }
    }

    /// Now, on our clock.
    pub(super) fn now() -> u64 {
        clock::millis(Instant::now())
    }
}
