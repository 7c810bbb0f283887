//! Which of many are looked at: one in so many by chance, so that no rhythm of the clients decides; all of them while there are few.

use std::time::{Duration, Instant};

use rand::RngExt;

/// So many are looked at in a second, about, and as long as there are no more, all.
const A_SECOND: u64 = 1000;
/// How often it is seen how many there are.
const LOOK: Duration = Duration::from_millis(100);

/// One in so many.
#[derive(Debug)]
pub(super) struct Skip {
    every: u32,
    left: u32,
}

impl Skip {
    /// `every` is at least 1.
    pub(super) fn new(every: u32) -> Self {
        let mut skip = Self { every, left: 0 };
        skip.draw();
        skip
    }

    /// From 1 to twice as many less one: so many on average.
    fn draw(&mut self) {
        self.left =
            if self.every > 1 { rand::rng().random_range(1..=self.every.saturating_mul(2) - 1) } else { 1 };
    }

    /// Is it this one?
    pub(super) fn hits(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        let hits = self.left == 0;
        if hits {
            self.draw();
        }
        hits
    }
}

/// All of few, and some of many.
#[derive(Debug)]
pub(super) struct Sampled {
    skip: Skip,
    begun: Instant,
    count: u64,
}

impl Sampled {
    pub(super) fn new(now: Instant) -> Self {
        Self { skip: Skip::new(1), begun: now, count: 0 }
    }

    /// So many come now.
    pub(super) fn expect(&mut self, count: usize, now: Instant) {
        self.count += count as u64;
        let age = now.saturating_duration_since(self.begun);
        if age >= LOOK {
            let a_second = self.count as f64 / age.as_secs_f64();
            let every = (a_second / A_SECOND as f64).ceil();
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and a million"
            )]
            let every = every.clamp(1.0, 1e6) as u32;
            if every != self.skip.every {
                self.skip = Skip::new(every);
            }
            (self.begun, self.count) = (now, 0);
        }
    }

    /// For how many the next one stands; `None`: it is passed over.
    pub(super) fn take(&mut self) -> Option<u64> {
        self.skip.hits().then_some(self.skip.every.into())
    }
}

/// So many a second and no more.
#[derive(Debug)]
pub(super) struct Bounded {
    most: u32,
    begun: Instant,
    taken: u32,
}

impl Bounded {
    pub(super) fn new(most: u32, now: Instant) -> Self {
        Self { most, begun: now, taken: 0 }
    }

    /// Is there room for one more?
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.begun) >= Duration::from_secs(1) {
            (self.begun, self.taken) = (now, 0);
        }
        let is_room = self.taken < self.most;
        self.taken += u32::from(is_room);
        is_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_is_looked_at_on_average() {
        for every in [1, 2, 10, 1000] {
            let (mut skip, rounds) = (Skip::new(every), every * 2000);
            let hits = (0..rounds).filter(|_| skip.hits()).count();
            assert!((1800..=2200).contains(&hits), "{hits} of {rounds}, one in {every}");
        }
    }
}
