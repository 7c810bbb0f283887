//! The registrar over a real embedded store, real sockets, and a store that can be made to hang or lose its session.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpListener;

use super::*;
use crate::check::{CheckSpec, Probe, Tcp, Timing};
use crate::model::{Health, Instance, Node};
use crate::source::{ConfigSource, Definition, Draft, Local, Located, Origin, Trust};
use crate::store::{
    self, EmbeddedStore, Entry, Error, ErrorKind, Expect, Listing, Path, Revision, Session, SessionKeeper,
    SessionLost, Swap, Watch,
};

/// A store in front of an embedded one that can hang, fail, and lose its sessions.
#[derive(Debug)]
pub(super) struct Faulty {
    pub(super) inner: EmbeddedStore,
    pub(super) hangs: watch::Sender<bool>,
    pub(super) fails: watch::Sender<bool>,
    sessions: Mutex<BTreeMap<u64, (Session, SessionKeeper)>>,
    pub(super) writes: watch::Sender<u64>,
}

impl Faulty {
    pub(super) fn new() -> Arc<Self> {
        let timeout = Duration::from_secs(1);
        let inner = EmbeddedStore::open(None, timeout, store::Metrics::default()).unwrap();
        Arc::new(Self {
            inner,
            hangs: watch::Sender::new(false),
            fails: watch::Sender::new(false),
            sessions: Mutex::default(),
            writes: watch::Sender::new(0),
        })
    }

    async fn pass(&self) -> store::Result<()> {
        self.hangs.subscribe().wait_for(|hangs| !hangs).await.unwrap();
        if *self.fails.borrow() {
            return Err(Error {
                operation: "any",
                target: String::new(),
                store: "test".to_owned(),
                kind: ErrorKind::Unavailable,
                may_have_applied: false,
                reason: "switched off".to_owned(),
                source: None,
            });
        }
        Ok(())
    }

    /// Every lease ends, as when the store was out of reach for longer than their time to live.
    async fn lose_sessions(&self) {
        let sessions = std::mem::take(&mut *self.sessions.lock().unwrap());
        for (id, (session, keeper)) in sessions {
            self.inner.close_session(session).await.unwrap();
            let reason = "expired".to_owned();
            keeper.lose(SessionLost { session: id.to_string(), store: "test".to_owned(), reason });
        }
    }

    pub(super) async fn records<T: serde::de::DeserializeOwned>(&self, directory: &str) -> Vec<T> {
        let listing = self.inner.list(&Path::new(directory).unwrap()).await.unwrap();
        listing.entries.iter().map(|entry| serde_json::from_slice(&entry.value).unwrap()).collect()
    }

    async fn put(&self, path: &str, value: Vec<u8>) {
        self.inner.put(&Path::new(path).unwrap(), value, None).await.unwrap();
    }
}

#[async_trait]
impl Store for Faulty {
    fn url(&self) -> &str {
        "test"
    }
    async fn get(&self, path: &Path) -> store::Result<Option<Entry>> {
        self.pass().await?;
        self.inner.get(path).await
    }
    async fn list(&self, directory: &Path) -> store::Result<Listing> {
        self.inner.list(directory).await
    }
    async fn put(&self, path: &Path, value: Vec<u8>, session: Option<&Session>) -> store::Result<Revision> {
        self.inner.put(path, value, session).await
    }
    async fn delete(&self, path: &Path) -> store::Result<bool> {
        self.inner.delete(path).await
    }
    async fn compare_and_swap(
        &self,
        path: &Path,
        expect: Expect,
        value: Option<Vec<u8>>,
        session: Option<&Session>,
    ) -> store::Result<Swap> {
        self.pass().await?;
        self.writes.send_modify(|writes| *writes += 1);
        self.inner.compare_and_swap(path, expect, value, session).await
    }
    async fn open_session(&self, ttl: Duration) -> store::Result<Session> {
        self.pass().await?;
        let inner = self.inner.open_session(ttl).await?;
        let (outer, keeper) = Session::new(inner.id(), ttl);
        self.sessions.lock().unwrap().insert(inner.id(), (inner, keeper));
        Ok(outer)
    }
    async fn adopt_session(&self, id: u64, ttl: Duration) -> store::Result<Session> {
        self.pass().await?;
        let inner = self.inner.adopt_session(id, ttl).await?;
        let (outer, keeper) = Session::new(id, ttl);
        self.sessions.lock().unwrap().insert(id, (inner, keeper));
        Ok(outer)
    }
    async fn close_session(&self, session: Session) -> store::Result<()> {
        self.pass().await?;
        let known = self.sessions.lock().unwrap().remove(&session.id());
        self.inner.close_session(known.unwrap().0).await
    }
    fn watch(&self, directory: &Path) -> Watch {
        self.inner.watch(directory)
    }
    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

/// An agent's registrar.
pub(super) struct Agent {
    pub(super) handle: Handle,
    pub(super) tasks: Tasks,
    config: ConfigSource,
    pub(super) metrics: Metrics,
}

pub(super) const ADDRESS: &str = "127.0.0.1";

fn local(node: &str) -> Local {
    Local { node: node.parse().unwrap(), address: ADDRESS.parse().unwrap() }
}

/// An instance of `web` on this port with these checks, as the configuration of node `a` would have it.
pub(super) fn located(port: u16, checks: Vec<CheckSpec>) -> Located {
    let draft = Draft { checks, ..Draft::new("web".parse().unwrap(), NonZeroU16::new(port).unwrap()) };
    let origin = Origin::Config { file: "plexus.toml".into(), line: 1 };
    Located { definition: draft.resolve(&local("a")).unwrap(), origin }
}

pub(super) fn tcp(millis: u64) -> Vec<CheckSpec> {
    let timing = Timing::every(Period::new(Duration::from_millis(millis)).unwrap());
    vec![CheckSpec { probe: Probe::Tcp(Tcp::default()), timing }]
}

fn agent_with(store: &Arc<Faulty>, located: Vec<Located>, adapt: impl FnOnce(&mut Config)) -> Agent {
    agent_after(store, located, adapt, None)
}

/// An agent after another one on the same node.
pub(super) fn agent_after(
    store: &Arc<Faulty>,
    located: Vec<Located>,
    adapt: impl FnOnce(&mut Config),
    carried: Option<Carried>,
) -> Agent {
    let mut config = Config::new("a".parse().unwrap(), ADDRESS.parse().unwrap(), "1.2.3");
    config.repair_interval = Period::new(Duration::from_millis(200)).unwrap();
    adapt(&mut config);
    let (tasks, metrics, source) = (Tasks::new(), Metrics::default(), ConfigSource::new(located));
    let api = ApiSource::open(None, Local { node: config.node.clone(), address: config.address });
    let handle = start(config, Arc::clone(store) as _, &[&source], api, &tasks, metrics.clone(), carried);
    Agent { handle, tasks, config: source, metrics }
}

pub(super) fn agent(store: &Arc<Faulty>, located: Vec<Located>) -> Agent {
    agent_with(store, located, |_| ())
}

/// Waits until a condition on the store holds.
pub(super) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn healths(store: &Faulty) -> Vec<Health> {
    store.records::<Instance>("instances").await.iter().map(|instance| instance.health).collect()
}

pub(super) async fn registered(store: &Faulty, expected: &[Health]) {
    eventually(&format!("{expected:?}"), async || healths(store).await == expected).await;
}

#[tokio::test]
async fn an_instance_is_registered_with_its_node_and_follows_its_health() {
    let store = Faulty::new();
    let server = TcpListener::bind((ADDRESS, 0)).await.unwrap();
    let address = server.local_addr().unwrap();
    let agent = agent(&store, vec![located(address.port(), tcp(30))]);
    registered(&store, &[Health::Passing]).await;
    let nodes = store.records::<Node>("nodes").await;
    assert_eq!((nodes[0].name.as_str(), nodes[0].version.as_str()), ("a", "1.2.3"));
    drop(server);
    registered(&store, &[Health::Critical]).await;
    let instances = store.records::<Instance>("instances").await;
    assert!(instances[0].health_reason.starts_with("tcp: connect to 127.0.0.1:"), "{instances:?}");
    let shown = agent.handle.instances();
    assert!(matches!(shown[0].registration, Registration::Registered { .. }), "{shown:?}");
    assert_eq!(shown[0].report.checks[0].health, Health::Critical);
    let _again = TcpListener::bind(address).await.unwrap();
    registered(&store, &[Health::Passing]).await;
    agent.config.replace(Vec::new());
    registered(&store, &[]).await;
    eventually("forgotten", async || agent.handle.instances().is_empty()).await;
    assert_eq!(agent.metrics.registered.get(), 0);
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn after_a_lost_session_everything_is_registered_again() {
    let store = Faulty::new();
    let defined = (1..=300).map(|port| located(port, Vec::new())).collect();
    // The slow tick would repair it, too; this must not need it.
    let agent = agent_with(&store, defined, |config| config.repair_interval = Period::seconds(600));
    registered(&store, &[Health::Passing; 300]).await;
    assert_eq!(agent.metrics.registered.get(), 300);
    store.lose_sessions().await;
    registered(&store, &[Health::Passing; 300]).await;
    eventually("all told", async || agent.metrics.registered.get() == 300).await;
    assert_eq!(agent.metrics.sessions_lost.get(), 1);
    assert_eq!(store.records::<Node>("nodes").await.len(), 1);
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn what_did_not_change_is_not_written_again_and_what_others_changed_is_repaired() {
    let store = Faulty::new();
    let agent = agent(&store, vec![located(1, Vec::new()), located(2, Vec::new())]);
    registered(&store, &[Health::Passing; 2]).await;
    eventually("told", async || agent.metrics.registered.get() == 2).await;
    let settled = *store.writes.borrow();
    assert_eq!(settled, 3, "a node and two instances");
    // Two slow ticks: everything was looked at and nothing written.
    let looked = agent.metrics.writes.with_label_values(&["stands"]);
    let before = looked.get();
    eventually("two ticks", async || looked.get() >= before + 6).await;
    assert_eq!(*store.writes.borrow(), settled);

    store.inner.delete(&Path::new("instances/web/web-a-1").unwrap()).await.unwrap();
    store.put("instances/web/web-a-2", b"garbage".to_vec()).await;
    eventually("repaired", async || agent.metrics.repairs.get() == 2).await;
    registered(&store, &[Health::Passing; 2]).await;
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn a_store_that_hangs_holds_up_no_check_and_gets_the_newest_state_when_it_is_back() {
    let store = Faulty::new();
    let server = TcpListener::bind((ADDRESS, 0)).await.unwrap();
    let address = server.local_addr().unwrap();
    let agent = agent(&store, vec![located(address.port(), tcp(20))]);
    registered(&store, &[Health::Passing]).await;
    store.hangs.send_replace(true);
    let health = |wanted| {
        let handle = agent.handle.clone();
        async move {
            eventually("seen locally", async || handle.instances()[0].report.health == wanted).await;
        }
    };
    drop(server);
    health(Health::Critical).await;
    let again = TcpListener::bind(address).await.unwrap();
    health(Health::Passing).await;
    drop(again);
    health(Health::Critical).await;
    assert_eq!(healths(&store).await, [Health::Passing]);
    store.hangs.send_replace(false);
    registered(&store, &[Health::Critical]).await;
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn a_store_that_is_down_at_the_start_is_told_and_used_as_soon_as_it_is_there() {
    let store = Faulty::new();
    store.fails.send_replace(true);
    let agent = agent(&store, vec![located(1, Vec::new())]);
    eventually("told", async || !agent.handle.problems().is_empty()).await;
    assert_eq!(agent.handle.problems()[0].subject, "store");
    assert!(agent.handle.node().to_string().contains("switched off"), "{}", agent.handle.node());
    store.fails.send_replace(false);
    let back = tokio::time::Instant::now();
    registered(&store, &[Health::Passing]).await;
    assert!(back.elapsed() < Duration::from_millis(1500), "{:?}", back.elapsed());
    eventually("no problem left", async || agent.handle.problems().is_empty()).await;
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn a_node_name_that_is_taken_registers_nothing_until_it_is_free() {
    let store = Faulty::new();
    let other = r#"{"name":"a","address":"192.0.2.99","version":"1"}"#;
    store.put("nodes/a", other.into()).await;
    let agent = agent(&store, vec![located(1, Vec::new())]);
    eventually("told", async || !agent.handle.problems().is_empty()).await;
    let problem = agent.handle.problems().remove(0);
    assert!(problem.message.starts_with("node name a is taken by an agent at 192.0.2.99"), "{problem:?}");
    assert_eq!(agent.metrics.refused.with_label_values(&["duplicate_node"]).get(), 1);
    assert!(healths(&store).await.is_empty());
    let (refused, tries) = (agent.handle.node(), agent.metrics.writes.with_label_values(&["refused"]));
    let before = tries.get();
    eventually("tried again", async || tries.get() >= before + 2).await;
    assert_eq!(agent.handle.node(), refused, "since the first time");
    assert_eq!(store.records::<Node>("nodes").await[0].address.to_string(), "192.0.2.99");
    store.inner.delete(&Path::new("nodes/a").unwrap()).await.unwrap();
    registered(&store, &[Health::Passing]).await;
    assert_eq!(agent.metrics.refused.with_label_values(&["duplicate_node"]).get(), 0);
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn an_instance_of_another_node_is_neither_overwritten_nor_deleted() {
    let store = Faulty::new();
    let theirs = r#"{"service":"web","id":"web-a-1","node":"b","address":"192.0.2.2","port":1}"#;
    store.put("instances/web/web-a-1", theirs.into()).await;
    let agent = agent(&store, vec![located(1, Vec::new()), located(2, Vec::new())]);
    eventually("told", async || !agent.handle.problems().is_empty()).await;
    let problem = agent.handle.problems().remove(0);
    assert_eq!(
        problem.message,
        "instance web/web-a-1 is registered by node b already; give one of them another id"
    );
    agent.config.replace(vec![located(2, Vec::new())]);
    eventually("forgotten", async || agent.handle.instances().len() == 1).await;
    eventually("settled", async || agent.handle.problems().is_empty()).await;
    let instances = store.records::<Instance>("instances").await;
    assert_eq!(instances.iter().map(|i| i.node.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn a_restarted_agent_takes_its_records_over_without_withdrawing_what_is_well() {
    let store = Faulty::new();
    let server = TcpListener::bind((ADDRESS, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let first = agent(&store, vec![located(port, tcp(50))]);
    registered(&store, &[Health::Passing]).await;
    first.tasks.shutdown().await;
    assert_eq!(healths(&store).await, [Health::Passing], "without leaving, the record stays");

    let mut watch = store.inner.watch(&Path::new("instances").unwrap());
    let second = agent(&store, vec![located(port, tcp(50))]);
    eventually("told", async || second.metrics.registered.get() == 1).await;
    let probed = || second.handle.instances()[0].report.checks[0].health == Health::Passing;
    eventually("probed", async || probed()).await;
    // The first life's lease ends; the record is the second's.
    let old = store.sessions.lock().unwrap().pop_first().unwrap().1.0;
    store.inner.close_session(old).await.unwrap();
    assert_eq!(healths(&store).await, [Health::Passing]);
    // Whatever was written meanwhile was passing.
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(50), watch.next()).await {
        let store::WatchEvent::Changes(changes) = event else { continue };
        for change in changes {
            let store::Change::Put(entry) = change else { panic!("deleted: {change:?}") };
            let instance: Instance = serde_json::from_slice(&entry.value).unwrap();
            assert_eq!(instance.health, Health::Passing);
        }
    }
    second.tasks.shutdown().await;
}

#[tokio::test]
async fn leaving_takes_everything_back_before_it_returns() {
    let store = Faulty::new();
    let agent = agent(&store, (1..=50).map(|port| located(port, Vec::new())).collect());
    registered(&store, &[Health::Passing; 50]).await;
    agent.handle.deregister_all(Duration::from_secs(5)).await.unwrap();
    assert!(healths(&store).await.is_empty() && store.records::<Node>("nodes").await.is_empty());
    assert_eq!(agent.handle.node(), Registration::Withdrawn);
    agent.config.replace(vec![located(99, Vec::new())]);
    agent.handle.deregister_all(Duration::from_secs(5)).await.unwrap();
    assert!(healths(&store).await.is_empty(), "it has left for good");
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn leaving_is_bounded_when_the_store_hangs() {
    let store = Faulty::new();
    let agent = agent(&store, vec![located(1, Vec::new())]);
    registered(&store, &[Health::Passing]).await;
    store.hangs.send_replace(true);
    let asked = tokio::time::Instant::now();
    let error = agent.handle.deregister_all(Duration::from_millis(200)).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert!(error.to_string().ends_with("its records end at the latest 10s from now"), "{error}");
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn drains_registrations_and_refusals_of_the_run_time_api() {
    let store = Faulty::new();
    let agent = agent(&store, vec![located(1, Vec::new())]);
    let handle = &agent.handle;
    let draft = |port| Draft::new("api".parse().unwrap(), NonZeroU16::new(port).unwrap());
    let defined: Definition = handle.register(draft(2), Trust::Anyone).await.unwrap();
    registered(&store, &[Health::Passing; 2]).await;
    let draining = async |expected: [bool; 2]| {
        eventually(&format!("{expected:?}"), async || {
            let instances = store.records::<Instance>("instances").await;
            instances.iter().map(|instance| instance.draining).eq(expected)
        })
        .await;
    };
    handle.set_drain(&defined.key.id, None, true).await.unwrap();
    draining([true, false]).await;
    handle.set_node_drain(true).await.unwrap();
    draining([true, true]).await;
    eventually("node", async || store.records::<Node>("nodes").await[0].draining).await;
    handle.set_node_drain(false).await.unwrap();
    handle.set_drain(&defined.key.id, Some(&defined.key.service), false).await.unwrap();
    draining([false, false]).await;

    let in_file = handle.deregister(&"web-a-1".parse().unwrap(), None).await.unwrap_err();
    assert_eq!(in_file.to_string(), "instance web/web-a-1 is defined in plexus.toml:1; change it there");
    let again = Draft::new("web".parse().unwrap(), NonZeroU16::MIN);
    assert!(
        handle
            .register(again, Trust::Anyone)
            .await
            .unwrap_err()
            .to_string()
            .contains("is defined in plexus.toml:1")
    );
    let unknown = handle.set_drain(&"x".parse().unwrap(), None, true).await.unwrap_err();
    assert!(unknown.to_string().starts_with("this node has no instance x"), "{unknown}");
    handle.deregister(&defined.key.id, None).await.unwrap();
    registered(&store, &[Health::Passing]).await;
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn what_was_registered_at_run_time_is_deregistered_when_it_was_not_well_for_too_long() {
    let store = Faulty::new();
    let server = TcpListener::bind((ADDRESS, 0)).await.unwrap();
    let (open, closed) = (server.local_addr().unwrap().port(), 1);
    let agent = agent(&store, vec![located(closed, tcp(40))]);
    let draft = |port: u16| Draft {
        checks: tcp(40),
        deregister_critical_after: Some(Period::seconds(1)),
        ..Draft::new("api".parse().unwrap(), NonZeroU16::new(port).unwrap())
    };
    let well = agent.handle.register(draft(open), Trust::Anyone).await.unwrap();
    agent.handle.register(draft(closed), Trust::Anyone).await.unwrap();
    let left = async || {
        let instances = agent.handle.instances();
        instances.iter().map(|instance| instance.located.definition.key.to_string()).collect::<Vec<_>>()
    };
    eventually("one is gone", async || left().await.len() == 2).await;
    // What stands in a file stays, and so does what is well.
    assert_eq!(left().await, [well.key.to_string(), format!("web/web-a-{closed}")]);
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn changed_tags_keep_the_checks_and_changed_checks_keep_the_verdict() {
    let store = Faulty::new();
    let server = TcpListener::bind((ADDRESS, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let agent = agent(&store, vec![located(port, tcp(40))]);
    registered(&store, &[Health::Passing]).await;
    let mut tagged = located(port, tcp(40));
    tagged.definition.tags.insert("v2".parse().unwrap());
    agent.config.replace(vec![tagged]);
    eventually("tagged", async || !store.records::<Instance>("instances").await[0].tags.is_empty()).await;
    assert!(agent.handle.instances()[0].report.checks[0].last.is_some(), "the checks were not begun anew");
    agent.config.replace(vec![located(port, tcp(60_000))]);
    eventually("untagged", async || store.records::<Instance>("instances").await[0].tags.is_empty()).await;
    assert_eq!(healths(&store).await, [Health::Passing]);
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn a_storm_reaches_the_store_at_its_pace_and_ends_in_the_newest_state() {
    let store = Faulty::new();
    let defined = (1..=1000).map(|port| located(port, Vec::new())).collect();
    let agent = agent_with(&store, defined, |config| config.repair_interval = Period::seconds(600));
    eventually("registered", async || agent.metrics.registered.get() == 1000).await;
    let (before, begun) = (*store.writes.borrow(), std::time::Instant::now());
    for turn in 0..21 {
        agent.handle.set_node_drain(turn % 2 == 0).await.unwrap();
        let so_far = *store.writes.borrow();
        eventually("being written", async || *store.writes.borrow() > so_far).await;
    }
    eventually("as it was asked for last", async || {
        agent.metrics.pending.get() == 0
            && store.records::<Instance>("instances").await.iter().all(|instance| instance.draining)
    })
    .await;
    let written = *store.writes.borrow() - before;
    // The burst, what the time allows, and what was in flight.
    let allowed = 1024 + 512 * (begun.elapsed().as_millis() / 1000 + 1) + writer::IN_FLIGHT as u128;
    assert!(u128::from(written) <= allowed, "{written} writes of {allowed}");
    assert!(agent.metrics.paced.get() > 0);
    agent.tasks.shutdown().await;
}
