//! A balancer as its users see it: a catalog on one side, connections on the other.

use std::sync::atomic::AtomicU32;
use std::task::Wake;

use nerve::model::Instance;
use synapse::catalog::{Catalog, Change};

use super::*;

/// A service of some instances, given as what they differ in, with its settings.
fn service(instances: &[serde_json::Value], settings: serde_json::Value) -> Arc<Service> {
    let (catalog, mut writer) = Catalog::new();
    let name = ServiceName::new("web").unwrap();
    let instances = instances.iter().map(|fields| {
        let mut json = serde_json::json!({"service": "web", "node": "a", "address": "192.0.2.1", "port": 80});
        json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Change::PutInstance(Arc::new(serde_json::from_value::<Instance>(json).unwrap()))
    });
    let settings = Arc::new(serde_json::from_value(settings).unwrap());
    writer.apply(instances.chain([Change::PutSettings(name, settings)]));
    catalog.service("web").unwrap()
}

fn plain(ids: &[&str]) -> Vec<serde_json::Value> {
    ids.iter().map(|id| serde_json::json!({"id": id})).collect()
}

type Closed = Arc<Mutex<Vec<(String, Closing)>>>;

fn made(
    instances: &[serde_json::Value],
    settings: serde_json::Value,
    target: Option<&str>,
) -> (Balancer, Closed) {
    let closed = Closed::default();
    let log = Arc::clone(&closed);
    let surroundings = Surroundings {
        place: Place {
            region: Some("eu".parse().unwrap()),
            zone: Some("here".parse().unwrap()),
            ..Place::default()
        },
        metrics: Metrics::new().unwrap(),
        on_closing: Arc::new(move |endpoint, closing| {
            log.lock().unwrap().push((endpoint.id().to_string(), closing))
        }),
    };
    let target = target.map(|name| PortName::new(name).unwrap());
    let balancer = Balancer::new(ServiceName::new("web").unwrap(), target, &surroundings);
    balancer.update(Some(&service(instances, settings)));
    (balancer, closed)
}

fn balancer(instances: &[serde_json::Value], settings: serde_json::Value) -> Balancer {
    made(instances, settings, None).0
}

fn default(ids: &[&str]) -> Balancer {
    balancer(&plain(ids), serde_json::json!({}))
}

fn client(last: u8) -> ClientKey {
    ClientKey { address: ([198, 51, 100, last], 4000).into(), waited: false, datagrams: false }
}

impl Balancer {
    fn pick_for(&self, last: u8) -> Result<Lease, NoEndpoint> {
        self.pick(&client(last), &Tried::none(), Instant::now())
    }

    fn next(&self) -> Result<Lease, NoEndpoint> {
        self.pick_for(1)
    }

    /// How many of `count` connections each endpoint gets.
    fn shares(&self, count: usize) -> std::collections::BTreeMap<String, usize> {
        let mut shares = std::collections::BTreeMap::new();
        for _ in 0..count {
            *shares.entry(id(&self.next().unwrap())).or_default() += 1;
        }
        shares
    }
}

fn id(lease: &Lease) -> String {
    lease.endpoint().id().to_string()
}

fn fail(lease: &Lease) {
    Tried::none().failed(lease, ConnectFailure::Refused);
}

#[test]
fn connections_take_turns() {
    let balancer = default(&["1", "2", "3"]);
    let ids: Vec<_> = (0..6).map(|_| id(&balancer.next().unwrap())).collect();
    assert_eq!(ids[..3], ids[3..]);
    assert_eq!(ids[..3].iter().collect::<std::collections::HashSet<_>>().len(), 3);
}

#[test]
fn a_connection_tries_each_endpoint_once() {
    let balancer = default(&["1", "2"]);
    let mut tried = Tried::none();
    let first = balancer.next().unwrap();
    tried.failed(&first, ConnectFailure::Refused);
    let second = balancer.pick(&client(1), &tried, Instant::now()).unwrap();
    assert_ne!(id(&first), id(&second));
    tried.failed(&second, ConnectFailure::TimedOut);
    let error = balancer.pick(&client(1), &tried, Instant::now()).unwrap_err();
    assert_eq!(error.to_string(), "web has no endpoint to try any more: 2 could not be connected to");
    assert!(!error.is_full());
}

#[test]
fn an_endpoint_that_refused_is_passed_over_by_the_next_connections() {
    let balancer = default(&["1", "2"]);
    let refused = balancer.next().unwrap();
    fail(&refused);
    for _ in 0..4 {
        assert_ne!(id(&balancer.next().unwrap()), id(&refused));
    }
}

#[test]
fn what_this_node_lacks_is_not_held_against_an_endpoint() {
    let balancer = default(&["1", "2"]);
    Tried::none().failed(&balancer.next().unwrap(), ConnectFailure::Local);
    assert!(balancer.endpoints().iter().all(|endpoint| endpoint.ejected().is_none()));
}

#[test]
fn when_all_are_ejected_they_are_tried_all_the_same() {
    let balancer = default(&["1", "2"]);
    (0..2).for_each(|_| fail(&balancer.next().unwrap()));
    assert!(balancer.next().is_ok());
}

#[test]
fn what_is_known_of_an_endpoint_outlives_an_update() {
    let balancer = default(&["1"]);
    let lease = balancer.next().unwrap();
    fail(&lease);
    balancer.update(Some(&service(&plain(&["1", "2"]), serde_json::json!({}))));
    let first = &balancer.endpoints()[0];
    assert_eq!((first.id().as_str(), first.in_flight(), first.ejected().is_some()), ("1", 1, true));
    balancer.update(Some(&service(
        &[serde_json::json!({"id": "1", "health": "critical"})],
        serde_json::json!({}),
    )));
    assert_eq!(balancer.endpoints()[0].in_flight(), 1);
    drop(lease);
    assert_eq!(first.in_flight(), 0);
}

#[test]
fn the_reason_for_having_none_is_told() {
    let starting = serde_json::json!({"id": "1", "health": "starting"});
    let leaving = serde_json::json!({"id": "2", "draining": true});
    let error = balancer(&[starting, leaving], serde_json::json!({})).next().unwrap_err();
    assert_eq!(error.to_string(), "web has no endpoint to try; 1 starting; 1 draining");
}

#[test]
fn a_named_port_leads_to_the_instances_that_have_it() {
    let with = serde_json::json!({"id": "1", "ports": {"metrics": 9100}});
    let (balancer, _) = made(&[with, serde_json::json!({"id": "2"})], serde_json::json!({}), Some("metrics"));
    for _ in 0..3 {
        assert_eq!(balancer.next().unwrap().endpoint().address().ip().unwrap().port(), 9100);
    }
}

#[test]
fn with_too_few_well_all_are_balanced_over_but_those_that_drain_or_start() {
    let instances = [
        serde_json::json!({"id": "1"}),
        serde_json::json!({"id": "2", "health": "critical"}),
        serde_json::json!({"id": "3", "health": "critical"}),
        serde_json::json!({"id": "4", "health": "starting"}),
        serde_json::json!({"id": "5", "draining": true}),
    ];
    let of = |threshold: u32| {
        balancer(&instances, serde_json::json!({"balance": {"panic_threshold": threshold}})).shares(30)
    };
    assert_eq!(of(33).into_keys().collect::<Vec<_>>(), ["1"]);
    assert_eq!(of(34).into_keys().collect::<Vec<_>>(), ["1", "2", "3"]);
    let all_sick = &instances[1..];
    assert_eq!(
        balancer(all_sick, serde_json::json!({})).shares(20).into_keys().collect::<Vec<_>>(),
        ["2", "3"]
    );
    let off = serde_json::json!({"balance": {"panic_threshold": 0}});
    assert!(balancer(all_sick, off).next().is_err());
}

#[test]
fn what_fails_after_its_endpoint_died_or_left_counts_nobody_as_ejected() {
    let balancer = default(&["1", "2", "3"]);
    let leases: Vec<_> = (0..3).map(|_| balancer.next().unwrap()).collect();
    let second = leases.iter().find(|lease| id(lease) == "2").unwrap();
    let settings = || serde_json::json!({});
    let dead = [
        serde_json::json!({"id": "1"}),
        serde_json::json!({"id": "2", "health": "critical"}),
        serde_json::json!({"id": "3"}),
    ];
    for instances in [dead.to_vec(), plain(&["1", "3"])] {
        balancer.update(Some(&service(&instances, settings())));
        // Its connect was under way, and times out only now.
        fail(second);
        assert_eq!((balancer.report().ejected, balancer.report().panic), (0, false));
    }
    leases.iter().for_each(fail);
    assert_eq!(balancer.report().ejected, 1, "one of the two that are left may be ejected");
}

#[test]
fn ejections_are_not_believed_when_they_leave_too_few() {
    let balancer =
        balancer(&plain(&["1", "2", "3"]), serde_json::json!({"balance": {"panic_threshold": 50}}));
    let failing = balancer.next().unwrap();
    fail(&failing);
    assert_eq!(balancer.shares(20).len(), 2);
    fail(&balancer.next().unwrap());
    assert_eq!(balancer.shares(30).len(), 3);
}

#[test]
fn a_split_is_met_exactly_and_changes_at_run_time() {
    let instances =
        [serde_json::json!({"id": "1", "tags": ["v1"]}), serde_json::json!({"id": "2", "tags": ["v2"]})];
    let split = |v1: u8, v2: u8| serde_json::json!({"balance": {"split": {"v1": v1, "v2": v2}}});
    let balancer = balancer(&instances, split(95, 5));
    assert_eq!(balancer.shares(200).into_values().collect::<Vec<_>>(), [190, 10]);
    balancer.update(Some(&service(&instances, split(50, 50))));
    assert_eq!(balancer.shares(200).into_values().collect::<Vec<_>>(), [100, 100]);
    balancer.update(Some(&service(&instances[..1], split(5, 95))));
    assert_eq!(
        balancer.shares(10).into_values().collect::<Vec<_>>(),
        [10],
        "nobody is lost to a group without endpoints"
    );
}

#[test]
fn a_hash_split_keeps_a_client_in_its_group() {
    let instances =
        [serde_json::json!({"id": "1", "tags": ["v1"]}), serde_json::json!({"id": "2", "tags": ["v2"]})];
    let split =
        |v2: u8| serde_json::json!({"balance": {"policy": "maglev", "split": {"v1": 100 - v2, "v2": v2}}});
    let balancer = balancer(&instances, split(20));
    let picks =
        |balancer: &Balancer| (0..=255).map(|last| id(&balancer.pick_for(last).unwrap())).collect::<Vec<_>>();
    let before = picks(&balancer);
    assert_eq!(before, picks(&balancer));
    let on_v2 = before.iter().filter(|id| *id == "2").count();
    assert!((25..80).contains(&on_v2), "{on_v2} of 256");
    balancer.update(Some(&service(&instances, split(30))));
    assert!(before.iter().zip(picks(&balancer)).all(|(before, after)| before == "1" || after == "2"));
}

#[test]
fn the_own_zone_is_preferred_until_its_capacity_is_short() {
    let of = |id: &str, zone: &str, health: &str| serde_json::json!({"id": id, "region": "eu", "zone": zone, "health": health});
    let settings = || serde_json::json!({"balance": {"locality": "prefer_zone"}});
    let mut instances =
        vec![of("1", "here", "passing"), of("2", "here", "passing"), of("3", "there", "passing")];
    let balancer = balancer(&instances, settings());
    assert_eq!(balancer.shares(100).into_keys().collect::<Vec<_>>(), ["1", "2"]);
    instances[0] = of("1", "here", "critical");
    balancer.update(Some(&service(&instances, settings())));
    let shares = balancer.shares(100);
    assert_eq!((shares["2"], shares["3"]), (70, 30), "140 % of a half");
    instances[1] = of("2", "here", "critical");
    balancer.update(Some(&service(&instances, settings())));
    assert_eq!(balancer.shares(100).into_keys().collect::<Vec<_>>(), ["3"]);
}

#[test]
fn the_own_zone_comes_before_its_region_and_that_before_the_rest() {
    let of = |id: &str, region: &str, zone: &str, health: &str| serde_json::json!({"id": id, "region": region, "zone": zone, "health": health});
    let settings = |locality: &str| serde_json::json!({"balance": {"locality": locality}});
    let well = |id: &str, region: &str, zone: &str| of(id, region, zone, "passing");
    // A zone of that name in another region is another zone.
    let mut instances = vec![
        well("1", "eu", "here"),
        well("2", "eu", "here"),
        well("3", "eu", "there"),
        well("4", "us", "here"),
    ];
    let balancer = balancer(&instances, settings("prefer_zone"));
    let used = || balancer.shares(100).into_iter().collect::<Vec<_>>();
    let expected =
        |shares: &[(&str, usize)]| shares.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect::<Vec<_>>();
    assert_eq!(used(), expected(&[("1", 50), ("2", 50)]));
    let region = |update: &[serde_json::Value], locality: &str| {
        balancer.update(Some(&service(update, settings(locality))))
    };
    region(&instances, "prefer_region");
    assert_eq!(used().iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
    instances[0] = of("1", "eu", "here", "critical");
    region(&instances, "prefer_zone");
    assert_eq!(used(), expected(&[("2", 70), ("3", 30)]));
    instances.push(of("5", "eu", "there", "critical"));
    instances.push(of("6", "eu", "there", "critical"));
    instances[1] = of("2", "eu", "here", "critical");
    region(&instances, "prefer_zone");
    // 140 % of a third of the region.
    assert_eq!(used(), expected(&[("3", 46), ("4", 54)]));
    let report = balancer.report();
    let at = |id: &str| report.endpoints.iter().find(|endpoint| endpoint.id.as_str() == id).unwrap();
    assert!(at("3").other_zone && !at("3").other_region && at("4").other_region);
    assert_eq!((at("3").share, at("4").share), (0.46, 0.54));
}

#[test]
fn a_backup_is_used_when_there_is_nobody_else() {
    let of = |id: &str, health: &str| serde_json::json!({"id": id, "health": health, "backup": id == "9"});
    let settings = || serde_json::json!({"balance": {"panic_threshold": 50}});
    let used = |balancer: &Balancer| balancer.shares(20).into_keys().collect::<Vec<_>>();
    let balancer = balancer(&[of("1", "passing"), of("2", "passing"), of("9", "passing")], settings());
    assert_eq!(used(&balancer), ["1", "2"]);
    // Less than the threshold, but with somebody that stands in it is no panic.
    for (one, two, expected) in [("passing", "critical", "1"), ("critical", "critical", "9")] {
        balancer.update(Some(&service(&[of("1", one), of("2", two), of("9", "passing")], settings())));
        assert_eq!(used(&balancer), [expected], "{one} {two}");
    }
    assert!(balancer.report().endpoints[2].backup && balancer.report().endpoints[2].share > 0.99);
    balancer
        .update(Some(&service(&[of("1", "passing"), of("2", "passing"), of("9", "critical")], settings())));
    assert_eq!(used(&balancer), ["1", "2"], "an unwell backup is not missed");
    balancer.update(Some(&service(&[of("1", "passing"), of("9", "passing")], settings())));
    let lease = balancer.next().unwrap();
    assert_eq!(id(&lease), "1");
    fail(&lease);
    assert_eq!(used(&balancer), ["9"], "ejected");
}

#[test]
fn a_subset_is_used_and_the_rest_when_that_has_nobody() {
    let ids: Vec<String> = (0..20).map(|at| at.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let balancer = balancer(&plain(&ids), serde_json::json!({"balance": {"subset": 3}}));
    let used = balancer.shares(60);
    assert_eq!(used.len(), 3);
    let mut tried = Tried::none();
    for _ in 0..4 {
        let lease = balancer.pick(&client(1), &tried, Instant::now()).unwrap();
        tried.failed(&lease, ConnectFailure::Refused);
    }
    assert_eq!(tried.len(), 4, "the fourth is of the others");
}

#[test]
fn a_client_stays_with_its_endpoint_until_that_is_gone() {
    let settings = || serde_json::json!({"balance": {"affinity": "1m"}});
    let balancer = balancer(&plain(&["1", "2", "3"]), settings());
    let first = id(&balancer.pick_for(7).unwrap());
    for other in 0..50 {
        let _ = balancer.pick_for(100 + other).unwrap();
        assert_eq!(id(&balancer.pick_for(7).unwrap()), first);
    }
    let left: Vec<&str> = ["1", "2", "3"].into_iter().filter(|id| *id != first).collect();
    balancer.update(Some(&service(&plain(&left), settings())));
    let second = id(&balancer.pick_for(7).unwrap());
    assert_ne!(second, first);
    balancer.update(Some(&service(&plain(&["1", "2", "3"]), settings())));
    assert_eq!(id(&balancer.pick_for(7).unwrap()), second);
}

#[test]
fn a_client_that_was_away_for_long_is_forgotten() {
    let balancer = balancer(&plain(&["1", "2"]), serde_json::json!({"balance": {"affinity": "1s"}}));
    let start = Instant::now();
    let at = |seconds: u64| {
        let now = start + Duration::from_secs(seconds);
        id(&balancer.pick(&client(7), &Tried::none(), now).unwrap())
    };
    let first = at(0);
    assert_eq!([at(1), at(2), at(3)], [first.clone(), first.clone(), first.clone()]);
    assert_ne!(at(5), first, "it is the other's turn");
}

#[test]
fn a_new_endpoint_gets_less_at_first_and_those_of_the_beginning_do_not() {
    let settings = || serde_json::json!({"balance": {"slow_start": "1h"}});
    let balancer = balancer(&plain(&["1", "2"]), settings());
    assert_eq!(balancer.shares(100).into_values().collect::<Vec<_>>(), [50, 50]);
    balancer.update(Some(&service(&plain(&["1", "2", "3"]), settings())));
    let shares = balancer.shares(2100);
    // A tenth of a third, and what it declines goes on to others.
    assert!((80..120).contains(&shares["3"]), "{shares:?}");
}

#[derive(Default)]
struct Bell(AtomicU32);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn at_the_limit_connections_wait_and_go_on_in_their_order() {
    let balancer =
        balancer(&plain(&["1"]), serde_json::json!({"limits": {"endpoint_connections": 1, "queue": 2}}));
    let held = balancer.next().unwrap();
    assert!(balancer.next().unwrap_err().is_full());
    assert_eq!(balancer.queue_timeout(), Some(Duration::from_secs(5)));
    let bell = Arc::new(Bell::default());
    let ticket = balancer.wait(Arc::clone(&bell).into()).unwrap();
    let waited = ClientKey { waited: true, ..client(1) };
    assert!(balancer.pick(&waited, &Tried::none(), Instant::now()).unwrap_err().is_full());
    ticket.again(Arc::clone(&bell).into());
    let rung = bell.0.load(Ordering::SeqCst);
    drop(held);
    assert_eq!(bell.0.load(Ordering::SeqCst), rung + 1);
    assert!(balancer.next().unwrap_err().is_full(), "who comes now is behind who waited");
    let lease = balancer.pick(&waited, &Tried::none(), Instant::now()).unwrap();
    drop(ticket);
    drop(lease);
    assert!(balancer.next().is_ok());
}

#[test]
fn what_happens_at_the_limit_is_a_choice() {
    let instances = [serde_json::json!({"id": "1", "tags": ["v1"]}), serde_json::json!({"id": "2"})];
    let of = |at_limit: &str| {
        let settings = serde_json::json!({
            "balance": {"split": {"v1": 100}}, "limits": {"endpoint_connections": 1, "at_limit": at_limit},
        });
        balancer(&instances, settings)
    };
    for (at_limit, waits) in [("queue", true), ("refuse", false)] {
        let balancer = of(at_limit);
        let _held = balancer.next().unwrap();
        assert!(balancer.next().unwrap_err().is_full());
        assert_eq!(balancer.wait(Waker::noop().clone()).is_ok(), waits, "{at_limit}");
    }
    let balancer = of("spill");
    let held = [balancer.next().unwrap(), balancer.next().unwrap()];
    assert_eq!(held.each_ref().map(id), ["1", "2"]);
    assert!(balancer.wait(Waker::noop().clone()).is_ok(), "all are full");
}

#[test]
fn an_endpoint_that_dies_has_its_idle_connections_closed_and_one_that_drains_does_not() {
    let (balancer, closed) = made(&plain(&["1", "2", "3"]), serde_json::json!({}), None);
    let held: Vec<_> = (0..3).map(|_| balancer.next().unwrap()).collect();
    let after = [
        serde_json::json!({"id": "1", "draining": true}),
        serde_json::json!({"id": "2", "health": "critical"}),
    ];
    balancer.update(Some(&service(&after, serde_json::json!({}))));
    assert_eq!(*closed.lock().unwrap(), [("2".to_owned(), Closing::Idle), ("3".to_owned(), Closing::Idle)]);
    assert_eq!(held.iter().map(|lease| lease.endpoint().is_dead()).collect::<Vec<_>>(), [false, true, true]);
    closed.lock().unwrap().clear();
    balancer.update(None);
    assert!(closed.lock().unwrap().is_empty(), "it was drained before it left");
    let off = serde_json::json!({"balance": {"close_idle_on_death": false}});
    balancer.update(Some(&service(&plain(&["1"]), off.clone())));
    balancer.update(Some(&service(&[serde_json::json!({"id": "1", "health": "critical"})], off)));
    assert!(closed.lock().unwrap().is_empty());
}

#[test]
fn what_is_left_of_a_drain_is_closed_when_its_time_is_over() {
    let settings = || serde_json::json!({"balance": {"drain": "1ms"}});
    let (balancer, closed) = made(&plain(&["1", "2"]), settings(), None);
    let held: Vec<_> = (0..2).map(|_| balancer.next().unwrap()).collect();
    let draining = [serde_json::json!({"id": "1", "draining": true}), serde_json::json!({"id": "2"})];
    balancer.update(Some(&service(&draining, settings())));
    let deadline = Instant::now() + Duration::from_secs(20);
    while closed.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "never closed");
        balancer.tick();
    }
    assert_eq!(*closed.lock().unwrap(), [("1".to_owned(), Closing::All)]);
    drop(held);
}

#[test]
fn a_slow_endpoint_is_ejected_where_that_is_wanted() {
    let settings = serde_json::json!({"balance": {"outlier": {"latency_factor": 5}}});
    let balancer = balancer(&plain(&["1", "2", "3", "4"]), settings);
    for _ in 0..80 {
        let lease = balancer.next().unwrap();
        let latency = if id(&lease) == "3" { 200 } else { 10 };
        lease.first_byte(Duration::from_millis(latency));
    }
    balancer.tick();
    let ejected = |endpoint: &Arc<Endpoint>| endpoint.ejected().map(|(reason, _)| reason);
    let known = balancer.endpoints();
    assert_eq!(known.iter().map(ejected).collect::<Vec<_>>(), [None, None, Some(Ejection::Latency), None]);
}

#[test]
fn retries_end_with_their_budget_and_are_counted() {
    let settings = serde_json::json!({"balance": {"retry": {"budget": 0, "min_per_second": 0}}});
    let balancer = balancer(&plain(&["1", "2"]), settings);
    let mut tried = Tried::none();
    tried.failed(&balancer.next().unwrap(), ConnectFailure::Refused);
    let error = balancer.pick(&client(1), &tried, Instant::now()).unwrap_err();
    assert_eq!(error.obstacle, Obstacle::RetryBudget);
    assert_eq!(balancer.shared.metrics.refused_so_far(Refused::RetryBudget), 1);
}

#[test]
fn tables_are_made_again_only_where_endpoints_or_weights_are_others() {
    let maglev = || serde_json::json!({"balance": {"policy": "maglev"}});
    let balancer = balancer(&plain(&["1", "2"]), maglev());
    let table = || Arc::clone(&balancer.pool.load().groups[0].sets[0]);
    let before = table();
    let tagged = [serde_json::json!({"id": "1", "tags": ["new"]}), serde_json::json!({"id": "2"})];
    balancer.update(Some(&service(&tagged, maglev())));
    assert!(Arc::ptr_eq(&before, &table()));
    let heavier = [serde_json::json!({"id": "1", "weight": 101}), serde_json::json!({"id": "2"})];
    balancer.update(Some(&service(&heavier, maglev())));
    assert!(!Arc::ptr_eq(&before, &table()));
}

#[test]
fn a_policy_changes_at_run_time() {
    let balancer = default(&["1", "2", "3"]);
    assert_eq!(balancer.shares(30).len(), 3);
    let maglev = serde_json::json!({"balance": {"policy": "maglev"}});
    balancer.update(Some(&service(&plain(&["1", "2", "3"]), maglev)));
    assert_eq!(balancer.shares(30).len(), 1, "one client, one endpoint");
}

#[test]
fn the_report_says_what_a_pick_looks_at() {
    let instances = [
        serde_json::json!({"id": "1", "tags": ["v1"], "weight": 300}),
        serde_json::json!({"id": "2", "tags": ["v1"]}),
        serde_json::json!({"id": "3", "tags": ["v2"]}),
        serde_json::json!({"id": "4", "health": "critical"}),
    ];
    let settings = serde_json::json!({"balance": {"split": {"v1": 80, "v2": 20}}, "limits": {"endpoint_connections": 1}});
    let texts = |numbers: [u32; 4]| numbers.map(|number| number.to_string()).to_vec();
    let balancer = balancer(&instances, settings);
    let shares = |report: &Report| {
        report.endpoints.iter().map(|e| format!("{:.0}", e.share * 100.0)).collect::<Vec<_>>()
    };
    let report = balancer.report();
    assert_eq!((shares(&report), report.serving, report.ejected), (texts([60, 20, 20, 0]), 3, 0));
    assert_eq!(report.endpoints[2].group.as_deref(), Some("v2"));
    let lease = balancer.next().unwrap();
    assert_eq!(id(&lease), "1");
    assert!(balancer.report().endpoints[0].at_limit);
    fail(&lease);
    let report = balancer.report();
    assert_eq!((shares(&report), report.ejected), (texts([0, 80, 20, 0]), 1));
    assert!(matches!(report.endpoints[0].ejected, Some((Ejection::ConnectFailures, _))));
}
