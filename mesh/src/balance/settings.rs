//! A service's settings as the balancer uses them: every default filled in, every number ready.

use std::sync::Arc;
use std::time::Duration;

use nerve::model::{AtLimit, Count, HashOn, Locality, Policy, ServiceSettings, Split};
use nerve::model::{LimitSettings, OutlierSettings};

use super::clock::whole_millis;

/// What holds for a service now.
#[derive(Debug, Clone)]
pub struct Settings {
    /// As they stand in the store: for what else a connection needs to know of its service.
    pub service: Arc<ServiceSettings>,
    pub(super) policy: Policy,
    pub(super) hash_with_port: bool,
    /// Milliseconds; 0: off.
    pub(super) affinity: u64,
    /// Milliseconds; 0: off.
    pub(super) slow_start: u64,
    pub(super) panic_threshold: u32,
    /// 0: all.
    pub(super) subset: usize,
    pub(super) locality: Locality,
    pub(super) split: Option<Split>,
    pub(super) close_idle_on_death: bool,
    /// Milliseconds; `None`: until they end.
    pub(super) drain: Option<u64>,
    pub(super) outlier: Outlier,
    pub(super) retry_percent: u32,
    pub(super) retry_floor: u32,
    pub(super) limits: Limits,
    pub(super) patience: Patience,
}

/// What a service says of times that else are the node's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Patience {
    /// For one attempt at one endpoint.
    pub connect: Option<Duration>,
    /// A connection on which nothing moves for so long is ended.
    pub idle: Option<Duration>,
}

/// When an endpoint is ejected, and for how long. Times are in milliseconds, and 0 is never.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outlier {
    pub(super) failures: u32,
    pub(super) resets: u32,
    pub(super) latency_factor: u32,
    pub(super) ejection: u64,
    pub(super) max_ejection: u64,
    pub(super) max_ejected_percent: u32,
}

/// The limits of this node; 0 is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) endpoint: u32,
    pub(super) service: u32,
    pub(super) client: u32,
    pub(super) per_second: u32,
    pub(super) burst: u32,
    pub(super) queue: usize,
    pub(super) queue_timeout: Duration,
    pub(super) at_limit: AtLimit,
}

impl Settings {
    pub(super) fn new(service: &Arc<ServiceSettings>) -> Self {
        let effective = service.effective();
        let balance = &effective.balance;
        Self {
            service: Arc::clone(service),
            policy: balance.policy.unwrap_or_default(),
            hash_with_port: balance.hash_on == Some(HashOn::SourceAddressAndPort),
            affinity: balance.affinity.map_or(0, |period| whole_millis(period.get())),
            slow_start: balance.slow_start.map_or(0, |period| whole_millis(period.get())),
            panic_threshold: balance.panic_threshold.map_or(0, |percent| percent.get().into()),
            subset: count(balance.subset) as usize,
            locality: balance.locality.unwrap_or_default(),
            split: balance.split.clone(),
            close_idle_on_death: balance.close_idle_on_death.unwrap_or(true),
            drain: balance.drain.map(|period| whole_millis(period.get())),
            outlier: Outlier::new(&balance.outlier),
            retry_percent: balance.retry.budget.map_or(0, |percent| percent.get().into()),
            retry_floor: count(balance.retry.min_per_second),
            limits: Limits::new(&effective.limits),
            patience: Patience {
                connect: effective.timeouts.connect.map(|period| period.get()),
                idle: effective.timeouts.idle.map(|period| period.get()),
            },
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(&Arc::default())
    }
}

impl Outlier {
    fn new(settings: &OutlierSettings) -> Self {
        Self {
            failures: count(settings.consecutive_failures),
            resets: count(settings.resets),
            latency_factor: settings.latency_factor.map_or(0, |factor| factor.get().into()),
            ejection: settings.ejection.map_or(0, |period| whole_millis(period.get())),
            max_ejection: settings.max_ejection.map_or(0, |period| whole_millis(period.get())),
            max_ejected_percent: settings.max_ejected_percent.map_or(0, |percent| percent.get().into()),
        }
    }
}

impl Limits {
    fn new(settings: &LimitSettings) -> Self {
        let per_second = count(settings.connections_per_second);
        Self {
            endpoint: count(settings.endpoint_connections),
            service: count(settings.service_connections),
            client: count(settings.client_connections),
            per_second,
            burst: settings.burst.map_or(per_second, Count::get).max(1),
            queue: count(settings.queue) as usize,
            queue_timeout: settings.queue_timeout.map_or(Duration::ZERO, |period| period.get()),
            at_limit: settings.at_limit.unwrap_or_default(),
        }
    }
}

fn count(count: Option<Count>) -> u32 {
    count.map_or(0, Count::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_has_the_documented_default() {
        let Settings { policy, panic_threshold, outlier, limits, retry_percent, close_idle_on_death, .. } =
            Settings::default();
        assert_eq!((policy, panic_threshold, retry_percent), (Policy::RoundRobin, 1, 20));
        assert!(close_idle_on_death);
        assert_eq!((outlier.failures, outlier.ejection, outlier.max_ejection), (1, 1000, 10_000));
        assert_eq!((limits.endpoint, limits.queue, limits.queue_timeout), (0, 1024, Duration::from_secs(5)));
    }
}
