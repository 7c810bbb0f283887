//! The battery over a real etcd, and what only a store across a network goes through.

mod server;

use std::collections::BTreeMap;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub(crate) use self::server::Cluster;
use self::server::store;
use super::watch::STALL;
use super::*;
use crate::store::MAX_VALUE_BYTES;
use crate::store::contract::{self, Replica, path};
use crate::store::gate::Gate;
use crate::store::{SnapshotCause, StoreUrl, WatchEvent, open, outages};

const PATIENCE: Duration = Duration::from_secs(20);
/// What the registrar will use.
const TTL: Duration = Duration::from_secs(10);

fn with_prefix(url: &StoreUrl, prefix: &str) -> StoreConfig {
    StoreConfig { prefix: Some(prefix.to_owned()), ..StoreConfig::new(url.clone()) }
}

async fn truth(store: &dyn Store, directory: &Path) -> BTreeMap<Path, (Vec<u8>, Revision)> {
    let listing = store.list(directory).await.unwrap();
    listing.entries.into_iter().map(|e| (e.path, (e.value, e.revision))).collect()
}

/// The server is new: a first call may meet it before it listens.
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

/// What etcd answers: checking a password takes it so much processor time that a call may end before, on a busy machine.
async fn answer<T>(mut call: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Err(error) if error.kind == ErrorKind::Unavailable && Instant::now() < end => {}
            answer => return answer,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_every_promise() {
    let Some(cluster) = Cluster::start(1) else { return };
    cluster.ready().await;
    let url = cluster.url();
    contract::every_promise(|name| {
        let config = with_prefix(&url, name);
        async move { open(&config, &Metrics::default()).unwrap() }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_survives_every_outage() {
    let Some(cluster) = Cluster::start(1) else { return };
    cluster.ready().await;
    outages::every_outage(cluster).await;
}

#[async_trait]
impl outages::Server for Cluster {
    const SCHEME: &str = "etcd";

    fn port(&self) -> u16 {
        self.port(0)
    }

    fn kill(&mut self) {
        self.kill(0);
    }

    fn run(&mut self) {
        self.run(0);
    }

    async fn forget(&self, now: Revision) {
        let revision = i64::try_from(now.0).unwrap();
        self.client(0).await.compact(revision, None).await.unwrap();
    }
}

#[tokio::test]
async fn an_unreachable_store_opens_at_once_and_each_call_says_what_to_check() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let started = Instant::now();
    let store = store(format!("etcd://{free}").parse().unwrap());
    let mut watch = store.watch(&Path::root());
    for error in [
        store.get(&path("a")).await.unwrap_err(),
        store.put(&path("a"), vec![], None).await.unwrap_err(),
        store.open_session(TTL).await.unwrap_err(),
    ] {
        assert_eq!((error.kind, error.may_have_applied), (ErrorKind::Unavailable, false), "{error}");
        let text = error.to_string();
        assert!(text.contains(&free.to_string()) && text.contains("check that etcd listens there"), "{text}");
    }
    assert!(started.elapsed() < Duration::from_secs(2), "a refused connection needs no waiting");
    let WatchEvent::Disconnected(error) = watch.next().await.unwrap() else { panic!("there is no store") };
    assert!(error.to_string().contains("check that etcd listens there"), "{error}");
    assert!(timeout(Duration::from_millis(500), watch.next()).await.is_err(), "told once");
    store.shutdown().await;
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_watch_and_a_session_that_were_dropped_leave_no_task_behind() {
    let Some(cluster) = Cluster::start(1) else { return };
    cluster.ready().await;
    let config = StoreConfig::new(cluster.url());
    let StoreUrl::Etcd { endpoints, .. } = &config.url else { panic!("{}", config.url) };
    let store = EtcdStore::open(&config, endpoints, false, Metrics::default()).unwrap();
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
async fn after_a_restart_of_the_server_the_watch_resumes_and_the_session_lives() {
    let Some(mut cluster) = Cluster::start(1) else { return };
    cluster.ready().await;
    let store = store(cluster.url());
    let session = store.open_session(TTL).await.unwrap();
    store.put(&path("a"), b"1".to_vec(), Some(&session)).await.unwrap();
    let mut replica = Replica::of(&*store, &Path::root());
    replica.until_paths(&["a"]).await;
    cluster.kill(0);
    replica.until("told", |replica| replica.disconnected == 1).await;
    cluster.run(0);
    let back = Instant::now();
    until_ok(async || store.put(&path("b"), b"2".to_vec(), None).await).await;
    println!("after a restart: a put succeeded after {:?}", back.elapsed());
    let put = Instant::now();
    replica.until_paths(&["a", "b"]).await;
    println!("after a restart: the watch was back after another {:?}", put.elapsed());
    assert!(put.elapsed() < Duration::from_millis(2500), "{:?}", put.elapsed());
    assert_eq!((replica.causes.as_slice(), replica.resumed), ([SnapshotCause::First].as_slice(), 1));
    assert!(timeout(Duration::from_secs(6), session.lost()).await.is_err());
    assert_eq!(replica.entries, truth(&*store, &Path::root()).await);
}

#[tokio::test]
async fn what_happened_behind_a_cut_line_arrives_by_resuming_or_if_compacted_by_a_snapshot() {
    let Some(cluster) = Cluster::start(1) else { return };
    cluster.ready().await;
    let gate = Gate::to(cluster.port(0)).await;
    let (far, near) = (store(gate.url("etcd")), store(cluster.url()));
    let mut replica = Replica::of(&*far, &path("a"));
    near.put(&path("a/1"), b"1".to_vec(), None).await.unwrap();
    replica.until_paths(&["a/1"]).await;
    for (round, compact) in [false, true].into_iter().enumerate() {
        gate.cut();
        replica.until("told", |replica| replica.disconnected == round + 1).await;
        near.delete(&path("a/1")).await.unwrap();
        near.put(&path("a/2"), b"2".to_vec(), None).await.unwrap();
        let last = near.put(&path("a/3"), vec![], None).await.unwrap();
        if compact {
            let revision = i64::try_from(last.0).unwrap();
            cluster.client(0).await.compact(revision, None).await.unwrap();
        }
        gate.open();
        replica.until_paths(&["a/2", "a/3"]).await;
        assert_eq!(replica.entries, truth(&*near, &path("a")).await);
        near.put(&path("a/1"), b"1".to_vec(), None).await.unwrap();
        near.delete(&path("a/2")).await.unwrap();
        near.delete(&path("a/3")).await.unwrap();
        replica.until_paths(&["a/1"]).await;
    }
    assert_eq!(replica.causes, [SnapshotCause::First, SnapshotCause::Resync]);
    assert_eq!(replica.resumed, 1);
}

#[tokio::test]
async fn wiped_data_is_a_reset_and_the_session_is_lost_at_once() {
    let Some(mut cluster) = Cluster::start(1) else { return };
    cluster.ready().await;
    let store = store(cluster.url());
    let session = store.open_session(Duration::from_secs(6)).await.unwrap();
    for name in ["a", "b", "c"] {
        store.put(&path(name), b"1".to_vec(), Some(&session)).await.unwrap();
    }
    let mut replica = Replica::of(&*store, &Path::root());
    replica.until_paths(&["a", "b", "c"]).await;
    cluster.kill(0);
    replica.until("told", |replica| replica.disconnected == 1).await;
    cluster.wipe(0);
    cluster.run(0);
    replica.until("a reset", |replica| replica.causes.last() == Some(&SnapshotCause::Reset)).await;
    assert!(replica.entries.is_empty());
    let lost = timeout(PATIENCE, session.lost()).await.unwrap();
    assert!(lost.to_string().contains("does not exist"), "{lost}");
    until_ok(async || store.put(&path("d"), b"1".to_vec(), None).await).await;
    replica.until_paths(&["d"]).await;
}

#[tokio::test]
async fn a_session_without_a_store_is_lost_after_its_ttl_and_not_before() {
    let Some(mut cluster) = Cluster::start(1) else { return };
    cluster.ready().await;
    let store = store(cluster.url());
    let session = store.open_session(Duration::from_secs(3)).await.unwrap();
    cluster.kill(0);
    let killed = Instant::now();
    let lost = timeout(PATIENCE, session.lost()).await.unwrap();
    // The last renewal was at most a third of the TTL before.
    assert!(killed.elapsed() >= Duration::from_millis(1900), "{:?}", killed.elapsed());
    assert!(killed.elapsed() <= Duration::from_millis(3200), "{:?}", killed.elapsed());
    assert!(lost.to_string().contains("not renewed within its TTL of 3s"), "{lost}");
    assert!(!session.is_alive());
    let error = store.put(&path("a"), vec![], Some(&session)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::SessionLost);
}

#[tokio::test]
async fn an_idle_watch_stays_connected_and_a_hundred_thousand_entries_are_listed() {
    let Some(cluster) = Cluster::start(1) else { return };
    cluster.ready().await;
    let store = store(cluster.url());
    let mut idle = Replica::of(&*store, &path("idle"));
    idle.step().await;
    let started = Instant::now();
    let mut client = cluster.client(0).await;
    for thousand in 0..100 {
        // etcd takes 128 operations in a transaction.
        for hundred in 0..10 {
            let base = thousand * 1000 + hundred * 100;
            let key = |i: u32| format!("/plexus/v1/many/{:06}", base + i);
            let puts: Vec<_> = (0..100).map(|i| TxnOp::put(key(i), vec![b'v'; 200], None)).collect();
            client.txn(Txn::new().and_then(puts)).await.unwrap();
        }
    }
    println!("100,000 entries written in {:?}", started.elapsed());
    let listing = Instant::now();
    let mut replica = Replica::of(&*store, &path("many"));
    replica.step().await;
    println!("100,000 entries in a snapshot in {:?}", listing.elapsed());
    assert_eq!(replica.entries.len(), 100_000);
    // Large values: pages become smaller by themselves.
    for i in 0..40 {
        store.put(&path(&format!("large/{i}")), vec![b'v'; MAX_VALUE_BYTES], None).await.unwrap();
    }
    assert_eq!(store.list(&path("large")).await.unwrap().entries.len(), 40);
    let quiet = Duration::from_secs(8).saturating_sub(started.elapsed());
    // That a server so busy was silent for a while may be told.
    let news = async {
        loop {
            let heard = |idle: &Replica| idle.silent + idle.stalled + idle.resumed;
            let before = heard(&idle);
            idle.step().await;
            if heard(&idle) == before {
                return;
            }
        }
    };
    assert!(timeout(quiet, news).await.is_err(), "an idle watch has nothing to tell");
    assert_eq!(idle.disconnected, 0);
}

#[async_trait]
impl outages::Members for Cluster {
    fn url(&self) -> StoreUrl {
        self.url()
    }

    fn kill(&mut self, i: usize) {
        self.kill(i);
    }

    fn run(&mut self, i: usize) {
        self.run(i);
    }

    fn signal(&self, i: usize, signal: &str) {
        self.signal(i, signal);
    }

    async fn ready(&self) {
        self.ready().await;
    }
}

/// Of calls while a member is elected anew.
const ELECTED: Duration = Duration::from_secs(3);

#[tokio::test]
async fn each_member_killed_in_turn_fails_no_call_for_three_seconds_and_loses_no_session() {
    let Some(cluster) = Cluster::start(3) else { return };
    outages::each_member_killed(cluster, ELECTED).await;
}

#[tokio::test]
async fn each_member_frozen_in_turn_fails_no_call_for_three_seconds_and_loses_no_session() {
    let Some(cluster) = Cluster::start(3) else { return };
    outages::each_member_frozen(cluster, ELECTED).await;
}

#[tokio::test]
async fn a_store_that_stands_still_for_as_long_as_a_short_session_is_told_of() {
    let Some(cluster) = Cluster::start(1) else { return };
    cluster.ready().await;
    let store = store(cluster.url());
    let mut replica = Replica::of(&*store, &Path::root());
    store.put(&path("a"), vec![], None).await.unwrap();
    replica.until_paths(&["a"]).await;
    cluster.signal(0, "-STOP");
    let frozen = Instant::now();
    replica.until("silent", |replica| replica.silent == 1).await;
    assert_eq!(replica.stalled, 0);
    sleep_until(frozen + STALL + Duration::from_millis(100)).await;
    cluster.signal(0, "-CONT");
    store.put(&path("b"), vec![], None).await.unwrap();
    replica.until_paths(&["a", "b"]).await;
    // On a busy machine it may have been left for it besides.
    assert!(replica.stalled == 1 && replica.disconnected <= 1);
}

#[tokio::test]
async fn a_user_stays_authenticated_beyond_the_life_of_a_token() {
    let Some(cluster) = Cluster::start_with(1, "http", |_| vec!["--auth-token-ttl=2".to_owned()]) else {
        return;
    };
    cluster.ready().await;
    let mut admin = cluster.client(0).await;
    admin.user_add("root", "r", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.user_add("plexus", "secret", None).await.unwrap();
    admin.role_add("mesh").await.unwrap();
    let below = etcd_client::Permission::read_write("/plexus/v1/").with_prefix();
    admin.role_grant_permission("mesh", below).await.unwrap();
    admin.user_grant_role("plexus", "mesh").await.unwrap();
    admin.auth_enable().await.unwrap();

    let gate = Gate::to(cluster.port(0)).await;
    let user = |password: &str, url: StoreUrl| StoreConfig {
        username: Some("plexus".to_owned()),
        password: Some(password.to_owned()),
        ..StoreConfig::new(url)
    };
    let metrics = Metrics::default();
    let store = open(&user("secret", gate.url("etcd")), &metrics).unwrap();
    let session = store.open_session(Duration::from_secs(3)).await.unwrap();
    store.put(&path("a"), b"1".to_vec(), Some(&session)).await.unwrap();
    let mut replica = Replica::of(&*store, &Path::root());
    replica.until_paths(&["a"]).await;
    sleep(Duration::from_millis(3500)).await;
    store.put(&path("b"), b"1".to_vec(), Some(&session)).await.unwrap();
    replica.until_paths(&["a", "b"]).await;
    gate.cut();
    replica.until("told", |replica| replica.disconnected == 1).await;
    gate.open();
    until_ok(async || store.delete(&path("b")).await).await;
    replica.until_paths(&["a"]).await;
    assert!(session.is_alive());

    let elsewhere = StoreConfig { prefix: Some("/other".to_owned()), ..user("secret", cluster.url()) };
    for (config, says) in [
        (user("wrong", cluster.url()), "check `username` and `password`"),
        (StoreConfig::new(cluster.url()), "set `username`"),
        (elsewhere, "role"),
    ] {
        let refused = open(&config, &metrics).unwrap();
        let error = answer(async || refused.put(&path("a"), vec![], None).await).await.unwrap_err();
        assert_eq!((error.kind, error.may_have_applied), (ErrorKind::Denied, false), "{error}");
        assert!(error.to_string().contains(says), "{error}");
        let mut watch = refused.watch(&Path::root());
        let Some(WatchEvent::Disconnected(error)) = watch.next().await else { panic!("it must be refused") };
        assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    }
}

/// An authority's certificate and what signs with it.
fn authority() -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    (certificate, Issuer::new(params, key))
}

/// Writes the certificate and key of one party to files.
fn party(directory: &std::path::Path, name: &str, issuer: &Issuer<'_, KeyPair>) -> [std::path::PathBuf; 2] {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    let files = ["crt", "key"].map(|suffix| directory.join(format!("{name}.{suffix}")));
    std::fs::write(&files[0], certificate.pem()).unwrap();
    std::fs::write(&files[1], key.serialize_pem()).unwrap();
    files
}

#[tokio::test]
async fn both_sides_show_certificates_and_a_stranger_is_told_what_is_wrong() {
    let ((ca, issuer), (other_ca, other_issuer)) = (authority(), authority());
    let cluster = Cluster::start_with(1, "https", |directory| {
        std::fs::write(directory.join("ca.crt"), &ca).unwrap();
        std::fs::write(directory.join("other.crt"), &other_ca).unwrap();
        let [cert, key] = party(directory, "server", &issuer);
        let ca = directory.join("ca.crt");
        let files = [("cert", &cert), ("key", &key), ("trusted-ca", &ca)];
        let flags = files.map(|(flag, file)| format!("--{flag}-file={}", file.display()));
        flags.into_iter().chain(["--client-cert-auth".to_owned()]).collect()
    });
    let Some(cluster) = cluster else { return };
    let directory = cluster.directory();
    let [cert, key] = party(directory, "client", &issuer);
    let [strange_cert, strange_key] = party(directory, "stranger", &other_issuer);
    let config = |ca: &str, identity: Option<[&std::path::PathBuf; 2]>| StoreConfig {
        ca_file: Some(directory.join(ca)),
        cert_file: identity.map(|[cert, _]| cert.clone()),
        key_file: identity.map(|[_, key]| key.clone()),
        ..StoreConfig::new(cluster.url())
    };
    let metrics = Metrics::default();
    let store = open(&config("ca.crt", Some([&cert, &key])), &metrics).unwrap();
    until_ok(async || store.put(&path("a"), b"1".to_vec(), None).await).await;
    let mut replica = Replica::of(&*store, &Path::root());
    replica.until_paths(&["a"]).await;
    for (what, config) in [
        ("no certificate", config("ca.crt", None)),
        ("a stranger's", config("ca.crt", Some([&strange_cert, &strange_key]))),
        ("another authority", config("other.crt", Some([&cert, &key]))),
        ("a key that does not fit", config("ca.crt", Some([&cert, &strange_key]))),
    ] {
        let refused = open(&config, &metrics).unwrap();
        let error = refused.get(&path("a")).await.unwrap_err();
        println!("{what}: {error}");
        assert!(error.to_string().contains("cert_file"), "{what}: {error}");
        assert!(matches!(error.kind, ErrorKind::Denied | ErrorKind::Unavailable), "{what}: {error}");
    }
}
