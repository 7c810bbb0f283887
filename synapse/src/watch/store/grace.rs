//! What the store lists no more and is kept for a while (pure: the caller says what time it is).
//!
//! The grace counts only while the store is within reach: nobody can register again with a store that is not there. So
//! nothing is dropped during an outage, and a store that comes and goes keeps nothing alive for longer than the grace
//! in all.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use nerve::store::Key;
use tokio::time::Instant;

/// The doomed, and until when a delete is doubted. Times are counted in time with the store within reach.
#[derive(Debug)]
pub(super) struct Grace {
    length: Duration,
    /// What was counted up to the last pause.
    counted: Duration,
    /// Since when it counts again; `None` while the store is out of reach.
    counting_since: Option<Instant>,
    doubt_until: Duration,
    deadlines: HashMap<Key, Duration>,
    order: BTreeSet<(Duration, Key)>,
}

impl Grace {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            counted: Duration::ZERO,
            counting_since: None,
            doubt_until: Duration::ZERO,
            deadlines: HashMap::new(),
            order: BTreeSet::new(),
        }
    }

    fn clock(&self, now: Instant) -> Duration {
        self.counted
            + self.counting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The store is out of reach.
    pub(super) fn pause(&mut self, now: Instant) {
        self.counted = self.clock(now);
        self.counting_since = None;
    }

    /// The store is within reach.
    pub(super) fn resume(&mut self, now: Instant) {
        self.counting_since.get_or_insert(now);
    }

    /// From now on, for the length of the grace, a delete may be the store's fault.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.doubt_for(now, self.length);
    }

    /// As [`Grace::doubt`], for what is left of a doubt that began in an earlier life.
    pub(super) fn doubt_for(&mut self, now: Instant, left: Duration) {
        self.doubt_until = self.clock(now) + left.min(self.length);
    }

    /// May a delete be the store's fault?
    pub(super) fn doubts(&self, now: Instant) -> bool {
        self.clock(now) < self.doubt_until
    }

    /// Keeps `key` until the doubt ends, or for a whole grace where there is none. What is doomed already is not given
    /// more time.
    pub(super) fn doom(&mut self, key: Key, now: Instant) {
        let deadline = if self.doubts(now) { self.doubt_until } else { self.clock(now) + self.length };
        if !self.deadlines.contains_key(&key) {
            self.deadlines.insert(key.clone(), deadline);
            self.order.insert((deadline, key));
        }
    }

    /// It is there again, or gone for good. Tells whether it was doomed.
    pub(super) fn forget(&mut self, key: &Key) -> bool {
        match self.deadlines.remove_entry(key) {
            Some((key, deadline)) => self.order.remove(&(deadline, key)),
            None => false,
        }
    }

    /// Takes out those whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Key> {
        let clock = self.clock(now);
        let mut due = Vec::new();
        while self.counting_since.is_some()
            && self.order.first().is_some_and(|(deadline, _)| *deadline <= clock)
            && let Some((_, key)) = self.order.pop_first()
        {
            self.deadlines.remove(&key);
            due.push(key);
        }
        due
    }

    /// When [`Grace::due`] has something next, if the store stays within reach.
    pub(super) fn next(&self) -> Option<Instant> {
        let (deadline, _) = self.order.first()?;
        Some(self.counting_since? + deadline.saturating_sub(self.counted))
    }

    /// How many are doomed.
    pub(super) fn len(&self) -> usize {
        self.deadlines.len()
    }
}

#[cfg(test)]
mod tests {
    use nerve::model::NodeName;

    use super::*;

    fn key(name: &str) -> Key {
        Key::Node(NodeName::new(name).unwrap())
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_grace_does_not_run_while_the_store_is_out_of_reach() {
        let (mut grace, start) = (Grace::new(15 * SECOND), Instant::now());
        grace.resume(start);
        grace.doom(key("a"), start);
        grace.pause(start + 10 * SECOND);
        assert_eq!((grace.next(), grace.due(start + 100 * SECOND)), (None, vec![]));
        grace.resume(start + 100 * SECOND);
        assert_eq!(grace.next(), Some(start + 105 * SECOND));
        assert_eq!(grace.due(start + 104 * SECOND), []);
        assert_eq!(grace.due(start + 105 * SECOND), [key("a")]);
        assert_eq!((grace.len(), grace.next()), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_comes_and_goes_keeps_nothing_alive_for_ever() {
        let (mut grace, mut now) = (Grace::new(15 * SECOND), Instant::now());
        let mut dropped_after = 0;
        for second in 0..100 {
            grace.resume(now);
            grace.doubt(now);
            grace.doom(key("a"), now);
            now += SECOND;
            if !grace.due(now).is_empty() {
                dropped_after = second + 1;
                break;
            }
            grace.pause(now);
            now += SECOND;
        }
        assert_eq!(dropped_after, 15);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_doubted_goes_when_the_doubt_ends() {
        let (mut grace, start) = (Grace::new(15 * SECOND), Instant::now());
        grace.resume(start);
        assert!(!grace.doubts(start));
        grace.doubt(start);
        assert!(grace.doubts(start + 14 * SECOND));
        grace.doom(key("a"), start + 14 * SECOND);
        grace.doom(key("b"), start + 14 * SECOND);
        assert!(grace.forget(&key("b")) && !grace.forget(&key("b")));
        assert_eq!(grace.due(start + 15 * SECOND), [key("a")]);
        assert!(!grace.doubts(start + 15 * SECOND));
    }
}
