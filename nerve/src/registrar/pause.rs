//! How long to wait before trying again: longer each time, and never all agents at the same moment.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// The pause after the first failure.
const FIRST: Duration = Duration::from_millis(100);
/// No pause is longer: the store may be back, and the fleet waits for what runs here.
const LONGEST: Duration = Duration::from_secs(1);

/// Pauses that double with each failure in a row, each shortened by up to half at random.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: FIRST }
    }

    /// It worked: the next failure starts over.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// The pause to make now.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(LONGEST);
        shortened(pause, 50)
    }
}

/// `duration`, shortened by up to `percent` of it at random.
pub(super) fn shortened(duration: Duration, percent: u32) -> Duration {
    // The standard library seeds its hash tables at random; that is all the chance that is needed here.
    let chance = u32::try_from(RandomState::new().build_hasher().finish() % 1024).unwrap_or(0);
    duration - duration * chance / 1024 * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_are_spread() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..50).map(|_| backoff.pause()).collect();
        assert!(pauses.iter().all(|pause| *pause >= FIRST / 2 && *pause <= LONGEST), "{pauses:?}");
        assert!(pauses[10..].iter().all(|pause| *pause >= LONGEST / 2));
        assert!(pauses[10..].windows(2).any(|pair| pair[0] != pair[1]));
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }
}
