//! The battery over a real ZooKeeper, and what only a store across a network goes through.

mod ensemble;
mod server;

use std::collections::BTreeMap;

use tokio::time::{Instant, sleep, timeout};

use self::ensemble::Ensemble;
use self::server::Server;
use super::*;
use crate::store::ErrorKind;
use crate::store::contract::{self, Replica, path};
use crate::store::{SnapshotCause, StoreUrl, WatchEvent, open, outages};

const PATIENCE: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(4);

fn store(url: StoreUrl) -> Arc<dyn Store> {
    open(&StoreConfig::new(url), &Metrics::default()).unwrap()
}

async fn truth(store: &dyn Store, directory: &Path) -> BTreeMap<Path, (Vec<u8>, Revision)> {
    let listing = store.list(directory).await.unwrap();
    listing.entries.into_iter().map(|e| (e.path, (e.value, e.revision))).collect()
}

/// A server that was just started may not listen yet.
async fn until_ok<T>(mut call: impl AsyncFnMut() -> Result<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zookeeper_keeps_every_promise() {
    let Some(server) = Server::start() else { return };
    server.ready().await;
    let url = server.url();
    contract::every_promise(|name| {
        let config = StoreConfig { prefix: Some(format!("/tests/{name}")), ..StoreConfig::new(url.clone()) };
        async move { open(&config, &Metrics::default()).unwrap() }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zookeeper_survives_every_outage() {
    let Some(server) = Server::start() else { return };
    server.ready().await;
    outages::every_outage(server).await;
}

#[async_trait]
impl outages::Server for Server {
    const SCHEME: &str = "zookeeper";

    fn port(&self) -> u16 {
        self.port()
    }

    fn kill(&mut self) {
        self.kill();
    }

    fn run(&mut self) {
        self.run();
    }

    /// ZooKeeper keeps no history that it could forget.
    async fn forget(&self, _now: Revision) {}
}

/// Of calls while a leader is elected anew: followers wait three ticks for one that stands still.
const ELECTED: Duration = Duration::from_secs(6);

#[tokio::test]
async fn each_server_killed_in_turn_fails_no_call_for_long_and_loses_no_session() {
    let Some(ensemble) = Ensemble::start(3) else { return };
    outages::each_member_killed(ensemble, ELECTED).await;
}

#[tokio::test]
async fn each_server_frozen_in_turn_fails_no_call_for_long_and_loses_no_session() {
    let Some(ensemble) = Ensemble::start(3) else { return };
    outages::each_member_frozen(ensemble, ELECTED).await;
}

#[tokio::test]
async fn an_unreachable_ensemble_opens_at_once_and_each_call_says_what_to_check() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let started = Instant::now();
    let store = store(format!("zookeeper://{free}").parse().unwrap());
    let mut watch = store.watch(&Path::root());
    for error in [
        store.get(&path("a")).await.unwrap_err(),
        store.put(&path("a"), vec![], None).await.unwrap_err(),
        store.open_session(TTL).await.unwrap_err(),
        store.list(&Path::root()).await.unwrap_err(),
    ] {
        assert_eq!((error.kind, error.may_have_applied), (ErrorKind::Unavailable, false), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&free.to_string()) && text.contains("check that ZooKeeper listens there"),
            "{text}"
        );
    }
    assert!(started.elapsed() < Duration::from_secs(3), "a refused connection needs no waiting");
    let WatchEvent::Disconnected(error) = watch.next().await.unwrap() else { panic!("there is no store") };
    assert!(error.to_string().contains("check that ZooKeeper listens there"), "{error}");
    assert!(timeout(Duration::from_millis(500), watch.next()).await.is_err(), "told once");
    store.shutdown().await;
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_dropped_watch_and_a_dropped_session_leave_no_task_behind() {
    let Some(server) = Server::start() else { return };
    server.ready().await;
    let config = StoreConfig::new(server.url());
    let StoreUrl::ZooKeeper { endpoints, .. } = &config.url else { panic!("{}", config.url) };
    let store = ZooKeeperStore::open(&config, endpoints, Metrics::default()).unwrap();
    let mut watch = store.watch(&Path::root());
    watch.next().await;
    let unread = store.watch(&Path::root());
    let session = store.open_session(TTL).await.unwrap();
    assert!(Arc::strong_count(&store.shared) > 1);
    drop((watch, unread, session));
    let ended = async {
        while Arc::strong_count(&store.shared) > 1 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, ended).await.unwrap();
}

#[tokio::test]
async fn wiped_data_is_a_reset_and_the_session_is_lost() {
    let Some(mut server) = Server::start() else { return };
    server.ready().await;
    let store = store(server.url());
    let session = store.open_session(TTL).await.unwrap();
    store.put(&path("a"), b"1".to_vec(), Some(&session)).await.unwrap();
    store.put(&path("b"), b"1".to_vec(), None).await.unwrap();
    let mut replica = Replica::of(&*store, &Path::root());
    replica.until_paths(&["a", "b"]).await;
    server.kill();
    server.wipe();
    server.run();
    replica.until_paths(&[]).await;
    assert_eq!(replica.causes, [SnapshotCause::First, SnapshotCause::Reset]);
    timeout(PATIENCE, session.lost()).await.unwrap();
    store.put(&path("c"), vec![], None).await.unwrap();
    replica.until_paths(&["c"]).await;
}

#[tokio::test]
async fn a_session_that_cannot_be_renewed_is_lost_when_its_ttl_is_over_and_not_before() {
    let Some(mut server) = Server::start() else { return };
    server.ready().await;
    let store = store(server.url());
    let session = store.open_session(TTL).await.unwrap();
    assert_eq!(session.ttl(), TTL);
    store.put(&path("a"), vec![], Some(&session)).await.unwrap();
    server.kill();
    let killed = Instant::now();
    let lost = timeout(PATIENCE, session.lost()).await.unwrap();
    // The last renewal was at most a third of the TTL before.
    assert!(killed.elapsed() >= TTL * 2 / 3 - Duration::from_millis(100), "{:?}", killed.elapsed());
    assert!(killed.elapsed() <= TTL + Duration::from_millis(200), "{:?}", killed.elapsed());
    assert!(lost.to_string().contains("not renewed within its TTL of 4s"), "{lost}");
    assert!(!session.is_alive());
    let error = store.put(&path("a"), vec![], Some(&session)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::SessionLost);
}

#[tokio::test]
async fn a_server_that_stands_still_for_as_long_as_a_short_session_is_told_of() {
    let Some(server) = Server::start() else { return };
    server.ready().await;
    let store = store(server.url());
    let mut replica = Replica::of(&*store, &Path::root());
    store.put(&path("a"), vec![], None).await.unwrap();
    replica.until_paths(&["a"]).await;
    server.signal("-STOP");
    replica.until("silent", |replica| replica.silent == 1).await;
    assert_eq!(replica.stalled, 0);
    replica.until("told", |replica| replica.stalled == 1).await;
    server.signal("-CONT");
    until_ok(async || store.put(&path("b"), vec![], None).await).await;
    replica.until_paths(&["a", "b"]).await;
}

#[tokio::test]
async fn what_a_user_wrote_is_closed_to_others_and_they_are_told_why() {
    let Some(server) = Server::start() else { return };
    server.ready().await;
    let user = |name: &str, password: &str| StoreConfig {
        username: Some(name.to_owned()),
        password: Some(password.to_owned()),
        ..StoreConfig::new(server.url())
    };
    let metrics = Metrics::default();
    let owner = open(&user("plexus", "secret"), &metrics).unwrap();
    let session = owner.open_session(TTL).await.unwrap();
    owner.put(&path("a"), b"1".to_vec(), Some(&session)).await.unwrap();
    owner.put(&path("instances/web/b"), b"1".to_vec(), None).await.unwrap();
    for config in [user("plexus", "wrong"), StoreConfig::new(server.url())] {
        let refused = open(&config, &metrics).unwrap();
        for error in [
            refused.put(&path("c"), vec![], None).await.unwrap_err(),
            refused.get(&path("a")).await.unwrap_err(),
            refused.delete(&path("instances/web/b")).await.unwrap_err(),
        ] {
            assert_eq!((error.kind, error.may_have_applied), (ErrorKind::Denied, false), "{error}");
            assert!(error.to_string().contains("`username`"), "{error}");
        }
        let mut watch = refused.watch(&Path::root());
        let Some(WatchEvent::Disconnected(error)) = watch.next().await else { panic!("it must be refused") };
        assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    }
    let again = open(&user("plexus", "secret"), &metrics).unwrap();
    assert_eq!(again.list(&Path::root()).await.unwrap().entries.len(), 2);
}

#[tokio::test]
async fn directories_that_nothing_stands_in_any_more_go_and_what_is_not_ours_is_left_out() {
    let Some(server) = Server::start() else { return };
    server.ready().await;
    let store = store(server.url());
    let client = server.client().await;
    store.put(&path("instances/web/a"), vec![], None).await.unwrap();
    assert!(client.check_stat("/plexus/v1/instances/web/a=").await.unwrap().is_some());
    let anyone = zookeeper_client::CreateMode::Persistent.with_acls(zookeeper_client::Acls::anyone_all());
    for strange in ["/plexus/v1/instances/web/%zz=", "/plexus/v1/instances/empty"] {
        client.create(strange, b"", &anyone).await.unwrap();
    }
    let mut replica = Replica::of(&*store, &Path::root());
    replica.until_paths(&["instances/web/a"]).await;
    assert_eq!(store.list(&path("instances")).await.unwrap().entries.len(), 1);
    client.delete("/plexus/v1/instances/web/%zz=", None).await.unwrap();
    store.delete(&path("instances/web/a")).await.unwrap();
    replica.until_paths(&[]).await;
    let gone = async {
        while client.check_stat("/plexus/v1/instances/web").await.unwrap().is_some() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    store.put(&path("instances/web/a"), vec![], None).await.unwrap();
    replica.until_paths(&["instances/web/a"]).await;
    assert_eq!(replica.entries, truth(&*store, &Path::root()).await);
}
