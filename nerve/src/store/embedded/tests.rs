//! The battery over both forms of the embedded store, and what only it does: its file.

use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::*;
use crate::store::contract::{self, Replica, path};

const TIMEOUT: Duration = Duration::from_secs(2);

fn open(file: Option<&FilePath>) -> std::result::Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(file, TIMEOUT, Metrics::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_in_memory_keeps_every_promise() {
    contract::every_promise(|_| async { Arc::new(open(None).unwrap()) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_in_a_file_keeps_every_promise() {
    let directory = TempDir::new().unwrap();
    let next = AtomicU32::new(0);
    contract::every_promise(|_| {
        let file = directory.path().join(next.fetch_add(1, Ordering::Relaxed).to_string());
        async move { Arc::new(open(Some(&file)).unwrap()) as Arc<dyn Store> }
    })
    .await;
}

#[tokio::test]
async fn a_restart_keeps_durable_entries_and_goes_on_with_later_revisions() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("store.redb");
    let store = open(Some(&file)).unwrap();
    let session = store.open_session(Duration::from_secs(10)).await.unwrap();
    let kept = store.put(&path("kept"), b"1".to_vec(), None).await.unwrap();
    store.put(&path("deleted"), b"1".to_vec(), None).await.unwrap();
    store.put(&path("leased-later"), b"1".to_vec(), None).await.unwrap();
    store.delete(&path("deleted")).await.unwrap();
    store.put(&path("leased"), b"1".to_vec(), Some(&session)).await.unwrap();
    let last = store.put(&path("leased-later"), b"2".to_vec(), Some(&session)).await.unwrap();
    store.shutdown().await;
    drop(store);

    let store = open(Some(&file)).unwrap();
    let listing = store.list(&Path::root()).await.unwrap();
    assert_eq!(listing.entries, [Entry { path: path("kept"), value: b"1".to_vec(), revision: kept }]);
    assert!(listing.revision > last);
    assert!(store.put(&path("a"), vec![], None).await.unwrap() > listing.revision);
    store.shutdown().await;
}

#[tokio::test]
async fn what_was_acknowledged_is_in_the_file_though_nobody_closed_it() {
    let directory = TempDir::new().unwrap();
    let (file, copy) = (directory.path().join("a"), directory.path().join("b"));
    let store = open(Some(&file)).unwrap();
    store.put(&path("kept"), b"1".to_vec(), None).await.unwrap();
    // What a power cut leaves behind: the bytes as they are, the database never closed.
    std::fs::copy(&file, &copy).unwrap();
    let after = open(Some(&copy)).unwrap();
    assert_eq!(after.get(&path("kept")).await.unwrap().unwrap().value, b"1");
}

#[tokio::test]
async fn a_write_whose_caller_went_away_is_in_memory_and_file_or_in_neither() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("store.redb");
    let store = open(Some(&file)).unwrap();
    for i in 0..50 {
        let (at, wait) = (path(&format!("a/{i}")), Duration::from_micros(i * 20));
        drop(tokio::time::timeout(wait, store.put(&at, vec![], None)).await);
    }
    // This one is behind all of them.
    store.put(&path("last"), vec![], None).await.unwrap();
    let before = store.list(&Path::root()).await.unwrap().entries;
    store.shutdown().await;
    drop(store);
    assert_eq!(open(Some(&file)).unwrap().list(&Path::root()).await.unwrap().entries, before);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_says_why_and_what_to_do() {
    let directory = TempDir::new().unwrap();
    let [held, garbage, cut] = ["held", "garbage", "cut"].map(|name| directory.path().join(name));
    let holder = open(Some(&held)).unwrap();
    holder.put(&path("a"), vec![1; 100_000], None).await.unwrap();
    std::fs::write(&garbage, [7; 100_000]).unwrap();
    std::fs::write(&cut, &std::fs::read(&held).unwrap()[..5000]).unwrap();
    for (file, says) in [
        (held.as_path(), "another process"),
        (&garbage, "no database"),
        (&cut, "cut"),
        (directory.path(), "directory"),
        (&directory.path().join("missing/store.redb"), "check that its directory exists"),
    ] {
        let message = open(Some(file)).unwrap_err().to_string();
        assert!(message.contains(says) && message.contains(&*file.display().to_string()), "{message}");
    }
}

#[tokio::test]
async fn a_watcher_that_fell_out_of_the_history_gets_a_new_snapshot() {
    let store = open(None).unwrap();
    let mut replica = Replica::of(&store, &Path::root());
    replica.step().await;
    // More than the queue holds, so that the feed waits; then more than the history holds.
    for i in 0..(WATCH_QUEUE + state::HISTORY_CHANGES + 100) {
        store.put(&path("a"), i.to_string().into_bytes(), None).await.unwrap();
        if i < WATCH_QUEUE + 2 {
            tokio::task::yield_now().await;
        }
    }
    store.put(&path("b"), vec![], None).await.unwrap();
    replica.until_paths(&["a", "b"]).await;
    assert_eq!(replica.causes, [SnapshotCause::First, SnapshotCause::Resync]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_session_ends_after_its_ttl_to_the_millisecond() {
    let store = open(None).unwrap();
    let session = store.open_session(Duration::from_secs(10)).await.unwrap();
    store.put(&path("a"), vec![], Some(&session)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    drop(session);
    tokio::time::sleep(Duration::from_millis(9990)).await;
    assert!(store.get(&path("a")).await.unwrap().is_some());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(store.get(&path("a")).await.unwrap().is_none());
}

#[tokio::test]
async fn dropping_a_watch_or_closing_a_session_ends_its_task() {
    let store = open(None).unwrap();
    let mut watch = store.watch(&Path::root());
    watch.next().await;
    let session = store.open_session(Duration::from_secs(10)).await.unwrap();
    drop(watch);
    store.close_session(session).await.unwrap();
    let ended = async {
        while Arc::strong_count(&store.shared) > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
}

/// What a store in this file, or in memory, gives away; and what the one that goes on has.
async fn handed_over(file: Option<&FilePath>) -> (EmbeddedStore, EmbeddedStore, Session) {
    let old = open(file).unwrap();
    let session = old.open_session(Duration::from_secs(1)).await.unwrap();
    old.put(&path("durable"), b"1".to_vec(), None).await.unwrap();
    old.put(&path("leased"), b"2".to_vec(), Some(&session)).await.unwrap();
    let image = old.hand_over().await.unwrap().unwrap();
    let new = EmbeddedStore::open_inherited(file, TIMEOUT, Metrics::default(), Some(&image)).unwrap();
    (old, new, session)
}

#[tokio::test]
async fn what_is_handed_over_goes_on_in_the_other_process_to_the_letter() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("store.redb");
    for file in [None, Some(file.as_path())] {
        let (old, new, session) = handed_over(file).await;
        let (before, after) =
            (old.list(&Path::root()).await.unwrap(), new.list(&Path::root()).await.unwrap());
        assert_eq!(before.entries, after.entries);
        assert!(after.revision >= before.revision);
        let refused = old.put(&path("late"), vec![], None).await.unwrap_err();
        assert!(refused.to_string().contains("another process goes on with it"), "{refused}");
        let adopted = new.adopt_session(session.id(), session.ttl()).await.unwrap();
        drop((session, old));
        assert!(tokio::time::timeout(adopted.ttl() * 2, adopted.lost()).await.is_err());
        assert!(new.put(&path("late"), vec![], Some(&adopted)).await.unwrap() > after.revision);
        new.close_session(adopted).await.unwrap();
        assert_eq!(
            new.list(&Path::root())
                .await
                .unwrap()
                .entries
                .iter()
                .map(|e| e.path.as_str())
                .collect::<Vec<_>>(),
            ["durable"]
        );
        new.shutdown().await;
    }
}

#[tokio::test]
async fn what_is_taken_back_goes_on_where_it_was() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("store.redb");
    for file in [None, Some(file.as_path())] {
        let (old, new, session) = handed_over(file).await;
        new.shutdown().await;
        drop(new);
        old.take_back().await.unwrap();
        old.put(&path("leased"), b"3".to_vec(), Some(&session)).await.unwrap();
        old.put(&path("durable"), b"3".to_vec(), None).await.unwrap();
        assert_eq!(old.list(&Path::root()).await.unwrap().entries.len(), 2);
        old.shutdown().await;
    }
}

#[test]
fn what_cannot_be_read_is_refused_before_the_file_is_touched() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("store.redb");
    for (text, why) in [
        ("{", "cannot be read"),
        (r#"{"format":9,"revision":1,"last_lease":0,"leases":[],"entries":[]}"#, "format 9"),
    ] {
        let opened =
            EmbeddedStore::open_inherited(Some(&file), TIMEOUT, Metrics::default(), Some(text.as_bytes()));
        let error = opened.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(!file.exists());
    }
}
