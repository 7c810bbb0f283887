//! The embedded store's truth in memory: entries, leases, and a bounded history for its watches. No I/O, no clock.
//!
//! A mutation is planned first and applied second, so that what must be on disk gets there before anyone sees it. The
//! caller sees to it that nothing is applied between the two.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

use super::image::{Image, Imaged};
use crate::store::{Change, Entry, Expect, Listing, Path, Revision};

/// A watch that is further behind than this many changes gets a new snapshot.
pub(super) const HISTORY_CHANGES: usize = 8192;
/// … or this many bytes of values.
const HISTORY_BYTES: usize = 16 * 1024 * 1024;

/// What a caller wants changed.
#[derive(Debug)]
pub(super) enum Mutation {
    Put { path: Path, value: Vec<u8>, lease: Option<u64> },
    Delete { path: Path },
    Swap { path: Path, expect: Expect, value: Option<Vec<u8>>, lease: Option<u64> },
    EndLease { lease: u64 },
}

/// What applying a mutation will do.
#[derive(Debug)]
pub(super) struct Plan {
    /// The revision at which it will be true.
    pub(super) revision: Revision,
    writes: Vec<Write>,
    ended_lease: Option<u64>,
    outcome: Outcome,
}

#[derive(Debug)]
struct Write {
    path: Path,
    value: Option<Vec<u8>>,
    lease: Option<u64>,
    was_durable: bool,
}

/// How a mutation ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was applied at this revision, or changed nothing.
    Done { revision: Revision, changed: bool },
    /// A compare-and-swap found this instead.
    Conflict(Option<Entry>),
}

/// What the file must be told before a plan is applied.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileChange<'a> {
    Keep(&'a str, &'a [u8]),
    Forget(&'a str),
}

/// The lease of a write does not exist.
#[derive(Debug)]
pub(super) struct NoSuchLease(pub(super) u64);

/// What a watch at some revision has to catch up with.
#[derive(Debug)]
pub(super) enum CatchUp {
    Changes(Vec<Change>, Revision),
    TooOld,
}

#[derive(Debug)]
struct Record {
    path: Path,
    value: Vec<u8>,
    revision: Revision,
    lease: Option<u64>,
}

impl Record {
    fn entry(&self) -> Entry {
        Entry { path: self.path.clone(), value: self.value.clone(), revision: self.revision }
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    revision: Revision,
    entries: BTreeMap<String, Record>,
    leases: HashMap<u64, BTreeSet<String>>,
    /// How many sessions hold each lease; one that nobody holds ends after its time to live.
    holders: HashMap<u64, u32>,
    next_lease: u64,
    /// Another process goes on with this state: nothing is changed here any more.
    handed_over: bool,
    history: VecDeque<(Revision, Change)>,
    history_bytes: usize,
    /// Changes up to this revision are no longer in the history.
    forgotten: Revision,
}

impl State {
    /// What a file held: durable entries, and a revision that is later than any given out before.
    fn restored(entries: Vec<Entry>, revision: Revision) -> Self {
        let entries = entries
            .into_iter()
            .map(|Entry { path, value, revision }| {
                (path.as_str().to_owned(), Record { path, value, revision, lease: None })
            })
            .collect();
        Self { revision, entries, forgotten: revision, ..Self::default() }
    }

    /// What a store begins with: what its file holds, and what another process handed over. With a file, only the leased entries
    /// of that count.
    pub(super) fn begin(
        on_disk: Option<(Vec<Entry>, Revision)>,
        image: Option<Image>,
    ) -> Result<Self, String> {
        let has_file = on_disk.is_some();
        let (entries, revision) = on_disk.unwrap_or_default();
        let mut state = Self::restored(entries, revision);
        if let Some(image) = image {
            let (floor, last_lease, leases) = (Revision(image.revision), image.last_lease, image.leases);
            let mut handed_over = Vec::with_capacity(image.entries.len());
            for imaged in image.entries {
                let (entry, lease) = imaged.entry()?;
                if lease.is_some() || !has_file {
                    handed_over.push((entry, lease));
                }
            }
            state.adopt(floor, last_lease, &leases, handed_over);
        }
        Ok(state)
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn get(&self, path: &Path) -> Option<Entry> {
        self.entries.get(path.as_str()).map(Record::entry)
    }

    pub(super) fn list(&self, directory: &Path) -> Listing {
        let prefix = directory.as_directory();
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let below = self.entries.range::<str, _>(from).take_while(|(path, _)| path.starts_with(&prefix));
        Listing { entries: below.map(|(_, record)| record.entry()).collect(), revision: self.revision }
    }

    pub(super) fn grant(&mut self) -> u64 {
        self.next_lease += 1;
        self.leases.insert(self.next_lease, BTreeSet::new());
        self.hold(self.next_lease);
        self.next_lease
    }

    /// One more session holds a lease; tells whether there is such a lease.
    pub(super) fn hold(&mut self, lease: u64) -> bool {
        let known = self.leases.contains_key(&lease);
        if known {
            *self.holders.entry(lease).or_default() += 1;
        }
        known
    }

    /// One session less holds a lease.
    pub(super) fn let_go(&mut self, lease: u64) {
        if let Some(holders) = self.holders.get_mut(&lease) {
            *holders = holders.saturating_sub(1);
        }
    }

    /// Is there such a lease, and does nobody hold it?
    pub(super) fn is_abandoned(&self, lease: u64) -> bool {
        self.leases.contains_key(&lease) && self.holders.get(&lease).is_none_or(|holders| *holders == 0)
    }

    /// Every lease that nobody holds.
    pub(super) fn abandoned(&self) -> Vec<u64> {
        self.leases.keys().copied().filter(|lease| self.is_abandoned(*lease)).collect()
    }

    /// Is it another process that goes on with this state?
    pub(super) fn is_handed_over(&self) -> bool {
        self.handed_over
    }

    /// Whether another process goes on with this state.
    pub(super) fn set_handed_over(&mut self, handed_over: bool) {
        self.handed_over = handed_over;
    }

    /// All of it, for another process.
    pub(super) fn image(&self) -> Image {
        let imaged = |record: &Record| Imaged {
            path: record.path.as_str().to_owned(),
            value: record.value.clone(),
            revision: record.revision.0,
            lease: record.lease,
        };
        let leases = self.leases.keys().copied().collect();
        Image::new(self.revision, self.next_lease, leases, self.entries.values().map(imaged).collect())
    }

    /// Takes over what another process had in memory. Watches of this one begin with it.
    fn adopt(
        &mut self,
        floor: Revision,
        last_lease: u64,
        leases: &[u64],
        entries: Vec<(Entry, Option<u64>)>,
    ) {
        self.revision = self.revision.max(floor);
        self.forgotten = self.revision;
        self.next_lease = last_lease;
        self.leases = leases.iter().map(|lease| (*lease, BTreeSet::new())).collect();
        for (Entry { path, value, revision }, lease) in entries {
            let key = path.as_str().to_owned();
            if let Some(held) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
                held.insert(key.clone());
            }
            self.entries.insert(key, Record { path, value, revision, lease });
        }
    }

    pub(super) fn plan(&self, mutation: Mutation) -> Result<Plan, NoSuchLease> {
        if let Mutation::Put { lease: Some(lease), .. } | Mutation::Swap { lease: Some(lease), .. } =
            &mutation
            && !self.leases.contains_key(lease)
        {
            return Err(NoSuchLease(*lease));
        }
        Ok(match mutation {
            Mutation::Put { path, value, lease } => self.writing(vec![(path, Some(value), lease)]),
            Mutation::Delete { path } => self.writing(vec![(path, None, None)]),
            Mutation::Swap { path, expect, value, lease } => {
                let found = self.entries.get(path.as_str());
                let as_expected = match expect {
                    Expect::Absent => found.is_none(),
                    Expect::Unchanged(revision) => found.is_some_and(|record| record.revision == revision),
                };
                if as_expected {
                    self.writing(vec![(path, value, lease)])
                } else {
                    let outcome = Outcome::Conflict(found.map(Record::entry));
                    Plan { revision: self.revision, writes: Vec::new(), ended_lease: None, outcome }
                }
            }
            Mutation::EndLease { lease } => {
                let held = self.leases.get(&lease).into_iter().flatten();
                let paths = held.filter_map(|path| self.entries.get(path)).map(|record| record.path.clone());
                Plan {
                    ended_lease: Some(lease),
                    ..self.writing(paths.map(|path| (path, None, None)).collect())
                }
            }
        })
    }

    /// All of one plan's writes happen at one revision; deleting what is not there is no write.
    fn writing(&self, writes: Vec<(Path, Option<Vec<u8>>, Option<u64>)>) -> Plan {
        let writes: Vec<_> = writes
            .into_iter()
            .filter_map(|(path, value, lease)| {
                let before = self.entries.get(path.as_str());
                let was_durable = before.is_some_and(|record| record.lease.is_none());
                (before.is_some() || value.is_some()).then_some(Write { path, value, lease, was_durable })
            })
            .collect();
        let changed = !writes.is_empty();
        let revision = if changed { Revision(self.revision.0 + 1) } else { self.revision };
        Plan { revision, writes, ended_lease: None, outcome: Outcome::Done { revision, changed } }
    }

    pub(super) fn apply(&mut self, plan: Plan) -> Outcome {
        if let Some(lease) = plan.ended_lease {
            self.leases.remove(&lease);
            self.holders.remove(&lease);
        }
        for write in plan.writes {
            self.write(write, plan.revision);
        }
        self.revision = self.revision.max(plan.revision);
        self.trim();
        plan.outcome
    }

    fn trim(&mut self) {
        while self.history.len() > HISTORY_CHANGES || self.history_bytes > HISTORY_BYTES {
            let Some((revision, change)) = self.history.pop_front() else { break };
            self.history_bytes -= bytes(&change);
            self.forgotten = revision;
        }
    }

    fn write(&mut self, write: Write, revision: Revision) {
        let Write { path, value, lease, .. } = write;
        let key = path.as_str().to_owned();
        let change = match value {
            Some(value) => {
                if let Some(held) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
                    held.insert(key.clone());
                }
                let record = Record { path, value, revision, lease };
                let change = Change::Put(record.entry());
                let before = self.entries.insert(key.clone(), record);
                self.release(before.and_then(|record| record.lease).filter(|old| Some(*old) != lease), &key);
                change
            }
            None => {
                let before = self.entries.remove(&key);
                self.release(before.and_then(|record| record.lease), &key);
                Change::Delete(path)
            }
        };
        self.history_bytes += bytes(&change);
        self.history.push_back((revision, change));
    }

    fn release(&mut self, lease: Option<u64>, key: &str) {
        if let Some(held) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
            held.remove(key);
        }
    }

    /// What happened below `directory` after `seen`.
    pub(super) fn since(&self, seen: Revision, directory: &Path) -> CatchUp {
        if seen < self.forgotten {
            return CatchUp::TooOld;
        }
        let first = self.history.partition_point(|(revision, _)| *revision <= seen);
        let changes = self.history.range(first..).map(|(_, change)| change).filter(|change| match change {
            Change::Put(entry) => entry.path.is_below(directory),
            Change::Delete(path) => path.is_below(directory),
        });
        CatchUp::Changes(changes.cloned().collect(), self.revision)
    }
}

impl Plan {
    /// Nothing of it concerns the file: only leased entries are touched, or nothing is.
    pub(super) fn is_in_memory(&self) -> bool {
        self.file_changes().next().is_none()
    }

    /// What the file must hold before this is seen.
    pub(super) fn file_changes(&self) -> impl Iterator<Item = FileChange<'_>> {
        self.writes.iter().filter_map(|write| match &write.value {
            Some(value) if write.lease.is_none() => Some(FileChange::Keep(write.path.as_str(), value)),
            // A leased entry over a durable one must not come back as it was after a restart.
            _ if write.was_durable => Some(FileChange::Forget(write.path.as_str())),
            _ => None,
        })
    }
}

fn bytes(change: &Change) -> usize {
    match change {
        Change::Put(entry) => entry.value.len(),
        Change::Delete(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        Path::new(text).unwrap()
    }

    fn run(state: &mut State, mutation: Mutation) -> Outcome {
        let plan = state.plan(mutation).unwrap();
        state.apply(plan)
    }

    fn put(text: &str, lease: Option<u64>) -> Mutation {
        Mutation::Put { path: path(text), value: b"v".to_vec(), lease }
    }

    #[test]
    fn the_file_hears_of_durable_entries_only_and_of_their_end() {
        let mut state = State::default();
        let lease = state.grant();
        assert!(state.plan(put("a", Some(lease))).unwrap().is_in_memory());
        run(&mut state, put("a", None));
        for over in [put("a", Some(lease)), Mutation::Delete { path: path("a") }] {
            assert_eq!(
                state.plan(over).unwrap().file_changes().collect::<Vec<_>>(),
                [FileChange::Forget("a")]
            );
        }
        run(&mut state, put("a", Some(lease)));
        assert!(state.plan(Mutation::EndLease { lease }).unwrap().is_in_memory());
    }

    #[test]
    fn a_lease_ends_with_its_own_entries_at_one_revision() {
        let mut state = State::default();
        let (old, new) = (state.grant(), state.grant());
        for name in ["a", "b", "c", "d"] {
            run(&mut state, put(name, Some(old)));
        }
        run(&mut state, put("a", Some(new)));
        run(&mut state, put("b", None));
        let before = state.revision();
        run(&mut state, Mutation::EndLease { lease: old });
        assert_eq!(state.revision(), Revision(before.0 + 1));
        let left = state.list(&Path::root()).entries;
        assert_eq!(left.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(matches!(state.plan(put("a", Some(old))), Err(NoSuchLease(_))));
    }

    #[test]
    fn the_history_is_bounded_in_number_and_in_bytes_and_says_what_it_forgot() {
        let mut state = State::default();
        for _ in 0..HISTORY_CHANGES + 10 {
            run(&mut state, put("a", None));
        }
        assert_eq!(state.history.len(), HISTORY_CHANGES);
        assert!(matches!(state.since(Revision(9), &Path::root()), CatchUp::TooOld));
        let CatchUp::Changes(changes, _) = state.since(Revision(10), &Path::root()) else {
            panic!("forgotten")
        };
        assert_eq!(changes.len(), HISTORY_CHANGES);
        for _ in 0..40 {
            run(&mut state, Mutation::Put { path: path("a"), value: vec![0; 512 * 1024], lease: None });
        }
        assert!(state.history_bytes <= HISTORY_BYTES);
        assert_eq!(state.history_bytes, state.history.iter().map(|(_, c)| bytes(c)).sum::<usize>());
    }
}
