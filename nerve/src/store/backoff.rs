//! Pauses between attempts to reach a store or another place, and the numbers that spread a fleet.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Growing pauses between reconnections, each of a random length so that a fleet does not come back in step.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(20);
    /// The longest one, unless another is named.
    pub const LONGEST: Duration = Duration::from_secs(1);

    /// The first pause is the shortest.
    #[must_use]
    pub fn new() -> Self {
        Self::between(Self::FIRST, Self::LONGEST)
    }

    /// Another first pause, and another longest one.
    #[must_use]
    pub fn between(first: Duration, longest: Duration) -> Self {
        Self { next: first.min(longest), longest }
    }

    /// The next pause: between half and all of a length that doubles up to the longest.
    #[allow(clippy::should_implement_trait, reason = "it has no end, and nobody iterates over it")]
    pub fn next(&mut self) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.longest);
        full / 2 + random_part(full / 2)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

/// A random part of a length, so that a fleet does not do in step what each does for itself.
#[must_use]
pub fn random_part(length: Duration) -> Duration {
    length / 1024 * u32::try_from(random() % 1024).unwrap_or(0)
}

/// Good enough to spread load and to tell clients apart; each `RandomState` is seeded anew by the standard library.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_no_further() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= Backoff::FIRST);
        assert!(pauses.iter().all(|pause| *pause <= Backoff::LONGEST && !pause.is_zero()));
        assert!(pauses[19] >= Backoff::LONGEST / 2);
        let mut other = Backoff::between(Duration::from_secs(9), Duration::from_secs(4));
        assert!(other.next() <= Duration::from_secs(4) && other.next() >= Duration::from_secs(2));
    }
}
