//! The retry budget: attempts at other endpoints are a share of the connections, so that a failure of many endpoints is
//! not multiplied into a storm on the rest. As in Finagle: a share of what came in the last seconds, and a floor for
//! services with little traffic.
//!
//! Only a retry looks at the windows; a connection that needs none costs the counter that is there anyway.

use std::sync::atomic::{AtomicU64, Ordering};

/// Length of a window in milliseconds. What counts is this one and, in proportion, the one before.
const WINDOW: u64 = 10_000;

/// Two windows.
#[derive(Debug, Default)]
pub(super) struct Budget {
    began: AtomicU64,
    /// The connections so far when this window and the one before it began.
    connections_at: AtomicU64,
    connections_before: AtomicU64,
    retries: AtomicU64,
    retries_before: AtomicU64,
}

impl Budget {
    /// May there be one more retry? `connections` are all so far; `percent` of those of the last ten seconds and `floor`
    /// a second are allowed.
    pub(super) fn take(&self, connections: u64, percent: u32, floor: u32, now: u64) -> bool {
        self.turn(connections, now);
        let passed = now.saturating_sub(self.began.load(Ordering::Acquire)).min(WINDOW);
        let left = WINDOW - passed;
        let at = self.connections_at.load(Ordering::Relaxed);
        let recent = connections.saturating_sub(at);
        let before = at.saturating_sub(self.connections_before.load(Ordering::Relaxed));
        let connections = recent + before * left / WINDOW;
        let allowed = connections * u64::from(percent) / 100 + u64::from(floor) * WINDOW / 1000;
        let used_before = self.retries_before.load(Ordering::Relaxed) * left / WINDOW;
        self.retries
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                (used + used_before < allowed).then_some(used + 1)
            })
            .is_ok()
    }

    /// Begins a new window where the old one is over. Whoever wins the swap does it; others may see half of it, which
    /// errs by a window's retries once.
    fn turn(&self, connections: u64, now: u64) {
        let began = self.began.load(Ordering::Acquire);
        let passed = now.saturating_sub(began);
        if began != 0 && passed < WINDOW {
            return;
        }
        if self.began.compare_exchange(began, now, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        let at = self.connections_at.swap(connections, Ordering::Relaxed);
        let used = self.retries.swap(0, Ordering::Relaxed);
        let adjacent = began != 0 && passed < 2 * WINDOW;
        self.connections_before.store(if adjacent { at } else { connections }, Ordering::Relaxed);
        self.retries_before.store(if adjacent { used } else { 0 }, Ordering::Relaxed);
        if began == 0 {
            self.connections_at.store(0, Ordering::Relaxed);
            self.connections_before.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_storm_ends_at_the_share_and_the_floor() {
        let budget = Budget::default();
        let allowed = (0..10_000).filter(|_| budget.take(1000, 20, 10, 1000)).count();
        assert_eq!(allowed, 200 + 100);
    }

    #[test]
    fn it_recovers_with_time() {
        let budget = Budget::default();
        while budget.take(0, 20, 10, 1) {}
        assert!(!budget.take(0, 20, 10, 9_999));
        assert!(budget.take(0, 20, 10, 30_000));
    }

    #[test]
    fn nothing_allowed_is_nothing() {
        assert!(!Budget::default().take(1000, 0, 0, 1));
    }

    proptest! {
        #[test]
        fn over_any_time_retries_stay_in_proportion(steps in proptest::collection::vec((0..2000u64, 0..50u64, 0..50u64), 1..200)) {
            let budget = Budget::default();
            let (mut now, mut connections, mut retries) = (1u64, 0u64, 0u64);
            for (passes, new, wanted) in steps {
                now += passes;
                connections += new;
                retries += (0..wanted).filter(|_| budget.take(connections, 20, 10, now)).count() as u64;
                // Each window allows its share and floor; the estimate of the one before doubles it at worst.
                let windows = now / WINDOW + 1;
                prop_assert!(retries <= 2 * (connections / 5 + 1) + 100 * windows + 100, "{retries} for {connections} in {now}");
            }
        }
    }
}
