//! Several agents over one store: whatever they race for, the store has one service an address and one address a service.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::time::Duration;

use nerve::model::{Instance, ServiceName};
use nerve::store::{EmbeddedStore, Key};
use nerve::vips;
use proptest::prelude::*;
use synapse::watch::store as watcher;

use super::*;

/// Fourteen addresses.
const RANGE: &str = "10.96.0.0/28";
const RELEASE_AFTER: Duration = Duration::from_millis(200);

struct Agent {
    handle: Handle,
    catalog: Catalog,
    _usable: watch::Sender<Usable>,
}

/// An agent without routes: the range is taken for local.
fn agent(node: &str, store: &Arc<dyn Store>, tasks: &Tasks) -> Agent {
    let (catalog, writer) = Catalog::new();
    let metrics = synapse::Metrics::new().unwrap();
    let _watcher =
        watcher::start(watcher::Config::default(), Arc::clone(store), writer, None, metrics, tasks);
    let ranges: Usable = Arc::from([RANGE.parse().unwrap()]);
    let (tell, usable) = watch::channel(Arc::clone(&ranges));
    let config =
        Config { node: NodeName::new(node).unwrap(), ranges: ranges.to_vec(), release_after: RELEASE_AFTER };
    let handle =
        Handle { ranges, usable, judged: Arc::new(watch::Sender::new(true)), problems: Arc::default() };
    keeper::start(config, catalog.clone(), Arc::clone(store), handle.clone(), Metrics::new().unwrap(), tasks);
    Agent { handle, catalog, _usable: tell }
}

fn name(number: u8) -> ServiceName {
    ServiceName::new(&format!("s{number}")).unwrap()
}

async fn put(store: &dyn Store, service: u8, node: &str) {
    let json = serde_json::json!({
        "service": name(service), "id": node, "node": node, "address": "192.0.2.1", "port": NonZeroU16::MIN,
    });
    let instance: Instance = serde_json::from_value(json).unwrap();
    let path = Key::Instance(instance.service.clone(), instance.id.clone()).path();
    store.put(&path, serde_json::to_vec(&instance).unwrap(), None).await.unwrap();
}

async fn remove(store: &dyn Store, service: u8, node: &str) {
    let id = nerve::model::InstanceId::new(node).unwrap();
    store.delete(&Key::Instance(name(service), id).path()).await.unwrap();
}

/// Waits until the store has exactly one address for each of these services, and returns them.
async fn settled(store: &dyn Store, services: &BTreeSet<u8>) -> BTreeMap<ServiceName, IpAddr> {
    let wanted: BTreeSet<ServiceName> = services.iter().map(|number| name(*number)).collect();
    let mut last = BTreeMap::new();
    let is_settled = |claims: &BTreeMap<IpAddr, Option<ServiceName>>| {
        let holders: Vec<ServiceName> = claims.values().flatten().cloned().collect();
        holders.len() == wanted.len() && holders.into_iter().collect::<BTreeSet<_>>() == wanted
    };
    let look = async {
        while !is_settled(&last) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            last = vips::list(store).await.unwrap();
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(20), look).await;
    assert!(in_time.is_ok(), "{wanted:?}: {last:?}");
    last.into_iter().filter_map(|(ip, service)| Some((service?, ip))).collect()
}

async fn race(first: BTreeSet<u8>, second: BTreeSet<u8>) {
    let store = EmbeddedStore::open(None, Duration::from_secs(5), nerve::store::Metrics::default()).unwrap();
    let (store, tasks): (Arc<dyn Store>, _) = (Arc::new(store), Tasks::new());
    let agents = ["a", "b", "c"].map(|node| agent(node, &store, &tasks));
    // Every service has an instance on two nodes, whose agents both claim at once.
    for service in &first {
        tokio::join!(put(&*store, *service, "a"), put(&*store, *service, "b"));
    }
    let before = settled(&*store, &first).await;
    for service in first.difference(&second) {
        tokio::join!(remove(&*store, *service, "a"), remove(&*store, *service, "b"));
    }
    for service in second.difference(&first) {
        tokio::join!(put(&*store, *service, "b"), put(&*store, *service, "c"));
    }
    let after = settled(&*store, &second).await;
    for service in first.intersection(&second).map(|number| name(*number)) {
        assert_eq!(before[&service], after[&service], "{service} kept its address");
    }
    let range: Prefix = RANGE.parse().unwrap();
    assert!(after.values().all(|ip| range.contains(*ip)));
    for (service, ip) in &after {
        let told = |agent: &Agent| {
            let known = agent.catalog.service(service.as_str());
            known.map(|known| agent.handle.effective(&known.vips).collect::<Vec<_>>())
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !agents.iter().all(|agent| told(agent).as_deref() == Some(&[*ip])) {
            assert!(tokio::time::Instant::now() < deadline, "{service}: {:?}", agents.each_ref().map(told));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    tasks.shutdown().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn no_two_services_have_one_address_and_those_that_stay_keep_theirs(
        first in proptest::collection::btree_set(0..40_u8, 0..14), second in proptest::collection::btree_set(0..40_u8, 0..14),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(race(first, second));
    }
}

#[tokio::test]
async fn a_full_range_is_a_problem_until_an_address_is_free() {
    let store = EmbeddedStore::open(None, Duration::from_secs(5), nerve::store::Metrics::default()).unwrap();
    let (store, tasks): (Arc<dyn Store>, _) = (Arc::new(store), Tasks::new());
    let agent = agent("a", &store, &tasks);
    let all: BTreeSet<u8> = (0..14).collect();
    for service in &all {
        put(&*store, *service, "a").await;
    }
    settled(&*store, &all).await;
    put(&*store, 14, "a").await;
    let until = async |holds: &dyn Fn() -> bool| {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
    };
    until(&|| agent.handle.problems().iter().any(|p| p.contains("s14 gets no virtual address"))).await;
    remove(&*store, 0, "a").await;
    settled(&*store, &(1..15).collect()).await;
    until(&|| agent.handle.problems().is_empty()).await;
    tasks.shutdown().await;
}
