//! What a client's connection must pass before it gets an endpoint: the service's own limits.
//!
//! Two atomic additions a connection, and one compare-and-swap where a rate is set. Only where connections are limited
//! by client address is there a table: sharded, each shard behind a lock that is held for one look-up, and no larger than
//! the number of open connections.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::hash;
use super::metrics::ServiceMetrics;
use super::refused::Refused;
use super::settings::Limits;

/// Shards of the table of clients: more than there are data-plane threads.
const SHARDS: usize = 64;

/// Counts what is open, and how fast.
#[derive(Debug)]
pub(super) struct Gate {
    metrics: Arc<ServiceMetrics>,
    open: AtomicU32,
    rate: Rate,
    clients: LazyLock<Box<[Shard]>>,
}

/// The open connections of some clients.
type Shard = Mutex<HashMap<IpAddr, u32>>;

/// A connection that was let in; given back on drop.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    /// Set where it counts for its client.
    client: Option<IpAddr>,
}

impl Gate {
    pub(super) fn new(metrics: Arc<ServiceMetrics>) -> Self {
        Self {
            metrics,
            open: AtomicU32::new(0),
            rate: Rate::new(),
            clients: LazyLock::new(|| (0..SHARDS).map(|_| Mutex::default()).collect()),
        }
    }

    /// Lets a connection in, or says which limit it is that does not.
    pub(super) fn admit(
        self: &Arc<Self>,
        client: IpAddr,
        limits: &Limits,
        now: Instant,
    ) -> Result<Permit, Refused> {
        // Counted even without a limit, so that one that is set later knows what is open.
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let mut permit = Permit { gate: Arc::clone(self), client: None };
        let refuse = |reason| {
            self.metrics.refused(reason);
            Err(reason)
        };
        if limits.service > 0 && before >= limits.service {
            return refuse(Refused::ServiceConnections);
        }
        if limits.client > 0 {
            if !self.count_client(client, limits.client) {
                return refuse(Refused::ClientConnections);
            }
            permit.client = Some(client);
        }
        // The last, so that what another limit refuses takes nothing of the rate.
        if limits.per_second > 0 && !self.rate.take(limits.per_second, limits.burst, now) {
            return refuse(Refused::ConnectionsPerSecond);
        }
        Ok(permit)
    }

    /// Connections that are open.
    pub(super) fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    fn count_client(&self, client: IpAddr, limit: u32) -> bool {
        let mut shard = self.shard(client);
        let open = shard.entry(client).or_insert(0);
        if *open >= limit {
            return false;
        }
        *open += 1;
        true
    }

    fn forget_client(&self, client: IpAddr) {
        if let Entry::Occupied(mut open) = self.shard(client).entry(client) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }

    fn shard(&self, client: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        let at = hash::shard(client, SHARDS);
        self.clients[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.open.fetch_sub(1, Ordering::Relaxed);
        self.client.into_iter().for_each(|client| self.gate.forget_client(client));
    }
}

/// A token bucket in one number: the generic cell rate algorithm (ITU-T I.371). Holds when the next connection would
/// be due if all came evenly; who comes earlier than that by more than the burst is refused.
#[derive(Debug)]
struct Rate {
    start: Instant,
    /// Nanoseconds since the start, and a second.
    due: AtomicU64,
}

impl Rate {
    fn new() -> Self {
        Self { start: Instant::now(), due: AtomicU64::new(0) }
    }

    fn take(&self, per_second: u32, burst: u32, now: Instant) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let elapsed = now.saturating_duration_since(self.start).as_nanos();
        let now = u64::try_from(elapsed).unwrap_or(u64::MAX / 2) + SECOND;
        let interval = SECOND / u64::from(per_second.max(1));
        let tolerance = interval * u64::from(burst.max(1) - 1);
        self.due
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| {
                (due <= now + tolerance).then_some(due.max(now) + interval)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::metrics::Metrics;
    use super::super::settings::Settings;
    use super::*;

    fn gate() -> Arc<Gate> {
        Arc::new(Gate::new(Arc::new(Metrics::new().unwrap().of_service("web"))))
    }

    fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
        let mut limits = Settings::default().limits;
        change(&mut limits);
        limits
    }

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn a_place_of_the_service_is_given_back() {
        let (gate, limits, now) = (gate(), limits(|limits| limits.service = 2), Instant::now());
        let permits: Vec<_> = (0..2).map(|_| gate.admit(ip(1), &limits, now).unwrap()).collect();
        assert_eq!(gate.admit(ip(2), &limits, now).unwrap_err(), Refused::ServiceConnections);
        assert_eq!(gate.open(), 2);
        drop(permits);
        assert!(gate.admit(ip(2), &limits, now).is_ok());
        assert_eq!(gate.open(), 0);
        assert_eq!(gate.metrics.refused_so_far(Refused::ServiceConnections), 1);
    }

    #[test]
    fn a_client_does_not_take_the_place_of_another_and_leaves_no_trace() {
        let (gate, limits, now) = (gate(), limits(|limits| limits.client = 1), Instant::now());
        let first = gate.admit(ip(1), &limits, now).unwrap();
        assert_eq!(gate.admit(ip(1), &limits, now).unwrap_err(), Refused::ClientConnections);
        let second = gate.admit(ip(2), &limits, now).unwrap();
        drop((first, second));
        assert!(gate.clients.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }

    #[test]
    fn a_limit_that_is_set_later_knows_what_is_open() {
        let (gate, now) = (gate(), Instant::now());
        let _open = gate.admit(ip(1), &limits(|_| {}), now).unwrap();
        let refused = gate.admit(ip(1), &limits(|limits| limits.service = 1), now).unwrap_err();
        assert_eq!(refused, Refused::ServiceConnections);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_get_through(per_second in 1..1000u32, burst in 1..50u32, steps in proptest::collection::vec(0..200u64, 1..300)) {
            let (rate, start) = (Rate::new(), Instant::now());
            let (mut now, mut taken) = (start, 0u32);
            for step in steps {
                now += Duration::from_millis(step);
                taken += u32::from(rate.take(per_second, burst, now));
                let allowed = f64::from(burst) + (now - start).as_secs_f64() * f64::from(per_second);
                prop_assert!(f64::from(taken) <= allowed + 1.0, "{taken} of {allowed}");
            }
        }

        #[test]
        fn who_keeps_the_pace_is_never_refused(per_second in 1..1000u32, count in 1..500u32) {
            let (rate, start) = (Rate::new(), Instant::now());
            let interval = Duration::from_nanos(1_000_000_000u64.div_ceil(per_second.into()));
            for n in 0..count {
                prop_assert!(rate.take(per_second, 1, start + interval * n));
            }
        }
    }
}
