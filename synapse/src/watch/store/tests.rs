//! The watcher's rules, event by event, and once over a real store.

use nerve::store::{ErrorKind, StoreConfig};

use super::*;

struct World {
    watcher: Watcher,
    store: Arc<dyn Store>,
    catalog: Catalog,
    tasks: Tasks,
}

fn world() -> World {
    let metrics = store::Metrics::default();
    let store = store::open(&StoreConfig::new("embedded".parse().unwrap()), &metrics).unwrap();
    let (catalog, writer) = Catalog::new();
    let tasks = Tasks::new();
    let (watcher, _handle) =
        Watcher::new(Config::default(), Arc::clone(&store), writer, None, Metrics::new().unwrap(), &tasks);
    World { watcher, store, catalog, tasks }
}

fn entry(path: &str, value: &serde_json::Value, revision: u64) -> Entry {
    Entry {
        path: Path::new(path).unwrap(),
        value: value.to_string().into_bytes(),
        revision: Revision(revision),
    }
}

fn instance(id: &str) -> Entry {
    let value =
        serde_json::json!({"service": "web", "id": id, "node": "a", "address": "192.0.2.1", "port": 80});
    entry(&format!("instances/web/{id}"), &value, 1)
}

fn settings() -> Entry {
    entry("services/web", &serde_json::json!({"published": [{"port": 8080}]}), 1)
}

fn snapshot(entries: &[Entry], cause: SnapshotCause) -> WatchEvent {
    WatchEvent::Snapshot { entries: entries.to_vec(), revision: Revision(1), cause }
}

fn deleted(path: &str) -> WatchEvent {
    WatchEvent::Changes(vec![store::Change::Delete(Path::new(path).unwrap())])
}

fn out_of_reach() -> WatchEvent {
    WatchEvent::Disconnected(store::Error {
        operation: "watch",
        target: String::new(),
        store: "etcd://192.0.2.9:2379".to_owned(),
        kind: ErrorKind::Unavailable,
        may_have_applied: false,
        reason: "refused".to_owned(),
        source: None,
    })
}

impl World {
    /// `id`, with a `?` where it is unconfirmed.
    fn endpoints(&self) -> Vec<String> {
        let service = self.catalog.service("web");
        let mark = |e: &crate::catalog::Endpoint| {
            format!("{}{}", e.instance.id, if e.unconfirmed { "?" } else { "" })
        };
        service.map_or_else(Vec::new, |service| service.endpoints.iter().map(mark).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_is_obeyed_at_once() {
    let mut world = world();
    world.watcher.handle(snapshot(&[instance("1"), instance("2")], SnapshotCause::First));
    world.watcher.handle(deleted("instances/web/1"));
    assert_eq!(world.endpoints(), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_returning_store_does_not_list_keeps_its_traffic_for_the_grace() {
    let mut world = world();
    world.watcher.handle(snapshot(&[instance("1"), instance("2")], SnapshotCause::First));
    world.watcher.handle(out_of_reach());
    assert!(world.catalog.freshness().is_stale());
    world.watcher.handle(snapshot(&[instance("2")], SnapshotCause::Resync));
    assert_eq!(
        (world.endpoints(), &*world.catalog.freshness()),
        (vec!["1?".to_owned(), "2".to_owned()], &Freshness::Live)
    );
    tokio::time::advance(Duration::from_secs(14)).await;
    world.watcher.drop_doomed();
    assert_eq!(world.endpoints(), ["1?", "2"]);
    tokio::time::advance(Duration::from_secs(2)).await;
    world.watcher.drop_doomed();
    assert_eq!(world.endpoints(), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn what_registers_again_within_the_grace_is_as_good_as_before() {
    let mut world = world();
    world.watcher.handle(snapshot(&[instance("1")], SnapshotCause::First));
    world.watcher.handle(snapshot(&[], SnapshotCause::Reset));
    assert_eq!(world.endpoints(), ["1?"]);
    world.watcher.handle(WatchEvent::Changes(vec![store::Change::Put(instance("1"))]));
    tokio::time::advance(Duration::from_secs(60)).await;
    world.watcher.drop_doomed();
    assert_eq!(world.endpoints(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_right_after_an_outage_is_suspicious() {
    let mut world = world();
    world.watcher.handle(snapshot(&[instance("1")], SnapshotCause::First));
    world.watcher.handle(out_of_reach());
    tokio::time::advance(Duration::from_secs(60)).await;
    world.watcher.handle(WatchEvent::Resumed);
    world.watcher.handle(deleted("instances/web/1"));
    assert_eq!(world.endpoints(), ["1?"]);
    tokio::time::advance(Duration::from_secs(16)).await;
    world.watcher.drop_doomed();
    assert_eq!(world.endpoints(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_delete_after_a_short_break_means_what_it_says() {
    let mut world = world();
    world.watcher.handle(snapshot(&[instance("1")], SnapshotCause::First));
    world.watcher.handle(out_of_reach());
    tokio::time::advance(Duration::from_millis(500)).await;
    world.watcher.handle(WatchEvent::Resumed);
    world.watcher.handle(deleted("instances/web/1"));
    assert_eq!(world.endpoints(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn settings_that_a_wiped_store_lost_are_kept_and_written_back() {
    let mut world = world();
    world.watcher.handle(snapshot(&[settings(), instance("1")], SnapshotCause::First));
    world.watcher.handle(snapshot(&[], SnapshotCause::Reset));
    assert_eq!(world.catalog.service("web").unwrap().settings.published.len(), 1);
    tokio::time::sleep(RESTORE_WITHIN * 2).await;
    let restored = world.store.get(&Path::new("services/web").unwrap()).await.unwrap().unwrap();
    let restored: nerve::model::ServiceSettings = serde_json::from_slice(&restored.value).unwrap();
    assert_eq!(restored, *world.catalog.service("web").unwrap().settings);
    world.tasks.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn settings_that_someone_deleted_during_an_outage_are_gone() {
    let mut world = world();
    world.watcher.handle(snapshot(&[settings(), instance("1")], SnapshotCause::First));
    world.watcher.handle(snapshot(&[instance("1")], SnapshotCause::Resync));
    assert!(world.catalog.service("web").unwrap().has_default_settings());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_leaves_its_last_good_version() {
    let mut world = world();
    world.watcher.handle(snapshot(&[instance("1")], SnapshotCause::First));
    let broken = entry("instances/web/1", &serde_json::json!({"service": 1}), 2);
    world.watcher.handle(WatchEvent::Changes(vec![store::Change::Put(broken.clone())]));
    assert_eq!(world.endpoints(), ["1"]);
    assert_eq!(world.watcher.refused.len(), 1);
    world.watcher.handle(snapshot(&[broken], SnapshotCause::Resync));
    assert_eq!(world.endpoints(), ["1"]);
}

#[tokio::test]
async fn the_catalog_follows_a_real_store() {
    let world = world();
    let (catalog, writer) = Catalog::new();
    let handle = start(
        Config::default(),
        Arc::clone(&world.store),
        writer,
        None,
        Metrics::new().unwrap(),
        &world.tasks,
    );
    handle.filled().await;
    assert_eq!(*catalog.freshness(), Freshness::Live);
    let mut subscription = catalog.subscribe();
    world.store.put(&instance("1").path, instance("1").value, None).await.unwrap();
    subscription.changed().await;
    assert_eq!(catalog.service("web").unwrap().endpoints.len(), 1);
    world.store.delete(&instance("1").path).await.unwrap();
    subscription.changed().await;
    assert!(catalog.service("web").is_none());
    world.tasks.shutdown().await;
}
