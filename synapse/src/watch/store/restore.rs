//! Settings, networks and claims that a store lost with its data, and that this node writes back (pure: the writes are the caller's).
//!
//! Every agent of the fleet has the same to write. Each begins at a moment and a place of its own and leaves out what it
//! hears of as written meanwhile, so that the fleet shares the work; a write expects to find nothing, so that whoever
//! comes second changes nothing. A record is open until the watch tells of it: a snapshot that is older than the write
//! must not take it away.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use nerve::store::{Key, Revision};
use tokio::time::Instant;

/// Agents begin within this.
const BEGIN_WITHIN: Duration = Duration::from_secs(1);
/// Pause after a write that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// What is open: keys of durable records.
#[derive(Debug, Default)]
pub(super) struct Restoration {
    due: BTreeSet<Key>,
    /// Where to go on in `due`, which is a ring.
    at: Option<Key>,
    not_before: Option<Instant>,
    under_way: HashSet<Key>,
    /// Known to stand in the store at this revision; the watch has not told yet.
    written: HashMap<Key, Revision>,
}

impl Restoration {
    /// These were lost.
    pub(super) fn begin(&mut self, lost: Vec<Key>, now: Instant) {
        if lost.is_empty() {
            return;
        }
        let random = RandomState::new().hash_one(0);
        let start = usize::try_from(random).unwrap_or_default() % lost.len();
        self.at = lost.get(start).cloned();
        let share = u32::try_from(random >> 32).unwrap_or_default();
        self.not_before = Some(now + BEGIN_WITHIN.mul_f64(f64::from(share) / f64::from(u32::MAX)));
        for key in lost {
            self.written.remove(&key);
            if !self.under_way.contains(&key) {
                self.due.insert(key);
            }
        }
    }

    /// The watch told of it: there it is, or someone deleted it.
    pub(super) fn seen(&mut self, key: &Key) {
        self.due.remove(key);
        self.under_way.remove(key);
        self.written.remove(key);
    }

    /// Must a snapshot of `revision` that does not list it be ignored?
    pub(super) fn protects(&self, key: &Key, revision: Revision) -> bool {
        self.due.contains(key)
            || self.under_way.contains(key)
            || self.written.get(key).is_some_and(|written| *written > revision)
    }

    /// The next to be written, if it is time.
    pub(super) fn next(&mut self, now: Instant) -> Option<Key> {
        if self.not_before.is_some_and(|moment| now < moment) {
            return None;
        }
        let after = self.at.as_ref().and_then(|at| self.due.range(at.clone()..).next());
        let key = after.or_else(|| self.due.first())?.clone();
        self.due.remove(&key);
        self.under_way.insert(key.clone());
        self.at = Some(key.clone());
        Some(key)
    }

    /// When [`Restoration::next`] is worth a call.
    pub(super) fn wake(&self) -> Option<Instant> {
        if self.due.is_empty() { None } else { self.not_before }
    }

    /// It stands in the store.
    pub(super) fn wrote(&mut self, key: &Key, revision: Revision) {
        if self.under_way.remove(key) {
            self.written.insert(key.clone(), revision);
        }
    }

    /// The write failed and is worth another try.
    pub(super) fn again(&mut self, key: Key, now: Instant) {
        if self.under_way.remove(&key) {
            self.due.insert(key);
            self.not_before = Some(now + PAUSE);
        }
    }

    /// Whoever was writing is gone: what was under way is due.
    pub(super) fn restart(&mut self) {
        self.due.extend(self.under_way.drain());
    }

    /// Is there nothing left to write?
    pub(super) fn is_done(&self) -> bool {
        self.due.is_empty() && self.under_way.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use nerve::model::ServiceName;

    use super::*;

    fn name(text: &str) -> Key {
        Key::Service(ServiceName::new(text).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_written_once_within_a_moment_and_what_others_wrote_is_left_out() {
        let (mut restoration, now) = (Restoration::default(), Instant::now());
        restoration.begin(["a", "b", "c", "d"].map(name).into(), now);
        assert!(restoration.wake().unwrap() <= now + BEGIN_WITHIN);
        restoration.seen(&name("b"));
        let later = now + BEGIN_WITHIN;
        let mut written: Vec<_> = std::iter::from_fn(|| restoration.next(later)).collect();
        written.sort();
        assert_eq!(written, ["a", "c", "d"].map(name));
        assert_eq!(restoration.wake(), None);
        for name in &written {
            restoration.wrote(name, Revision(7));
        }
        assert!(restoration.is_done());
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_older_than_the_write_does_not_undo_it() {
        let (mut restoration, now) = (Restoration::default(), Instant::now());
        restoration.begin(vec![name("a")], now);
        assert!(
            restoration.protects(&name("a"), Revision(1)) && !restoration.protects(&name("b"), Revision(1))
        );
        let next = restoration.next(now + BEGIN_WITHIN).unwrap();
        assert!(restoration.protects(&next, Revision(99)));
        restoration.wrote(&next, Revision(7));
        assert!(restoration.protects(&next, Revision(6)) && !restoration.protects(&next, Revision(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_write_is_tried_again_after_a_pause() {
        let (mut restoration, now) = (Restoration::default(), Instant::now());
        restoration.begin(vec![name("a")], now);
        let later = now + BEGIN_WITHIN;
        let next = restoration.next(later).unwrap();
        restoration.again(next.clone(), later);
        assert_eq!(restoration.next(later), None);
        assert_eq!(restoration.next(later + PAUSE), Some(next));
        restoration.restart();
        assert!(!restoration.is_done());
        assert_eq!(restoration.next(later + PAUSE), Some(name("a")));
    }
}
