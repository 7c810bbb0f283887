//! Slow start: an endpoint that has just come gets a share that grows to its full one, so that its caches, pools and
//! compilers warm up before the load does.
//!
//! The tables of the policies are not rebuilt while it grows. A pick that falls on the endpoint is accepted as often as
//! the ramp has risen, and otherwise falls on another.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The whole share, in 2⁻¹⁶.
const FULL: u32 = 1 << 16;
/// The share at the beginning, as Envoy has it: 10 %. With nothing there would be no first connection.
const LEAST: u64 = FULL as u64 / 10;

/// How far one endpoint has come.
#[derive(Debug, Default)]
pub(super) struct Ramp {
    /// When it came, in milliseconds on our clock; 0: it has its full share.
    since: AtomicU64,
    /// What fell on it and was not accepted is saved up here, in 2⁻¹⁶ of a connection.
    credit: AtomicU32,
}

impl Ramp {
    pub(super) fn begin(&self, now: u64) {
        self.since.store(now, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// The share in 2⁻¹⁶: `max(10 %, age / length)`. One load when it is not ramping.
    pub(super) fn share(&self, now: u64, length: u64) -> u32 {
        let since = self.since.load(Ordering::Relaxed);
        if since == 0 {
            return FULL;
        }
        let age = now.saturating_sub(since);
        if age >= length {
            self.end();
            return FULL;
        }
        #[expect(clippy::cast_possible_truncation, reason = "age is less than length: it is less than FULL")]
        let share = (age * u64::from(FULL) / length).max(LEAST) as u32;
        share
    }

    /// Does it take a connection that falls on it? Evenly as often as its share says.
    pub(super) fn accepts(&self, now: u64, length: u64) -> bool {
        let share = self.share(now, length);
        if share == FULL {
            return true;
        }
        let before = self.credit.fetch_add(share, Ordering::Relaxed) % FULL;
        before + share >= FULL
    }

    /// The same for clients that are to stay with their endpoint: one that was accepted is accepted from then on.
    pub(super) fn accepts_client(&self, client: u64, now: u64, length: u64) -> bool {
        let share = self.share(now, length);
        share == FULL || u64::from(share) > (client >> 48)
    }

    /// The share in percent while it grows.
    pub(super) fn percent(&self, now: u64, length: u64) -> Option<u8> {
        let share = self.share(now, length);
        (share != FULL).then(|| u8::try_from(share * 100 / FULL).unwrap_or(100))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_accepts_as_often_as_it_has_risen() {
        let ramp = Ramp::default();
        assert!((0..100).all(|_| ramp.accepts(5, 1000)));
        ramp.begin(1);
        for (now, expected) in [(1, 100), (51, 100), (501, 500), (901, 900)] {
            let accepted = (0..1000).filter(|_| ramp.accepts(now, 1000)).count();
            assert!(accepted.abs_diff(expected) <= 2, "{accepted} of 1000 at {now}");
        }
        assert!((0..100).all(|_| ramp.accepts(1001, 1000)));
        assert_eq!(ramp.percent(1002, 1000), None);
    }

    proptest! {
        #[test]
        fn a_client_that_was_accepted_stays_accepted(client: u64, earlier in 0..1000u64, later in 0..1000u64) {
            let ramp = Ramp::default();
            ramp.begin(1);
            let (earlier, later) = (earlier.min(later), earlier.max(later));
            prop_assert!(!ramp.accepts_client(client, earlier, 1000) || ramp.accepts_client(client, later, 1000));
        }
    }
}
