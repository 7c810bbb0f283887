//! Pauses between attempts to reach a store or another place, and the numbers that spread a fleet.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Growing pauses between reconnections, each of a random length so that a fleet does not come back in step.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(20);
    /// The longest one.
    pub const LONGEST: Duration = Duration::from_secs(1);

    /// The first pause is the shortest.
    #[must_use]
    pub fn new() -> Self {
        Self(Self::FIRST)
    }

    /// The next pause: between half and all of a length that doubles up to a second.
    #[allow(clippy::should_implement_trait, reason = "it has no end, and nobody iterates over it")]
    pub fn next(&mut self) -> Duration {
        let full = self.0;
        self.0 = (full * 2).min(Self::LONGEST);
        let random = u32::try_from(random() % 1024).unwrap_or(0);
        full / 2 + full / 2 * random / 1024
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
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
    }
}
