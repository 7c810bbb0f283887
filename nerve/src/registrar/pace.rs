//! How fast a node writes to the store: a burst at once, then so many a second.
//!
//! A storm, most of a node's instances changing at once and again, is the store's worst moment, for it comes from many nodes
//! together. What waits is which records, not which states: each is written as it is when its turn comes, so the newest
//! state wins and none in between is written. Pure: it is told the time.

use std::time::Duration;

use tokio::time::Instant;

/// So many at once: a node that has just started is registered without a pause,
const BURST: u32 = 1024;
/// then one after each of these: 512 a second.
const EACH: Duration = Duration::from_micros(1_000_000 / 512);

/// The pace of one writer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// When all that was written would have been written, one after the other (the generic cell rate algorithm).
    owed: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { owed: None }
    }

    /// Takes a turn, or says when there is one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let owed = self.owed.map_or(now, |owed| owed.max(now));
        let ahead = owed.duration_since(now) + EACH;
        let burst = EACH * BURST;
        if ahead > burst {
            return Err(now + (ahead - burst));
        }
        self.owed = Some(owed + EACH);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_and_what_follows_is_spread() {
        let (mut pace, begun) = (Pace::new(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(pace.take(begun), Ok(()));
        }
        let next = pace.take(begun).unwrap_err();
        assert_eq!(next, begun + EACH);
        assert_eq!(pace.take(next), Ok(()));
        assert!(pace.take(next).is_err());
        // After some quiet all of it is there again.
        let later = next + EACH * BURST * 2;
        assert!((0..BURST).all(|_| pace.take(later).is_ok()) && pace.take(later).is_err());
    }

    proptest! {
        #[test]
        fn in_no_time_are_there_more_than_the_burst_and_what_the_time_allows(
            pauses in prop::collection::vec(0u64..2_000, 1..4000),
        ) {
            let (mut pace, mut now, mut taken) = (Pace::new(), Instant::now(), Vec::new());
            for pause in pauses {
                now += Duration::from_micros(pause);
                match pace.take(now) {
                    Ok(()) => taken.push(now),
                    Err(until) => prop_assert!(until > now && until - now <= EACH),
                }
            }
            for (index, from) in taken.iter().enumerate().step_by(50) {
                let span = now.duration_since(*from);
                let allowed = u128::from(BURST) + span.as_micros() / EACH.as_micros() + 1;
                prop_assert!(((taken.len() - index) as u128) <= allowed);
            }
        }
    }
}
