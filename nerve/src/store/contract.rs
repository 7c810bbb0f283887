//! What every backend promises: one battery, run over each.
//!
//! A backend's tests call [`every_promise`] with a way to open a store whose keys are nobody else's. Nearly all promises
//! run at the same time, against one server where there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tokio::time::{Instant, timeout};

use super::{
    Change, ErrorKind, Expect, MAX_VALUE_BYTES, Path, Revision, SnapshotCause, Store, Swap, Watch, WatchEvent,
};

/// The shortest that every backend grants as asked.
const TTL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);

type Shared = Arc<dyn Store>;
type Promise = fn(Shared) -> BoxFuture<'static, ()>;

macro_rules! promises {
    ($($name:ident),* $(,)?) => { [$((stringify!($name), (|store| Box::pin($name(store))) as Promise)),*] };
}

/// Runs the battery. `open` gives a store of its own for each name.
pub(super) async fn every_promise<F: Future<Output = Shared>>(open: impl Fn(&'static str) -> F) {
    let promises = promises![
        what_is_put_is_got_until_it_is_deleted,
        revisions_grow_over_the_whole_store,
        values_are_any_bytes,
        a_value_that_is_too_large_is_refused_and_nothing_is_written,
        a_directory_is_not_its_namesake,
        a_swap_happens_as_expected_or_not_at_all,
        of_many_swaps_at_once_exactly_one_wins,
        a_swap_does_not_take_a_new_entry_for_the_old_one,
        the_entries_of_a_dropped_session_die_after_its_ttl,
        a_held_session_outlives_its_ttl,
        closing_a_session_deletes_at_once_and_refuses_later_writes,
        an_adopted_session_outlives_its_first_holder,
        an_entry_moved_to_another_session_survives_the_first,
        an_entry_made_durable_survives_its_session,
        a_watch_begins_with_a_snapshot_of_its_directory_alone,
        replaying_a_watch_under_concurrent_writers_equals_a_listing,
        a_slow_watcher_ends_up_with_the_truth,
        a_store_that_was_shut_down_answers_so_and_ends_its_watches,
    ];
    run(&promises, &open).await;
    // Alone: it keeps a server busy.
    run_within(10 * PATIENCE, &promises![a_listing_of_ten_thousand_entries_is_whole_and_sorted], &open).await;
}

async fn run<F: Future<Output = Shared>>(
    promises: &[(&'static str, Promise)],
    open: impl Fn(&'static str) -> F,
) {
    run_within(2 * PATIENCE, promises, open).await;
}

async fn run_within<F: Future<Output = Shared>>(
    patience: Duration,
    promises: &[(&'static str, Promise)],
    open: impl Fn(&'static str) -> F,
) {
    let runs = promises.iter().map(|&(name, promise)| {
        let store = open(name);
        async move {
            let run = async { promise(store.await).await };
            let result = AssertUnwindSafe(timeout(patience, run)).catch_unwind().await;
            match result {
                Ok(Ok(())) => None,
                Ok(Err(_)) => Some(format!("{name}: took too long")),
                Err(_) => Some(name.to_owned()),
            }
        }
    });
    let broken: Vec<_> = join_all(runs).await.into_iter().flatten().collect();
    assert!(broken.is_empty(), "broken promises: {broken:?}");
}

/// A path, in tests.
pub(super) fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}

/// What a consumer makes of a watch: the latest state, and how it got there.
pub(super) struct Replica {
    watch: Watch,
    pub(super) entries: BTreeMap<Path, (Vec<u8>, Revision)>,
    pub(super) causes: Vec<SnapshotCause>,
    pub(super) resumed: usize,
    /// How often it was told not to answer.
    pub(super) silent: usize,
    /// How often it was told to have stood still.
    pub(super) stalled: usize,
    pub(super) disconnected: usize,
    down: bool,
}

impl Replica {
    pub(super) fn of(store: &dyn Store, directory: &Path) -> Self {
        let watch = store.watch(directory);
        Self {
            watch,
            entries: BTreeMap::new(),
            causes: Vec::new(),
            resumed: 0,
            silent: 0,
            stalled: 0,
            disconnected: 0,
            down: false,
        }
    }

    /// Takes one event; panics where a watch breaks its promises.
    pub(super) async fn step(&mut self) {
        match self.watch.next().await.expect("the store was shut down") {
            WatchEvent::Snapshot { entries, cause, .. } => {
                assert!(entries.is_sorted_by_key(|entry| entry.path.clone()));
                assert_eq!(cause == SnapshotCause::First, self.causes.is_empty());
                self.down = false;
                self.causes.push(cause);
                self.entries = entries.into_iter().map(|e| (e.path, (e.value, e.revision))).collect();
            }
            WatchEvent::Changes(changes) => {
                assert!(!changes.is_empty() && !self.causes.is_empty() && !self.down);
                for change in changes {
                    match change {
                        Change::Put(entry) => {
                            let before = self.entries.insert(entry.path, (entry.value, entry.revision));
                            assert!(
                                before.is_none_or(|(_, revision)| revision < entry.revision),
                                "out of order"
                            );
                        }
                        Change::Delete(path) => drop(self.entries.remove(&path)),
                    }
                }
            }
            WatchEvent::Disconnected(_) => {
                assert!(!std::mem::replace(&mut self.down, true), "told twice");
                self.disconnected += 1;
            }
            WatchEvent::Resumed => {
                assert!(std::mem::take(&mut self.down) && !self.causes.is_empty(), "resumed from nothing");
                self.resumed += 1;
            }
            WatchEvent::Silent => {
                assert!(!self.down, "out of reach is more than silent");
                self.silent += 1;
            }
            WatchEvent::Stalled(silence) => {
                assert!(!self.down && !silence.is_zero(), "out of reach is more than silent");
                self.stalled += 1;
            }
        }
    }

    /// Takes events until `done`.
    pub(super) async fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            let step = tokio::time::timeout_at(end, self.step()).await;
            assert!(step.is_ok(), "not within {PATIENCE:?}: {what}; there are {:?}", self.entries.keys());
        }
    }

    pub(super) async fn until_paths(&mut self, paths: &[&str]) {
        let wanted: BTreeSet<_> = paths.iter().map(|text| path(text)).collect();
        self.until(&format!("{paths:?}"), |replica| replica.entries.keys().eq(wanted.iter())).await;
    }
}

async fn paths_below(store: &dyn Store, directory: &str) -> Vec<String> {
    let listing = store.list(&path(directory)).await.unwrap();
    listing.entries.iter().map(|entry| entry.path.to_string()).collect()
}

async fn what_is_put_is_got_until_it_is_deleted(store: Shared) {
    let at = path("services/web");
    assert_eq!(store.get(&at).await.unwrap(), None);
    assert!(!store.delete(&at).await.unwrap());
    let revision = store.put(&at, b"1".to_vec(), None).await.unwrap();
    let entry = store.get(&at).await.unwrap().unwrap();
    assert_eq!((entry.path, entry.value, entry.revision), (at.clone(), b"1".to_vec(), revision));
    let listing = store.list(&path("services")).await.unwrap();
    assert_eq!(listing.entries.len(), 1);
    assert!(listing.revision >= revision);
    assert!(store.delete(&at).await.unwrap());
    assert_eq!(store.get(&at).await.unwrap(), None);
    assert!(store.list(&Path::root()).await.unwrap().entries.is_empty());
}

async fn revisions_grow_over_the_whole_store(store: Shared) {
    let mut last = Revision(0);
    for name in ["a/x", "b/y", "a/x"] {
        let revision = store.put(&path(name), b"v".to_vec(), None).await.unwrap();
        assert!(revision > last);
        last = revision;
    }
    store.delete(&path("b/y")).await.unwrap();
    assert!(store.list(&Path::root()).await.unwrap().revision > last);
}

async fn values_are_any_bytes(store: Shared) {
    let all: Vec<u8> = (0..=255).collect();
    for (name, value) in [("all", all), ("none", Vec::new()), ("large", vec![0xff; MAX_VALUE_BYTES])] {
        store.put(&path(name), value.clone(), None).await.unwrap();
        assert_eq!(store.get(&path(name)).await.unwrap().unwrap().value, value);
    }
}

async fn a_value_that_is_too_large_is_refused_and_nothing_is_written(store: Shared) {
    let (at, value) = (path("large"), vec![0; MAX_VALUE_BYTES + 1]);
    let put = store.put(&at, value.clone(), None).await.unwrap_err();
    let swap = store.compare_and_swap(&at, Expect::Absent, Some(value), None).await.unwrap_err();
    for error in [put, swap] {
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(!error.may_have_applied && !error.is_retryable());
    }
    assert_eq!(store.get(&at).await.unwrap(), None);
}

async fn a_directory_is_not_its_namesake(store: Shared) {
    let mut replica = Replica::of(&*store, &path("instances/web"));
    for name in
        ["instances/web/a", "instances/web2/b", "instances/web", "instances/web-c/d", "instances/web/e/f"]
    {
        store.put(&path(name), b"v".to_vec(), None).await.unwrap();
    }
    assert_eq!(paths_below(&*store, "instances/web").await, ["instances/web/a", "instances/web/e/f"]);
    replica.until_paths(&["instances/web/a", "instances/web/e/f"]).await;
    let from_now = Replica::of(&*store, &path("instances/web2"));
    let mut from_now = from_now;
    from_now.until_paths(&["instances/web2/b"]).await;
}

async fn a_swap_happens_as_expected_or_not_at_all(store: Shared) {
    let at = path("vips/10.0.0.1");
    let swap = |expect, value: Option<&str>| {
        let (store, at, value) = (&store, &at, value.map(|text| text.as_bytes().to_vec()));
        async move { store.compare_and_swap(at, expect, value, None).await.unwrap() }
    };
    let Swap::Done(first) = swap(Expect::Absent, Some("a")).await else { panic!("it was absent") };
    let Swap::Conflict(Some(found)) = swap(Expect::Absent, Some("b")).await else { panic!("it was there") };
    assert_eq!((found.value, found.revision), (b"a".to_vec(), first));
    let Swap::Done(second) = swap(Expect::Unchanged(first), Some("c")).await else {
        panic!("it was unchanged")
    };
    assert!(second > first);
    assert!(matches!(swap(Expect::Unchanged(first), None).await, Swap::Conflict(Some(_))));
    assert!(matches!(swap(Expect::Unchanged(second), None).await, Swap::Done(_)));
    assert_eq!(swap(Expect::Unchanged(second), Some("d")).await, Swap::Conflict(None));
    assert!(matches!(swap(Expect::Absent, None).await, Swap::Done(_)));
    assert_eq!(store.get(&at).await.unwrap(), None);
}

async fn of_many_swaps_at_once_exactly_one_wins(store: Shared) {
    let at = path("subnets/blue/10.1.0.0");
    let mut expect = Expect::Absent;
    for _ in 0..5 {
        let contenders = (0..16_u8).map(|i| store.compare_and_swap(&at, expect, Some(vec![i]), None));
        let results: Vec<_> = join_all(contenders).await.into_iter().map(Result::unwrap).collect();
        let won: Vec<_> =
            (0..16_u8).zip(&results).filter(|(_, swap)| matches!(swap, Swap::Done(_))).collect();
        let &[(winner, Swap::Done(revision))] = won.as_slice() else { panic!("{} won", won.len()) };
        let entry = store.get(&at).await.unwrap().unwrap();
        assert_eq!((entry.value, entry.revision), (vec![winner], *revision));
        expect = Expect::Unchanged(*revision);
    }
}

async fn a_swap_does_not_take_a_new_entry_for_the_old_one(store: Shared) {
    let at = path("vips/10.0.0.1");
    let mut met = 0;
    for round in 0..20_u8 {
        let old = store.put(&at, b"old".to_vec(), None).await.unwrap();
        let renew = async {
            store.delete(&at).await.unwrap();
            store.put(&at, vec![round], None).await.unwrap()
        };
        let swap = store.compare_and_swap(&at, Expect::Unchanged(old), Some(b"swapped".to_vec()), None);
        let (_, swap) = tokio::join!(renew, swap);
        met += u32::from(matches!(swap.unwrap(), Swap::Done(_)));
        // Whether the swap came first or too late: the new entry was put without looking at it.
        assert_eq!(store.get(&at).await.unwrap().unwrap().value, [round], "after {met} swaps that were done");
        store.delete(&at).await.unwrap();
    }
}

async fn the_entries_of_a_dropped_session_die_after_its_ttl(store: Shared) {
    let mut replica = Replica::of(&*store, &path("nodes"));
    let session = store.open_session(TTL).await.unwrap();
    let ttl = session.ttl();
    assert!(ttl >= TTL && session.is_alive());
    for name in ["nodes/a", "nodes/b"] {
        store.put(&path(name), b"v".to_vec(), Some(&session)).await.unwrap();
    }
    store.put(&path("nodes/durable"), b"v".to_vec(), None).await.unwrap();
    replica.until_paths(&["nodes/a", "nodes/b", "nodes/durable"]).await;
    let dropped = Instant::now();
    drop(session);
    replica.until_paths(&["nodes/durable"]).await;
    assert!(dropped.elapsed() >= ttl / 2, "{:?}", dropped.elapsed());
    assert!(dropped.elapsed() <= ttl * 2 + Duration::from_secs(1), "{:?}", dropped.elapsed());
}

async fn a_held_session_outlives_its_ttl(store: Shared) {
    let session = store.open_session(TTL).await.unwrap();
    store.put(&path("nodes/a"), b"v".to_vec(), Some(&session)).await.unwrap();
    assert!(timeout(session.ttl() * 5 / 2, session.lost()).await.is_err());
    assert!(session.is_alive());
    assert!(store.get(&path("nodes/a")).await.unwrap().is_some());
}

async fn closing_a_session_deletes_at_once_and_refuses_later_writes(store: Shared) {
    let mut replica = Replica::of(&*store, &path("nodes"));
    let session = store.open_session(10 * TTL).await.unwrap();
    for name in ["nodes/a", "nodes/b"] {
        store.put(&path(name), b"v".to_vec(), Some(&session)).await.unwrap();
    }
    replica.until_paths(&["nodes/a", "nodes/b"]).await;
    // A second handle on the same lease, as a writer holds it who was not told.
    let (stale, _keeper) = super::Session::new(session.id(), session.ttl());
    store.close_session(session).await.unwrap();
    assert!(paths_below(&*store, "nodes").await.is_empty());
    replica.until_paths(&[]).await;
    let put = store.put(&path("nodes/a"), b"v".to_vec(), Some(&stale)).await.unwrap_err();
    let swap = store.compare_and_swap(&path("nodes/a"), Expect::Absent, Some(vec![]), Some(&stale)).await;
    for error in [put, swap.unwrap_err()] {
        assert_eq!(error.kind, ErrorKind::SessionLost, "{error}");
        assert!(!error.may_have_applied);
    }
    store.close_session(stale).await.unwrap();
}

async fn an_adopted_session_outlives_its_first_holder(store: Shared) {
    let first = store.open_session(TTL).await.unwrap();
    let entry = path("instances/web/a");
    store.put(&entry, b"1".to_vec(), Some(&first)).await.unwrap();
    let before = store.get(&entry).await.unwrap();
    let second = store.adopt_session(first.id(), first.ttl()).await.unwrap();
    assert_eq!(second.id(), first.id());
    let ttl = first.ttl();
    drop(first);
    assert!(timeout(ttl * 5 / 2, second.lost()).await.is_err());
    assert_eq!(store.get(&entry).await.unwrap(), before, "not even written again");
    store.put(&path("instances/web/b"), b"1".to_vec(), Some(&second)).await.unwrap();
    let id = second.id();
    store.close_session(second).await.unwrap();
    assert_eq!(store.get(&entry).await.unwrap(), None);
    let ended = store.adopt_session(id, ttl).await.unwrap_err();
    assert_eq!(ended.kind, ErrorKind::SessionLost, "{ended}");
}

async fn an_entry_moved_to_another_session_survives_the_first(store: Shared) {
    let (first, second) = (store.open_session(TTL).await.unwrap(), store.open_session(TTL).await.unwrap());
    for name in ["a", "b"] {
        store.put(&path(name), b"v".to_vec(), Some(&first)).await.unwrap();
    }
    let moved = store.put(&path("a"), b"w".to_vec(), Some(&second)).await.unwrap();
    store.close_session(first).await.unwrap();
    let entry = store.get(&path("a")).await.unwrap().unwrap();
    assert_eq!((entry.value, entry.revision), (b"w".to_vec(), moved));
    assert_eq!(store.get(&path("b")).await.unwrap(), None);
    store.close_session(second).await.unwrap();
    assert_eq!(store.get(&path("a")).await.unwrap(), None);
}

async fn an_entry_made_durable_survives_its_session(store: Shared) {
    let session = store.open_session(TTL).await.unwrap();
    store.put(&path("a"), b"v".to_vec(), Some(&session)).await.unwrap();
    store.put(&path("a"), b"w".to_vec(), None).await.unwrap();
    store.put(&path("b"), b"v".to_vec(), None).await.unwrap();
    store.put(&path("b"), b"w".to_vec(), Some(&session)).await.unwrap();
    store.close_session(session).await.unwrap();
    assert_eq!(store.get(&path("a")).await.unwrap().unwrap().value, b"w");
    assert_eq!(store.get(&path("b")).await.unwrap(), None);
}

async fn a_watch_begins_with_a_snapshot_of_its_directory_alone(store: Shared) {
    store.put(&path("services/web"), b"1".to_vec(), None).await.unwrap();
    store.put(&path("nodes/a"), b"1".to_vec(), None).await.unwrap();
    let mut watch = store.watch(&path("services"));
    let first = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    let WatchEvent::Snapshot { entries, revision, cause: SnapshotCause::First } = first else {
        panic!("{first:?}")
    };
    assert_eq!(entries.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["services/web"]);
    let put = store.put(&path("services/api"), b"2".to_vec(), None).await.unwrap();
    store.put(&path("nodes/b"), b"1".to_vec(), None).await.unwrap();
    store.delete(&path("services/web")).await.unwrap();
    let mut changes = Vec::new();
    while changes.len() < 2 {
        match timeout(PATIENCE, watch.next()).await.unwrap().unwrap() {
            WatchEvent::Changes(some) => changes.extend(some),
            other => panic!("{other:?}"),
        }
    }
    let [Change::Put(entry), Change::Delete(gone)] = changes.as_slice() else { panic!("{changes:?}") };
    assert!(entry.path == path("services/api") && entry.revision == put && put > revision);
    assert_eq!(gone, &path("services/web"));
}

async fn replaying_a_watch_under_concurrent_writers_equals_a_listing(store: Shared) {
    let directory = path("instances");
    let writer = |seed: u64| {
        let store = Arc::clone(&store);
        async move {
            let session = store.open_session(10 * TTL).await.unwrap();
            let mut random = seed;
            for i in 0..60_u64 {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = path(&format!("instances/web/{}", (random >> 33) % 12));
                let value = format!("{seed}:{i}").into_bytes();
                match (random >> 50) % 4 {
                    0 => drop(store.delete(&at).await.unwrap()),
                    1 => drop(store.put(&at, value, Some(&session)).await.unwrap()),
                    2 => drop(store.put(&at, value, None).await.unwrap()),
                    _ => {
                        let seen = store.get(&at).await.unwrap();
                        let expect = seen.map_or(Expect::Absent, |entry| Expect::Unchanged(entry.revision));
                        drop(store.compare_and_swap(&at, expect, Some(value), None).await.unwrap());
                    }
                }
            }
            store.close_session(session).await.unwrap();
        }
    };
    let mut early = Replica::of(&*store, &directory);
    let watched = async {
        // The end is marked by a key that nobody else writes.
        early.until("the mark", |replica| replica.entries.contains_key(&path("instances/mark"))).await;
    };
    let written = async {
        join_all((1..=6).map(writer)).await;
        store.put(&path("instances/mark"), vec![], None).await.unwrap();
    };
    let ((), ()) = tokio::join!(watched, written);
    let listing = store.list(&directory).await.unwrap().entries;
    let truth: BTreeMap<_, _> = listing.into_iter().map(|e| (e.path, (e.value, e.revision))).collect();
    assert_eq!(early.entries, truth);
    assert_eq!(early.causes, [SnapshotCause::First]);
    let mut late = Replica::of(&*store, &directory);
    late.step().await;
    assert_eq!(late.entries, truth);
}

async fn a_slow_watcher_ends_up_with_the_truth(store: Shared) {
    let mut slow = Replica::of(&*store, &path("a"));
    let mut dropped = Replica::of(&*store, &path("a"));
    dropped.step().await;
    drop(dropped);
    for round in 0..30_u32 {
        join_all((0..20_u32).map(|i| {
            let (store, at) = (&store, path(&format!("a/{i}")));
            async move { store.put(&at, round.to_string().into_bytes(), None).await.unwrap() }
        }))
        .await;
    }
    let truth: BTreeSet<_> =
        store.list(&path("a")).await.unwrap().entries.into_iter().map(|e| e.revision).collect();
    slow.until("the last revisions", |replica| {
        replica.entries.values().map(|(_, revision)| *revision).collect::<BTreeSet<_>>() == truth
    })
    .await;
}

async fn a_listing_of_ten_thousand_entries_is_whole_and_sorted(store: Shared) {
    // Most are leased, as in a fleet: a store in a file writes each durable one to the disk.
    let session = &store.open_session(10 * TTL).await.unwrap();
    for hundred in 0..100 {
        join_all((0..100).map(|i| {
            let (store, at) = (&store, path(&format!("many/{:05}", hundred * 100 + i)));
            let session = (i % 10 != 0).then_some(session);
            async move { store.put(&at, vec![0; 10], session).await.unwrap() }
        }))
        .await;
    }
    let expected: Vec<_> = (0..10_000).map(|i| format!("many/{i:05}")).collect();
    assert_eq!(paths_below(&*store, "many").await, expected);
    let mut replica = Replica::of(&*store, &path("many"));
    replica.step().await;
    assert_eq!(replica.entries.len(), 10_000);
}

async fn a_store_that_was_shut_down_answers_so_and_ends_its_watches(store: Shared) {
    let mut watch = store.watch(&Path::root());
    let session = store.open_session(TTL).await.unwrap();
    timeout(PATIENCE, store.shutdown()).await.unwrap();
    timeout(PATIENCE, async { while watch.next().await.is_some() {} }).await.unwrap();
    timeout(PATIENCE, session.lost()).await.unwrap();
    for error in [
        store.get(&path("a")).await.unwrap_err(),
        store.put(&path("a"), vec![], None).await.unwrap_err(),
        store.list(&Path::root()).await.unwrap_err(),
        store.open_session(TTL).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    }
    assert!(timeout(PATIENCE, store.watch(&Path::root()).next()).await.unwrap().is_none());
}
