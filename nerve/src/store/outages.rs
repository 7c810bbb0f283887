//! What every store that is a server promises when it goes away: one battery, run over each.
//!
//! The embedded store lives and dies with its process: it has no line that could be cut, and its own tests reopen its file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::contract::{Replica, path};
use super::gate::Gate;
use super::{
    ErrorKind, Expect, Metrics, Path, Result, Revision, SnapshotCause, Store, StoreConfig, StoreUrl, open,
};

const TTL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);

/// A real server, and what can be done to it.
#[async_trait]
pub(super) trait Server: Send {
    /// What its URLs begin with.
    const SCHEME: &str;

    /// Where it listens.
    fn port(&self) -> u16;

    /// SIGKILL.
    fn kill(&mut self);

    /// Starts it while it does not run, with the data that it had.
    fn run(&mut self);

    /// Makes it forget how its data came to be, up to now.
    async fn forget(&self, now: Revision);
}

/// Several real servers that keep one store, and what can be done to each.
#[async_trait]
pub(super) trait Members: Send + Sync {
    /// All of them.
    fn url(&self) -> StoreUrl;

    /// SIGKILL.
    fn kill(&mut self, i: usize);

    /// Starts one that does not run, with the data that it had.
    fn run(&mut self, i: usize);

    /// `-STOP` or `-CONT`.
    fn signal(&self, i: usize, signal: &str);

    /// Waits until all of them serve.
    async fn ready(&self);
}

/// Runs the battery, one outage after the other.
pub(super) async fn every_outage<S: Server>(mut server: S) {
    a_restart_costs_neither_entries_nor_sessions(&mut server).await;
    behind_a_cut_line_only_the_session_is_lost(&server, false).await;
    behind_a_cut_line_only_the_session_is_lost(&server, true).await;
}

fn store<S: Server>(port: u16, prefix: &str) -> Arc<dyn Store> {
    let url: StoreUrl = format!("{}://127.0.0.1:{port}/{prefix}", S::SCHEME).parse().unwrap();
    open(&StoreConfig::new(url), &Metrics::default()).unwrap()
}

async fn truth(store: &dyn Store, directory: &Path) -> BTreeMap<Path, (Vec<u8>, Revision)> {
    let listing = store.list(directory).await.unwrap();
    listing.entries.into_iter().map(|entry| (entry.path, (entry.value, entry.revision))).collect()
}

/// Whoever has just started may not listen yet.
async fn until_ok<T>(mut call: impl AsyncFnMut() -> Result<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => {
                assert!(error.kind == ErrorKind::Unavailable && Instant::now() < end, "{error}");
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn a_restart_costs_neither_entries_nor_sessions<S: Server>(server: &mut S) {
    // Long enough for whatever the server needs to start.
    let ttl = 10 * TTL;
    let store = store::<S>(server.port(), "restart");
    let session = store.open_session(ttl).await.unwrap();
    store.put(&path("leased"), b"1".to_vec(), Some(&session)).await.unwrap();
    store.put(&path("durable"), b"1".to_vec(), None).await.unwrap();
    let mut replica = Replica::of(&*store, &Path::root());
    replica.until_paths(&["durable", "leased"]).await;
    let before = truth(&*store, &Path::root()).await;
    server.kill();
    replica.until("told", |replica| replica.disconnected == 1).await;
    let error = store.get(&path("durable")).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_applied), (ErrorKind::Unavailable, false), "{error}");
    let killed = Instant::now();
    server.run();
    until_ok(async || store.get(&path("durable")).await).await;
    println!("{}: a call succeeded {:?} after the restart", S::SCHEME, killed.elapsed());
    assert_eq!(truth(&*store, &Path::root()).await, before);
    // Its session goes on at the new process, and can be written under.
    until_ok(async || store.put(&path("later"), b"2".to_vec(), Some(&session)).await).await;
    replica.until_paths(&["durable", "later", "leased"]).await;
    assert_eq!(replica.entries, truth(&*store, &Path::root()).await);
    assert_eq!(replica.causes[0], SnapshotCause::First);
    assert!(replica.causes[1..].iter().all(|cause| *cause == SnapshotCause::Resync), "{:?}", replica.causes);
    assert!(session.is_alive());
    store.close_session(session).await.unwrap();
    replica.until_paths(&["durable"]).await;
    store.shutdown().await;
}

/// The line to one of two clients is cut for twice the TTL, and the server perhaps forgets meanwhile what happened.
async fn behind_a_cut_line_only_the_session_is_lost<S: Server>(server: &S, forgets: bool) {
    let gate = Gate::to(server.port()).await;
    let prefix = if forgets { "forgotten" } else { "cut" };
    let (far, near) = (store::<S>(gate.port, prefix), store::<S>(server.port(), prefix));
    let session = far.open_session(TTL).await.unwrap();
    let ttl = session.ttl();
    far.put(&path("leased"), b"1".to_vec(), Some(&session)).await.unwrap();
    near.put(&path("old"), b"1".to_vec(), None).await.unwrap();
    let (mut there, mut here) = (Replica::of(&*far, &Path::root()), Replica::of(&*near, &Path::root()));
    there.until_paths(&["leased", "old"]).await;
    here.until_paths(&["leased", "old"]).await;
    gate.cut();
    let cut = Instant::now();
    there.until("told", |replica| replica.disconnected == 1).await;
    timeout(PATIENCE, session.lost()).await.unwrap();
    // Whoever cannot renew knows it no later than everyone else.
    assert!(cut.elapsed() <= ttl + Duration::from_millis(500), "{:?}", cut.elapsed());
    let error = far.put(&path("leased"), b"2".to_vec(), Some(&session)).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_applied), (ErrorKind::SessionLost, false), "{error}");
    here.until_paths(&["old"]).await;
    near.delete(&path("old")).await.unwrap();
    let now = near.put(&path("new"), b"2".to_vec(), None).await.unwrap();
    if forgets {
        server.forget(now).await;
    }
    let rest = timeout_at(cut + 2 * ttl, async {
        loop {
            there.step().await
        }
    });
    assert!(rest.await.is_err() && there.disconnected == 1, "told once");
    assert_eq!(there.entries.len(), 2, "the last known good is kept");
    gate.open();
    there.until_paths(&["new"]).await;
    if forgets {
        assert_eq!(there.causes, [SnapshotCause::First, SnapshotCause::Resync]);
    }
    let again = until_ok(async || far.open_session(TTL).await).await;
    far.put(&path("leased"), b"3".to_vec(), Some(&again)).await.unwrap();
    for replica in [&mut there, &mut here] {
        replica.until_paths(&["leased", "new"]).await;
        assert_eq!(replica.entries, truth(&*near, &Path::root()).await);
    }
    assert_eq!(here.disconnected, 0);
    far.close_session(again).await.unwrap();
    here.until_paths(&["new"]).await;
    far.shutdown().await;
    near.shutdown().await;
}

/// How one kind of call fared.
#[derive(Debug, Default)]
struct Fared {
    calls: u64,
    failures: u64,
    /// The longest run of failures: from the start of its first call to the end of its last.
    failing: Duration,
    /// The same up to the end of the call that succeeded after it, which may have waited for an election.
    until_served: Duration,
}

async fn fares<T, F: Future<Output = Result<T>>>(until: Instant, mut call: impl FnMut(u64) -> F) -> Fared {
    let mut fared = Fared::default();
    let mut down = None;
    while Instant::now() < until || down.is_some() {
        let started = Instant::now();
        fared.calls += 1;
        match call(fared.calls).await {
            Ok(_) => {
                if let Some(since) = down.take() {
                    fared.until_served = fared.until_served.max(Instant::now() - since);
                }
            }
            Err(error) => {
                println!("after {:?}: {error}", started.elapsed());
                fared.failures += 1;
                fared.failing = fared.failing.max(Instant::now() - *down.get_or_insert(started));
            }
        }
        assert!(started < until + PATIENCE, "no call succeeds any more");
        sleep(Duration::from_millis(20)).await;
    }
    fared
}

/// Kills three members in turn and starts them again; no kind of call fails for longer than `elected`.
pub(super) async fn each_member_killed<M: Members>(members: M, elected: Duration) {
    survives_each_member("killed", members, elected, M::kill, M::run).await;
}

/// Stops the clocks of three members in turn.
pub(super) async fn each_member_frozen<M: Members>(members: M, elected: Duration) {
    let (freeze, thaw) =
        (|members: &mut M, i| members.signal(i, "-STOP"), |members: &mut M, i| members.signal(i, "-CONT"));
    survives_each_member("frozen", members, elected, freeze, thaw).await;
}

/// Does `harm` to three members in turn while calls, a session and a watch go on.
async fn survives_each_member<M: Members>(
    what: &str,
    mut members: M,
    elected: Duration,
    harm: impl Fn(&mut M, usize),
    heal: impl Fn(&mut M, usize),
) {
    members.ready().await;
    let store = open(&StoreConfig::new(members.url()), &Metrics::default()).unwrap();
    let session = store.open_session(4 * TTL).await.unwrap();
    let mut replica = Replica::of(&*store, &path("a"));
    let until = Instant::now() + Duration::from_secs(16);
    let (store, session) = (&store, &session);
    let puts = fares(until, |i| async move {
        store.put(&path(&format!("a/{}", i % 10)), i.to_string().into_bytes(), Some(session)).await
    });
    let gets = fares(until, |_| async move { store.get(&path("a/1")).await });
    let lists = fares(until, |_| async move { store.list(&path("a")).await });
    let swaps = fares(until, |i| async move {
        let found = store.get(&path("swap")).await?;
        let expect = found.map_or(Expect::Absent, |entry| Expect::Unchanged(entry.revision));
        store.compare_and_swap(&path("swap"), expect, Some(i.to_string().into_bytes()), None).await
    });
    let harms = async {
        for i in 0..3 {
            sleep(Duration::from_secs(1)).await;
            harm(&mut members, i);
            sleep(Duration::from_secs(4)).await;
            heal(&mut members, i);
            members.ready().await;
        }
    };
    let watched = async {
        while Instant::now() < until {
            drop(timeout_at(until, replica.step()).await);
        }
    };
    let (puts, gets, lists, swaps, (), ()) = tokio::join!(puts, gets, lists, swaps, harms, watched);
    for (kind, fared) in [("put", puts), ("get", gets), ("list", lists), ("swap", swaps)] {
        println!("{what}: {kind}: {fared:?}");
        assert!(fared.failing <= elected && fared.calls > 20, "{kind}: {fared:?}");
    }
    assert!(session.is_alive());
    store.put(&path("a/last"), vec![], Some(session)).await.unwrap();
    replica.until("the last", |replica| replica.entries.contains_key(&path("a/last"))).await;
    assert_eq!(replica.entries, truth(&**store, &path("a")).await);
    println!(
        "{what}: the watch was interrupted {} times, snapshots {:?}",
        replica.disconnected, replica.causes
    );
}
