//! What the clients have seen: how many exchanges went well, how long they took, and each that failed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::blame::{Failed, Kind};

/// What all clients write to.
#[derive(Debug, Default)]
pub struct Record(Mutex<Seen>);

/// What they have seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Connections made, and ports that datagrams were sent from.
    pub begun: BTreeMap<Kind, u64>,
    /// How long each exchange took that went well, in microseconds.
    pub took: BTreeMap<Kind, Vec<u32>>,
    /// Those that did not.
    pub failed: Vec<Failed>,
    /// The largest lag behind the pace.
    pub latest: Duration,
}

impl Record {
    /// A connection is made, or a port used.
    pub fn begun(&self, kind: Kind) {
        *self.seen().begun.entry(kind).or_default() += 1;
    }

    /// An exchange went well.
    pub fn went_well(&self, kind: Kind, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.seen().took.entry(kind).or_default().push(micros);
    }

    /// One did not.
    pub fn failed(&self, failed: Failed) {
        self.seen().failed.push(failed);
    }

    /// Something began so late.
    pub fn late(&self, by: Duration) {
        let mut seen = self.seen();
        seen.latest = seen.latest.max(by);
    }

    /// How many of one kind went well so far.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.seen().took.get(&kind).map_or(0, Vec::len)
    }

    /// All of it, which is no longer here then.
    #[must_use]
    pub fn take(&self) -> Seen {
        std::mem::take(&mut self.seen())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// The time that so many percent of the exchanges of a kind took at most.
    #[must_use]
    pub fn percentile(&self, kind: Kind, percent: usize) -> Duration {
        let mut took = self.took.get(&kind).cloned().unwrap_or_default();
        took.sort_unstable();
        let last = took.len().saturating_sub(1);
        let at = (took.len() * percent / 100).min(last);
        Duration::from_micros(took.get(at).copied().unwrap_or(0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let record = Record::default();
        (1..=100).rev().for_each(|millis| record.went_well(Kind::Once, Duration::from_millis(millis)));
        let seen = record.take();
        assert_eq!(seen.percentile(Kind::Once, 50), Duration::from_millis(51));
        assert_eq!(seen.percentile(Kind::Once, 99), Duration::from_millis(100));
        assert_eq!(seen.percentile(Kind::Bulk, 99), Duration::ZERO);
    }
}
