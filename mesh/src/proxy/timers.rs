//! Deadlines of a thread's connections: a hashed timing wheel (Varghese and Lauck, 1987).
//!
//! Setting one costs the same however many there are, and none is ever cancelled: whoever is woken looks whether its
//! deadline still stands. Coarse on purpose: the timers here bound waits of tens of milliseconds to days.

use std::time::{Duration, Instant};

use super::arena::Key;

/// How late a timer may be.
const TICK: Duration = Duration::from_millis(8);
/// A deadline further away than the wheel goes around waits for its round in its slot.
const SLOTS: usize = 1024;

#[derive(Debug)]
pub(super) struct Timers {
    began: Instant,
    /// The tick up to which everything has been woken.
    done: u64,
    slots: Box<[Vec<(u64, Key)>]>,
    set: usize,
}

impl Timers {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, done: 0, slots: vec![Vec::new(); SLOTS].into_boxed_slice(), set: 0 }
    }

    /// The tick that begins at `at` or after it.
    fn tick(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began).as_millis();
        u64::try_from(since / TICK.as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// Wakes `key` at `at` or a little later.
    pub(super) fn set(&mut self, at: Instant, key: Key) {
        let tick = self.tick(at).max(self.done + 1);
        self.slots[slot(tick)].push((tick, key));
        self.set += 1;
    }

    /// Those whose time has come, each once.
    pub(super) fn expired(&mut self, now: Instant, woken: &mut Vec<Key>) {
        let until = self.tick(now) - 1;
        if self.set == 0 || until - self.done > SLOTS as u64 {
            // Nothing to find on the way, or every slot is passed at least once.
            if self.set > 0 {
                (0..SLOTS).for_each(|slot| self.wake(slot, until, woken));
            }
            self.done = self.done.max(until);
            return;
        }
        while self.done < until {
            self.done += 1;
            self.wake(slot(self.done), self.done, woken);
        }
    }

    fn wake(&mut self, slot: usize, until: u64, woken: &mut Vec<Key>) {
        let entries = &mut self.slots[slot];
        let mut at = 0;
        while at < entries.len() {
            if entries[at].0 <= until {
                woken.push(entries.swap_remove(at).1);
                self.set -= 1;
            } else {
                at += 1;
            }
        }
    }

    /// How long nobody has to be woken; `None`: nobody is waiting.
    pub(super) fn next(&self, now: Instant) -> Option<Duration> {
        if self.set == 0 {
            return None;
        }
        let ahead = (1..=SLOTS as u64).find(|ahead| !self.slots[slot(self.done + ahead)].is_empty())?;
        let ticks = u32::try_from(self.done + ahead).unwrap_or(u32::MAX);
        Some((self.began + TICK * ticks).saturating_duration_since(now))
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the remainder is less than the number of slots")]
fn slot(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proxy::arena::Arena;

    proptest! {
        #[test]
        fn each_is_woken_once_and_not_before_its_time(
            delays in proptest::collection::vec(0..40_000_u64, 1..60),
            steps in proptest::collection::vec(1..12_000_u64, 1..60),
        ) {
            let start = Instant::now();
            let (mut timers, mut arena) = (Timers::new(start), Arena::default());
            for delay in &delays {
                let key = arena.insert(*delay).unwrap();
                timers.set(start + Duration::from_millis(*delay), key);
            }
            let (mut elapsed, mut woken) = (0, Vec::new());
            for step in steps {
                elapsed += step;
                timers.expired(start + Duration::from_millis(elapsed), &mut woken);
                for key in woken.drain(..) {
                    let delay = arena.remove(key);
                    prop_assert!(delay.is_some_and(|delay| delay <= elapsed), "{delay:?} at {elapsed}");
                }
                let late = arena.iter().filter(|(_, delay)| **delay + 2 * 8 < elapsed).count();
                prop_assert_eq!(late, 0, "someone sleeps at {}", elapsed);
            }
        }

        #[test]
        fn nobody_oversleeps_who_waits_for_the_next_one(delays in proptest::collection::vec(0..30_000_u64, 1..20)) {
            let start = Instant::now();
            let (mut timers, mut arena) = (Timers::new(start), Arena::default());
            for delay in &delays {
                timers.set(start + Duration::from_millis(*delay), arena.insert(*delay).unwrap());
            }
            let (mut now, mut woken) = (start, Vec::new());
            while let Some(wait) = timers.next(now) {
                now += wait.max(Duration::from_millis(1));
                timers.expired(now, &mut woken);
                for key in woken.drain(..) {
                    let late = now - start - Duration::from_millis(arena.remove(key).unwrap());
                    prop_assert!(late <= 2 * TICK, "{late:?}");
                }
            }
            prop_assert_eq!(arena.len(), 0);
        }
    }
}
