//! The watcher's rules, one test each. Events come by a channel, as every backend sends them; the store that lost
//! settings are written back to is a real one.

mod rules;

use std::collections::BTreeMap;
use std::time::SystemTime;

use nerve::model::{ServiceName, ServiceSettings};
use nerve::store::{Change, EmbeddedStore, Entry, Error, ErrorKind, Revision, SnapshotCause, WatchEvent};
use proptest::prelude::*;

use super::*;
use crate::catalog::{Catalog, Change as CatalogChange, Freshness};

struct World {
    follower: Follower,
    catalog: Catalog,
    handle: Handle,
    metrics: Metrics,
}

fn world_with(grace: Duration, recalled: Option<Recalled>) -> World {
    let (catalog, writer) = Catalog::new();
    let metrics = Metrics::new().unwrap();
    let config = Config { reconnect_grace: grace };
    let (follower, handle) = Follower::new(&config, "embedded", writer, recalled, metrics.clone());
    World { follower, catalog, handle, metrics }
}

fn world() -> World {
    world_with(Config::default().reconnect_grace, None)
}

fn entry(path: &str, value: &serde_json::Value, revision: u64) -> Entry {
    let value = value.to_string().into_bytes();
    Entry { path: Path::new(path).unwrap(), value, revision: Revision(revision) }
}

fn record(id: &str) -> serde_json::Value {
    serde_json::json!({"service": "web", "id": id, "node": "a", "address": "192.0.2.1", "port": 80})
}

fn instance(id: &str) -> Entry {
    entry(&format!("instances/web/{id}"), &record(id), 1)
}

fn node(name: &str) -> Entry {
    let value = serde_json::json!({"name": name, "address": "192.0.2.1", "version": "0"});
    entry(&format!("nodes/{name}"), &value, 1)
}

fn network(vni: u32) -> Entry {
    let pools = serde_json::json!([{"cidr": "10.42.0.0/16", "subnet_length": 24}]);
    entry("networks/blue", &serde_json::json!({"vni": vni, "pools": pools}), 1)
}

fn subnet(slot: u32, node: &str) -> Entry {
    let value = serde_json::json!({"node": node, "address": "192.0.2.1", "mac": "02:00:00:00:00:01"});
    entry(&format!("subnets/blue/{slot}"), &value, 1)
}

/// `slot node` of each subnet, with a `?` where it is unconfirmed.
fn held(catalog: &Catalog) -> Vec<String> {
    let of = |(_, subnets): (_, crate::catalog::Subnets)| {
        let mark = |slot| if subnets.is_unconfirmed(slot) { "?" } else { "" };
        subnets
            .all()
            .iter()
            .map(|(slot, held)| format!("{slot} {}{}", held.node, mark(*slot)))
            .collect::<Vec<_>>()
    };
    catalog.subnets().into_iter().flat_map(of).collect()
}

fn settings() -> Entry {
    let value = serde_json::json!({"published": [{"port": 8080, "of_a_newer_agent": true}]});
    entry("services/web", &value, 1)
}

fn snapshot_at(revision: u64, entries: &[Entry], cause: SnapshotCause) -> WatchEvent {
    WatchEvent::Snapshot { entries: entries.to_vec(), revision: Revision(revision), cause }
}

fn snapshot(entries: &[Entry], cause: SnapshotCause) -> WatchEvent {
    snapshot_at(1, entries, cause)
}

fn put(entry: Entry) -> WatchEvent {
    WatchEvent::Changes(vec![Change::Put(entry)])
}

fn deleted(path: &str) -> WatchEvent {
    WatchEvent::Changes(vec![Change::Delete(Path::new(path).unwrap())])
}

fn error() -> Error {
    Error {
        operation: "watch",
        target: String::new(),
        store: "etcd://192.0.2.9:2379".to_owned(),
        kind: ErrorKind::Unavailable,
        may_have_applied: false,
        reason: "refused".to_owned(),
        source: None,
    }
}

fn recalled(as_of: SystemTime) -> Recalled {
    let old: nerve::model::Instance = serde_json::from_value(record("old")).unwrap();
    let settings = settings();
    let text = String::from_utf8(settings.value).unwrap();
    let web = ServiceName::new("web").unwrap();
    let decoded: ServiceSettings = serde_json::from_str(&text).unwrap();
    Recalled {
        store: "embedded".to_owned(),
        changes: vec![
            CatalogChange::PutInstance(Arc::new(old)),
            CatalogChange::PutSettings(web.clone(), Arc::new(decoded)),
        ],
        durable: BTreeMap::from([(Key::Service(web), text.into())]),
        revision: Revision(50),
        as_of,
        doubted_until: None,
    }
}

impl World {
    async fn after(&mut self, events: impl IntoIterator<Item = WatchEvent>) -> &mut Self {
        for event in events {
            self.follower.handle(event).await;
        }
        self
    }

    async fn seconds_later(&mut self, seconds: u64) -> &mut Self {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        self.follower.drop_doomed();
        self
    }

    /// `id`, with a `?` where it is unconfirmed.
    fn endpoints(&self) -> Vec<String> {
        let service = self.catalog.service("web");
        let mark = |e: &crate::catalog::Endpoint| {
            format!("{}{}", e.instance.id, if e.unconfirmed { "?" } else { "" })
        };
        service.map_or_else(Vec::new, |service| service.endpoints.iter().map(mark).collect())
    }

    fn has_settings(&self) -> bool {
        self.catalog.service("web").is_some_and(|service| !service.has_default_settings())
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_is_obeyed_at_once() {
    let mut world = world();
    world.after([snapshot(&[instance("1"), instance("2"), node("a")], SnapshotCause::First)]).await;
    world.after([deleted("instances/web/1"), deleted("nodes/a")]).await;
    assert_eq!((world.endpoints(), world.catalog.node_count()), (vec!["2".to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_returning_store_does_not_list_keeps_its_traffic_for_the_grace() {
    let mut world = world();
    world.after([snapshot(&[instance("1"), instance("2"), node("a")], SnapshotCause::First)]).await;
    world.after([WatchEvent::Disconnected(error())]).await;
    assert!(world.catalog.freshness().is_stale());
    world.after([snapshot(&[instance("2")], SnapshotCause::Resync)]).await;
    assert_eq!(*world.catalog.freshness(), Freshness::Live);
    assert_eq!((world.endpoints(), world.catalog.node_count()), (vec!["1?".to_owned(), "2".to_owned()], 1));
    assert_eq!(world.handle.status().unconfirmed, 2);
    world.seconds_later(14).await;
    assert_eq!(world.endpoints(), ["1?", "2"]);
    world.seconds_later(1).await;
    assert_eq!((world.endpoints(), world.catalog.node_count()), (vec!["2".to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_dropped_while_the_store_is_out_of_reach() {
    let mut world = world();
    world.after([snapshot(&[instance("1")], SnapshotCause::First)]).await;
    world.after([snapshot(&[], SnapshotCause::Resync), WatchEvent::Disconnected(error())]).await;
    world.seconds_later(3600).await;
    assert_eq!(world.endpoints(), ["1?"]);
    world.after([WatchEvent::Resumed]).await.seconds_later(15).await;
    assert_eq!(world.endpoints(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_registers_again_within_the_grace_is_as_good_as_before() {
    let mut world = world();
    world.after([snapshot(&[instance("1"), node("a")], SnapshotCause::First)]).await;
    world.after([snapshot(&[], SnapshotCause::Reset)]).await;
    assert_eq!(world.endpoints(), ["1?"]);
    world.after([put(instance("1")), put(node("a"))]).await.seconds_later(60).await;
    assert_eq!((world.endpoints(), world.catalog.node_count()), (vec!["1".to_owned()], 1));
}

#[tokio::test(start_paused = true)]
async fn subnets_that_a_wiped_store_lost_are_kept_for_the_grace_and_their_network_is_written_back() {
    let mut world = world();
    let known = [network(7), subnet(1, "a"), subnet(2, "b"), subnet(3, "c")];
    world.after([snapshot(&known, SnapshotCause::First)]).await;
    assert_eq!(
        (held(&world.catalog), world.handle.status().entries),
        (vec!["1 a".into(), "2 b".into(), "3 c".into()], 4)
    );
    world.after([snapshot(&[], SnapshotCause::Reset)]).await;
    assert!(world.catalog.network("blue").is_some() && world.follower.next_write().is_some());
    assert_eq!(held(&world.catalog), ["1 a?", "2 b?", "3 c?"]);
    // One comes back, another node takes what was the second's, one's record cannot be read.
    let broken = entry("subnets/blue/3", &serde_json::json!({}), 2);
    world.after([put(subnet(1, "a")), put(subnet(2, "d")), put(broken)]).await;
    assert_eq!(held(&world.catalog), ["1 a", "2 d", "3 c"]);
    world.after([snapshot(&[network(7)], SnapshotCause::Resync)]).await.seconds_later(14).await;
    assert_eq!(held(&world.catalog), ["1 a?", "2 d?", "3 c?"]);
    world.seconds_later(1).await;
    assert_eq!(held(&world.catalog), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_is_given_back_and_a_network_that_is_removed_are_gone_at_once() {
    let mut world = world();
    world.after([snapshot(&[network(7), subnet(1, "a"), subnet(2, "b")], SnapshotCause::First)]).await;
    world.after([deleted("subnets/blue/1"), deleted("networks/blue")]).await;
    assert!(world.catalog.network("blue").is_none() && held(&world.catalog) == ["2 b"]);
    // A lease that ended while the store was away is doubted, as an instance's.
    world.after([WatchEvent::Disconnected(error())]).await.seconds_later(60).await;
    world.after([WatchEvent::Resumed, deleted("subnets/blue/2")]).await;
    assert_eq!(held(&world.catalog), ["2 b?"]);
    world.seconds_later(15).await;
    assert_eq!(held(&world.catalog), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_stands_there_but_cannot_be_read_is_confirmed_as_it_was() {
    let mut world = world();
    world.after([snapshot(&[instance("1")], SnapshotCause::First)]).await;
    world.after([snapshot(&[], SnapshotCause::Resync)]).await;
    let broken = entry("instances/web/1", &serde_json::json!(1), 2);
    world.after([put(broken)]).await.seconds_later(60).await;
    assert_eq!(world.endpoints(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_right_after_an_outage_is_doubted() {
    let mut world = world();
    world.after([snapshot(&[instance("1"), node("a")], SnapshotCause::First)]).await;
    world.after([WatchEvent::Disconnected(error())]).await.seconds_later(60).await;
    world.after([WatchEvent::Resumed]).await.seconds_later(10).await;
    world.after([deleted("instances/web/1"), deleted("nodes/a")]).await;
    assert_eq!((world.endpoints(), world.catalog.node_count()), (vec!["1?".to_owned()], 1));
    world.seconds_later(5).await;
    assert_eq!((world.endpoints(), world.catalog.node_count()), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn a_delete_of_what_gets_no_traffic_is_never_doubted() {
    let mut world = world();
    world.after([snapshot(&[instance("1"), node("a")], SnapshotCause::First)]).await;
    world.after([snapshot(&[instance("1"), node("a")], SnapshotCause::Resync)]).await;
    let mut leaving = record("1");
    leaving["draining"] = true.into();
    world.after([put(entry("instances/web/1", &leaving, 2)), deleted("instances/web/1")]).await;
    assert_eq!(world.endpoints(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_delete_after_a_short_break_means_what_it_says() {
    let mut world = world();
    world.after([snapshot(&[instance("1")], SnapshotCause::First)]).await;
    world.after([WatchEvent::Disconnected(error())]).await;
    tokio::time::advance(Duration::from_millis(500)).await;
    world.after([WatchEvent::Resumed, deleted("instances/web/1")]).await;
    assert_eq!(world.endpoints(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_a_store_that_stood_still_deletes_is_doubted() {
    for (silence, left) in [(1900, [].as_slice()), (2900, &["1?"])] {
        let mut world = world();
        world.after([snapshot(&[instance("1")], SnapshotCause::First)]).await;
        world.after([WatchEvent::Stalled(Duration::from_millis(silence)), deleted("instances/web/1")]).await;
        assert_eq!(world.endpoints(), left, "silent for {silence} ms");
        world.seconds_later(15).await;
        assert_eq!(world.endpoints(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn settings_that_someone_deleted_are_gone_at_once() {
    let mut world = world();
    world.after([snapshot(&[settings(), instance("1")], SnapshotCause::First)]).await;
    world.after([snapshot(&[instance("1")], SnapshotCause::Resync)]).await;
    assert!(!world.has_settings());
    world.after([put(settings()), deleted("services/web")]).await;
    assert!(!world.has_settings() && world.handle.notes().durable.is_empty());
}

#[tokio::test(start_paused = true)]
async fn settings_that_a_wiped_store_lost_outlive_further_snapshots_and_a_restart_finds_the_loss_again() {
    let mut world = world();
    world.after([snapshot_at(50, &[settings(), instance("1")], SnapshotCause::First)]).await;
    // The store went back in time, whatever the backend thinks.
    world.after([snapshot_at(2, &[], SnapshotCause::Resync)]).await;
    assert!(world.has_settings());
    assert_eq!((world.handle.status().revision, world.handle.notes().revision), (Revision(2), Revision(50)));
    world.after([snapshot_at(3, &[], SnapshotCause::Resync)]).await;
    assert!(world.has_settings());
    world.after([put(Entry { revision: Revision(4), ..settings() })]).await;
    assert_eq!((world.follower.next_write(), world.handle.notes().revision), (None, Revision(4)));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_leaves_its_last_good_version_and_is_listed_until_it_is_gone() {
    let mut world = world();
    world.after([snapshot(&[instance("1")], SnapshotCause::First)]).await;
    let broken = entry("instances/web/1", &serde_json::json!({"service": 1}), 2);
    let strange = entry("instances/web/3", &record("4"), 2);
    let newer = entry("of-a-newer-agent/default", &serde_json::json!({}), 2);
    world.after([put(broken.clone()), put(strange.clone()), put(newer)]).await;
    assert_eq!((world.endpoints(), world.handle.status().refused.len()), (vec!["1".to_owned()], 2));
    world.after([snapshot(&[broken, strange], SnapshotCause::Resync)]).await;
    assert_eq!((world.endpoints(), world.handle.status().refused.len()), (vec!["1".to_owned()], 2));
    let counted = |reason| world.metrics.refused.with_label_values(&[reason]).get();
    assert_eq!((counted("undecodable"), counted("mismatch"), world.metrics.unknown.get()), (2, 2, 1));
    world.after([put(instance("1")), deleted("instances/web/3")]).await;
    assert_eq!(world.handle.status().refused.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_memory_recalls_is_served_as_stale_at_once_and_for_the_grace_after_the_store_is_back() {
    let as_of = SystemTime::now() - Duration::from_secs(86_400);
    let mut world = world_with(Duration::from_secs(15), Some(recalled(as_of)));
    assert_eq!(world.endpoints(), ["old"]);
    assert!(matches!(&*world.catalog.freshness(), Freshness::Stale { since, .. } if *since == as_of));
    world.handle.filled().await;
    world.after([WatchEvent::Disconnected(error())]).await;
    let Freshness::Stale { since, reason } = &*world.catalog.freshness() else { panic!("it is stale") };
    assert!(*since == as_of && reason.contains("refused") && reason.contains("memory"), "{reason}");
    world.seconds_later(60).await;
    world.after([snapshot_at(51, &[instance("new"), settings()], SnapshotCause::First)]).await;
    assert_eq!(world.endpoints(), ["new", "old?"]);
    world.seconds_later(15).await;
    assert_eq!(world.endpoints(), ["new"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_well_at_the_start_is_believed_more_than_memory_unless_it_had_been_away() {
    let now = SystemTime::now();
    let first = || snapshot_at(51, &[instance("new"), settings()], SnapshotCause::First);
    let mut world = world_with(Duration::from_secs(15), Some(recalled(now)));
    world.after([first()]).await;
    assert_eq!(world.endpoints(), ["new"]);
    world.after([deleted("instances/web/new")]).await;
    assert_eq!(world.endpoints(), [""; 0]);
    let recalled_in = |doubt: Duration| Recalled { doubted_until: Some(now + doubt), ..recalled(now) };
    let mut world = world_with(Duration::from_secs(15), Some(recalled_in(Duration::from_secs(5))));
    world.after([first()]).await;
    assert_eq!(world.endpoints(), ["new", "old?"]);
    world.seconds_later(5).await;
    assert_eq!(world.endpoints(), ["new"]);
    let mut world = world_with(Duration::from_secs(15), Some(recalled_in(Duration::ZERO)));
    world.after([first()]).await;
    assert_eq!(world.endpoints(), ["new"]);
}

#[tokio::test(start_paused = true)]
async fn memory_knows_that_the_store_was_away_and_an_end_of_its_own_is_none() {
    let mut world = world();
    world.after([snapshot(&[instance("1")], SnapshotCause::First)]).await;
    assert_eq!(world.handle.notes().doubted_until, None);
    let changes = world.handle.changes();
    world.after([WatchEvent::Disconnected(error())]).await;
    assert!(world.handle.notes().doubted_until > Some(SystemTime::now()) && changes.has_changed().unwrap());
    let mut world = world_with(Duration::from_secs(15), None);
    world.after([snapshot(&[instance("1")], SnapshotCause::First)]).await;
    world.follower.ended();
    assert_eq!(world.handle.notes().doubted_until, None);
}

#[tokio::test(start_paused = true)]
async fn memory_knows_that_the_store_was_silent() {
    let mut world = world();
    world.after([snapshot(&[instance("1")], SnapshotCause::First)]).await;
    let changes = world.handle.changes();
    world.after([WatchEvent::Silent]).await;
    let until = world.handle.notes().doubted_until;
    assert!(until > Some(SystemTime::now()) && changes.has_changed().unwrap());
    // The next life, which asks just before the store goes on.
    let memory = Recalled { doubted_until: until, ..recalled(SystemTime::now()) };
    let mut next = world_with(Duration::from_secs(15), Some(memory));
    next.after([snapshot_at(51, &[], SnapshotCause::First)]).await;
    assert_eq!(next.endpoints(), ["old?"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_slow_to_answer_its_first_question_is_not_believed_more_than_memory() {
    for (after, left) in [(100, [].as_slice()), (700, &["old?"])] {
        let mut world = world_with(Duration::from_secs(15), Some(recalled(SystemTime::UNIX_EPOCH)));
        tokio::time::advance(Duration::from_millis(after)).await;
        world.after([snapshot_at(51, &[], SnapshotCause::First)]).await;
        assert_eq!(world.endpoints(), left, "after {after} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_younger_than_memory_was_wiped() {
    let mut world = world_with(Duration::from_secs(15), Some(recalled(SystemTime::UNIX_EPOCH)));
    world.after([snapshot_at(3, &[], SnapshotCause::First)]).await;
    assert!(world.endpoints() == ["old?"] && world.has_settings() && world.follower.next_write().is_some());
    let mut world = world_with(Duration::from_secs(15), Some(recalled(SystemTime::UNIX_EPOCH)));
    world.after([snapshot_at(51, &[], SnapshotCause::First)]).await;
    assert!(world.endpoints().is_empty() && !world.has_settings());
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_another_store_is_not_used() {
    let other = Recalled { store: "etcd://192.0.2.9:2379".to_owned(), ..recalled(SystemTime::now()) };
    let world = world_with(Duration::from_secs(15), Some(other));
    assert_eq!((world.endpoints(), &*world.catalog.freshness()), (vec![], &Freshness::Awaiting));
}

#[tokio::test(start_paused = true)]
async fn a_new_watch_after_a_panic_dooms_what_it_does_not_list() {
    let mut world = world();
    world.after([snapshot(&[instance("1")], SnapshotCause::First)]).await;
    world.follower.restart();
    world.after([snapshot(&[instance("2")], SnapshotCause::First), deleted("instances/web/2")]).await;
    assert_eq!(world.endpoints(), ["1?", "2?"]);
}

/// A real store, watched through a channel of our own.
async fn lost_settings_over(store: Arc<dyn Store>, world: &mut World) {
    world.after([snapshot(&[settings(), instance("1")], SnapshotCause::First)]).await;
    world.after([snapshot(&[], SnapshotCause::Reset)]).await;
    let deadline = Instant::now() + Duration::from_secs(1);
    sleep_until(world.follower.next_write()).await;
    assert!(Instant::now() <= deadline);
    while let Some((service, value)) = world.follower.next_lost() {
        let (service, result) = write_back(Arc::clone(&store), service, value).await;
        world.follower.written_back(service, result);
    }
}

fn embedded() -> Arc<dyn Store> {
    Arc::new(EmbeddedStore::open(None, Duration::from_secs(2), store::Metrics::default()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn settings_that_a_wiped_store_lost_are_written_back_to_the_letter() {
    let (mut world, store) = (world(), embedded());
    lost_settings_over(Arc::clone(&store), &mut world).await;
    let restored = store.get(&settings().path).await.unwrap().unwrap();
    assert_eq!(restored.value, settings().value);
    assert!(world.has_settings());
    assert_eq!(world.metrics.restored.with_label_values(&["written"]).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn settings_that_another_agent_wrote_back_meanwhile_are_left_alone() {
    let (mut world, store) = (world(), embedded());
    store.put(&settings().path, b"{}".to_vec(), None).await.unwrap();
    lost_settings_over(Arc::clone(&store), &mut world).await;
    assert_eq!(store.get(&settings().path).await.unwrap().unwrap().value, b"{}");
    assert_eq!(world.metrics.restored.with_label_values(&["found"]).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restoration_that_fails_is_tried_again() {
    let (mut world, store) = (world(), embedded());
    store.shutdown().await;
    world.after([snapshot(&[settings()], SnapshotCause::First), snapshot(&[], SnapshotCause::Reset)]).await;
    sleep_until(world.follower.next_write()).await;
    let (service, value) = world.follower.next_lost().unwrap();
    let (service, result) = write_back(store, service, value).await;
    world.follower.written_back(service, result);
    assert!(world.follower.next_lost().is_none() && world.has_settings());
    sleep_until(world.follower.next_write()).await;
    assert!(world.follower.next_lost().is_some());
}

#[tokio::test]
async fn the_catalog_follows_a_real_store_and_keeps_what_it_knows_when_that_ends() {
    let (store, tasks) = (embedded(), Tasks::new());
    let (catalog, writer) = Catalog::new();
    let metrics = Metrics::new().unwrap();
    let handle = start(Config::default(), Arc::clone(&store), writer, None, metrics, &tasks);
    handle.filled().await;
    assert_eq!(*catalog.freshness(), Freshness::Live);
    let mut subscription = catalog.subscribe();
    store.put(&instance("1").path, instance("1").value, None).await.unwrap();
    subscription.changed().await;
    assert_eq!(catalog.service("web").unwrap().endpoints.len(), 1);
    store.delete(&instance("1").path).await.unwrap();
    subscription.changed().await;
    assert!(catalog.service("web").is_none());
    store.put(&instance("2").path, instance("2").value, None).await.unwrap();
    subscription.changed().await;
    store.shutdown().await;
    let stale = async {
        while !catalog.freshness().is_stale() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), stale).await.unwrap();
    assert_eq!(catalog.endpoint_count(), 1);
    tasks.shutdown().await;
}

/// What a store may do, for the property below: 0 to 2 act on it, the others are what its watch tells of itself.
fn acts() -> impl Strategy<Value = Vec<(u8, u8, u16)>> {
    proptest::collection::vec((0..9u8, 0..9u8, 1..4u16), 0..60)
}

fn written(what: u8, port: u16) -> Entry {
    let mut written = match what {
        0..3 => {
            let mut record = record(&what.to_string());
            record["port"] = port.into();
            record["draining"] = (port == 3).into();
            entry(&format!("instances/web/{what}"), &record, 1)
        }
        3 => node("a"),
        4 => entry("services/web", &serde_json::json!({"published": [{"port": port}]}), 1),
        5 => network(u32::from(port)),
        7 => rules::rules(),
        6 => subnet(7, if port == 1 { "a" } else { "b" }),
        _ => entry("of-a-newer-agent/x", &serde_json::json!({}), 1),
    };
    written.revision = Revision(u64::from(port));
    written
}

proptest! {
    #[test]
    fn without_a_grace_the_catalog_ends_as_the_store_does(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = world_with(Duration::ZERO, None);
            let mut truth: BTreeMap<String, Entry> = BTreeMap::new();
            let mut unseen = Vec::new();
            let mut revision = 10;
            world.follower.handle(snapshot_at(revision, &[], SnapshotCause::First)).await;
            for (act, what, port) in acts {
                revision += 1;
                let entries: Vec<Entry> = truth.values().cloned().collect();
                match act {
                    0 | 1 => {
                        let entry = written(what, port);
                        truth.insert(entry.path.to_string(), entry.clone());
                        unseen.push(Change::Put(entry));
                    }
                    2 => {
                        let path = written(what, port).path;
                        if truth.remove(path.as_str()).is_some() {
                            unseen.push(Change::Delete(path));
                        }
                    }
                    3 | 4 if !unseen.is_empty() => {
                        world.follower.handle(WatchEvent::Changes(std::mem::take(&mut unseen))).await;
                    }
                    5 => world.follower.handle(WatchEvent::Disconnected(error())).await,
                    6 => world.follower.handle(WatchEvent::Resumed).await,
                    8 => world.follower.handle(WatchEvent::Stalled(Duration::from_secs(what.into()))).await,
                    7 => {
                        unseen.clear();
                        world.follower.handle(snapshot_at(revision, &entries, SnapshotCause::Resync)).await;
                    }
                    _ => {}
                }
            }
            let entries: Vec<Entry> = truth.values().cloned().collect();
            if unseen.is_empty() {
                world.follower.handle(WatchEvent::Resumed).await;
            } else {
                world.follower.handle(WatchEvent::Changes(unseen)).await;
                world.follower.handle(WatchEvent::Resumed).await;
            }
            let (fresh, mut writer) = Catalog::new();
            writer.apply(entries.iter().filter_map(|entry| {
                let key = Key::parse(&entry.path)?;
                let decoded = crate::watch::record::decode(&key, &entry.value, &mut crate::catalog::Names::default());
                Some(decoded.unwrap().change)
            }));
            let shown = |catalog: &Catalog| {
                let services = catalog.services();
                let services: Vec<_> = services.iter().map(|s| (s.name.clone(), s.settings.clone(), s.endpoints.clone())).collect();
                let networks = catalog.networks();
                let networks: Vec<_> = networks.iter().map(|view| (view.name.clone(), view.network.clone())).collect();
                (services, catalog.nodes(), networks, held(catalog), catalog.rules())
            };
            prop_assert_eq!(shown(&world.catalog), shown(&fresh));
            prop_assert_eq!(world.follower.next_doom(), None);
            Ok(())
        })?;
    }
}
