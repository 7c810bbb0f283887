//! What an operator sets of a service, on every node, while connections come in.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use plexus_tests::client::http::{Failure, Held};
use plexus_tests::{Cluster, Node, ServiceFile, eventually, needs};
use serde_json::Value;

use crate::{INSTANCE, PUBLISHED};

/// Longer than a setting takes from the store to every node.
const SOON: Duration = Duration::from_secs(5);

/// The instances that so many connections of `from` to `to` are answered by.
fn instances(from: &Node, to: SocketAddr, connections: usize) -> Result<BTreeSet<String>, Failure> {
    let answers = (0..connections).map(|_| from.get(to, "/"));
    answers.map(|answer| answer.map(|answer| answer.instance().unwrap_or_default())).collect()
}

/// What a node's balancer makes of an instance of `web`.
fn pick(node: &Node, id: &str) -> Value {
    let why = node.admin_json("/v1/plexus/why/web");
    let endpoints = why["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints
        .iter()
        .find(|endpoint| endpoint["id"] == id)
        .map(|found| found["pick"].clone())
        .unwrap_or_default()
}

fn balance(node: &Node) -> Value {
    node.admin_json("/v1/plexus/why/web")["balance"].clone()
}

/// Three nodes with an instance of `web` each, published.
fn three() -> (Cluster, Vec<plexus_tests::server::backend::Backend>) {
    let cluster = Cluster::new(3);
    let backends = cluster.all().map(|node| node.serve("web", INSTANCE)).collect();
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    (cluster, backends)
}

#[test]
fn a_policy_that_hashes_is_sticky_from_one_moment_to_the_next_and_across_agents() {
    needs!("etcd", "etcdctl");
    let (cluster, _backends) = three();
    let [a, b, c] = cluster.nodes();
    assert_eq!(instances(c, a.at(PUBLISHED), 9).expect("answers").len(), 3);
    let load = a.load(a.at(PUBLISHED));
    for policy in ["maglev", "ring"] {
        let said = b.plexus(["set", "web", &format!("policy={policy}")]).ok();
        assert!(said.contains(&format!("policy of web is {policy}")), "{said}");
        for node in [a, b] {
            eventually!(SOON, balance(node)["policy"].clone(), |now| *now == policy);
        }
        let by_a = instances(c, a.at(PUBLISHED), 10).expect("answers");
        assert_eq!(by_a.len(), 1, "{policy}: {by_a:?}");
        assert_eq!(instances(c, b.at(PUBLISHED), 10).expect("answers"), by_a, "{policy}");
    }
    let _ = b.plexus(["unset", "web", "policy"]).ok();
    eventually!(SOON, instances(c, a.at(PUBLISHED), 9).map_or(0, |seen| seen.len()), |seen| *seen == 3);
    load.stop().assert_unharmed();
}

#[test]
fn a_client_with_affinity_stays_where_it_is_while_others_take_turns() {
    needs!("etcd", "etcdctl");
    let (cluster, backends) = three();
    let [a, b, c] = cluster.nodes();
    let _ = a.plexus(["set", "web", "affinity=1m"]).ok();
    eventually!(SOON, instances(c, a.at(PUBLISHED), 9).map_or(0, |seen| seen.len()), |seen| *seen == 1);
    let home = instances(c, a.at(PUBLISHED), 20).expect("answers");
    assert_eq!(home.len(), 1, "{home:?}");
    // Its endpoint dies: it is with another one, and stays there.
    let dead = backends.iter().find(|backend| home.contains(backend.id())).expect("a backend");
    dead.kill();
    let next = instances(c, a.at(PUBLISHED), 20).expect("answers");
    assert!(next.len() == 1 && next != home, "{next:?}");
    assert_eq!(instances(b, a.at(PUBLISHED), 5).expect("answers").len(), 1);
}

#[test]
fn a_split_is_met_and_changes_while_connections_come_in() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backends = [a, b].map(|node| node.backend("web", INSTANCE));
    for (node, tag) in [(a, "[\"v1\"]"), (b, "[\"v2\"]")] {
        node.define(&ServiceFile::new("web", INSTANCE).key("tags", tag));
    }
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    cluster.publish("web", PUBLISHED);
    let v2_of = |shares: [&str; 2], permille: u64| {
        let _ = c.plexus(["split", "web", shares[0], shares[1]]).ok();
        eventually!(SOON, pick(c, "web-b-9000")["share_permille"].as_u64(), |now| *now == Some(permille));
        let load = c.load(c.at(PUBLISHED));
        load.wait_for(400);
        let record = load.stop();
        record.assert_unharmed();
        record.by_instance.get("web-b-9000").copied().unwrap_or(0) * 1000 / record.succeeded
    };
    let few = v2_of(["v1=95", "v2=5"], 50);
    assert!((40..=60).contains(&few), "{few} of 1000");
    let half = v2_of(["v1=50", "v2=50"], 500);
    assert!((480..=520).contains(&half), "{half} of 1000");
    let said = c.plexus(["split", "web", "--clear"]).ok();
    assert!(said.contains("split of web is off"), "{said}");
}

#[test]
fn an_endpoint_that_refuses_is_ejected_in_sight_and_returns_when_it_is_back() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    // No check: only what connections run into tells.
    let backends = [a, b].map(|node| {
        let backend = node.backend("web", INSTANCE);
        node.define(&ServiceFile::new("web", INSTANCE).check(""));
        backend
    });
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    cluster.publish("web", PUBLISHED);
    let load = c.load(c.at(PUBLISHED));
    load.wait_for(50);
    backends[0].kill();
    let gone = load.now();
    eventually!(SOON, pick(c, "web-a-9000")["ejected"].clone(), |word| *word == "connect_failures");
    let why = c.plexus(["why", "web"]).ok();
    assert!(why.contains("no: ejected") && why.contains("ejected: connect_failures"), "{why}");
    assert!(why.contains("1 of 2 endpoints ejected"), "{why}");
    eventually!(SOON, c.metric("plexus_balance_ejected", "web"), |ejected| *ejected == Some(1.0));
    let _again = a.backend("web", INSTANCE);
    let back = load.now();
    eventually!(Duration::from_secs(15), pick(c, "web-a-9000")["ejected"].clone(), Value::is_null);
    load.wait_for(100);
    let record = load.stop();
    record.assert_unharmed_after(gone);
    assert!(record.last_by_instance["web-a-9000"] > back, "{record}");
}

#[test]
fn when_every_check_fails_the_panic_threshold_decides_whether_anybody_is_served() {
    needs!("etcd", "etcdctl");
    let (cluster, backends) = three();
    let [a, b, c] = cluster.nodes();
    backends.iter().for_each(plexus_tests::server::backend::Backend::fail);
    cluster.wait_serving("web", &[]);
    eventually!(SOON, balance(b)["panic"].clone(), |panic| *panic == true);
    assert_eq!(instances(c, b.at(PUBLISHED), 9).expect("answers").len(), 3);
    assert!(b.plexus(["why", "web"]).ok().contains("PANIC"));
    eventually!(SOON, b.metric("plexus_balance_panic", "web"), |panic| *panic == Some(1.0));
    let _ = a.plexus(["set", "web", "panic_threshold=0"]).ok();
    eventually!(SOON, balance(b)["panic"].clone(), |panic| *panic == false);
    assert!(c.get(b.at(PUBLISHED), "/").is_err());
    backends.iter().for_each(plexus_tests::server::backend::Backend::recover);
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    eventually!(SOON, c.get(b.at(PUBLISHED), "/").is_ok(), |served| *served);
}

#[test]
fn at_the_limit_a_connection_is_refused_or_waits_for_its_turn() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    let _ = a.plexus(["set", "web", "limits.endpoint_connections=1", "limits.at_limit=refuse"]).ok();
    eventually!(SOON, limit_holds(b), |holds| *holds);
    // What found out that the limit holds may not be gone yet.
    let held = eventually!(SOON, answered(c, b.at(PUBLISHED)), Result::is_ok).expect("a connection");
    assert!(c.get(b.at(PUBLISHED), "/").is_err());
    assert!(b.metric("plexus_balance_refused_total", "at_limit") >= Some(1.0));
    assert_eq!(pick(b, "web-a-9000")["at_limit"], true);
    assert_eq!(c.get(c.at(PUBLISHED), "/").expect("another node counts for itself").status, 200);

    let _ = a.plexus(["set", "web", "limits.at_limit=queue"]).ok();
    std::thread::scope(|scope| {
        // Refused until the setting is there; then it waits.
        let waiting = scope.spawn(|| {
            eventually!(SOON, c.get(b.at(PUBLISHED), "/").map(|answer| answer.status).ok(), |status| {
                *status == Some(200)
            })
        });
        eventually!(SOON, balance(b)["queue"].clone(), |queue| *queue == 1);
        assert!(b.plexus(["why", "web"]).ok().contains("1 waiting"));
        drop(held);
        assert_eq!(waiting.join().expect("an answer"), Some(200));
    });
    assert_eq!(b.metric("plexus_balance_queue_length", "web"), Some(0.0));
}

/// A connection that had an answer and is open.
fn answered(from: &Node, to: SocketAddr) -> Result<Held, Failure> {
    let mut held = from.hold(to)?;
    held.get("/")?;
    Ok(held)
}

/// Is a second connection refused while the first is open?
fn limit_holds(node: &Node) -> bool {
    let first = answered(node, node.at(PUBLISHED));
    let second = node.get(node.at(PUBLISHED), "/");
    first.is_ok() && second.is_err()
}

#[test]
fn with_subsets_each_node_uses_a_few_endpoints_and_the_others_when_these_are_gone() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let backends: Vec<_> = [a, b, c]
        .iter()
        .flat_map(|node| [node.serve("web", INSTANCE), node.serve("web", INSTANCE + 1)])
        .collect();
    let ids: Vec<&str> = backends.iter().map(plexus_tests::server::backend::Backend::id).collect();
    cluster.wait_serving("web", &ids);
    cluster.publish("web", PUBLISHED);
    let _ = b.plexus(["set", "web", "subset=2"]).ok();
    let used = |node: &Node| -> BTreeSet<String> {
        let inside = ids.iter().filter(|id| pick(node, id)["outside_subset"] != true);
        inside.map(|id| (*id).to_owned()).collect()
    };
    for node in [a, b, c] {
        eventually!(SOON, used(node).len(), |used| *used == 2);
        assert_eq!(instances(c, node.at(PUBLISHED), 20).expect("answers"), used(node), "{}", node.name());
    }
    let all: BTreeSet<String> = [a, b, c].iter().flat_map(|node| used(node)).collect();
    assert_eq!(all.len(), 6, "six endpoints, dealt out to three nodes: {all:?}");
    let why = a.plexus(["why", "web"]).ok();
    assert_eq!(why.matches("outside of the subset").count(), 4, "{why}");
    // Whose whole subset is gone, before any check has told, loses nobody.
    let before = used(a);
    backends.iter().filter(|backend| before.contains(backend.id())).for_each(|backend| backend.kill());
    let after = instances(c, a.at(PUBLISHED), 20).expect("answers");
    assert!(!after.is_empty() && after.is_disjoint(&before), "{after:?}");
}

#[test]
fn a_new_endpoint_gets_little_at_first() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backends = [a, b].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    cluster.publish("web", PUBLISHED);
    let _ = a.plexus(["set", "web", "slow_start=10m"]).ok();
    eventually!(SOON, c.plexus(["settings", "web"]).ok(), |shown| shown.contains("10m"));
    let _new = c.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    eventually!(SOON, pick(a, "web-c-9000")["slow_start_percent"].as_u64(), |percent| *percent == Some(10)
        || *percent == Some(9));
    assert!(pick(a, "web-b-9000")["slow_start_percent"].is_null());
    let load = a.load(a.at(PUBLISHED));
    load.wait_for(400);
    let record = load.stop();
    record.assert_unharmed();
    let share = record.by_instance.get("web-c-9000").copied().unwrap_or(0) * 100 / record.succeeded;
    assert!((1..=8).contains(&share), "{share} %: {record}");
}

#[test]
fn the_own_zone_is_preferred_and_spills_over_when_it_is_short() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(3).without_agents().start();
    let [a, b, c] = cluster.nodes();
    for (node, zone) in [(a, "east"), (b, "east"), (c, "west")] {
        let text = std::fs::read_to_string(node.config_file()).expect("a configuration");
        let zoned = text.replacen("[node]\n", &format!("[node]\nzone = \"{zone}\"\n"), 1);
        std::fs::write(node.config_file(), zoned).expect("the configuration is written");
        node.start_agent();
    }
    [a, b, c].iter().for_each(|node| node.wait_ready(Duration::from_secs(20)));
    let backends = [a, b, c].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    let _ = a.plexus(["set", "web", "locality=prefer_zone"]).ok();
    eventually!(SOON, pick(c, "web-a-9000")["other_zone"].clone(), |other| *other == true);
    eventually!(SOON, pick(a, "web-c-9000")["other_zone"].clone(), |other| *other == true);
    let seen = |node: &Node| instances(node, node.at(PUBLISHED), 20).expect("answers");
    assert_eq!(seen(a), ["web-a-9000", "web-b-9000"].map(String::from).into());
    assert_eq!(seen(c), ["web-c-9000".to_owned()].into());
    // Half of the zone is left: 140 % of a half stays.
    backends[1].fail();
    cluster.wait_serving("web", &["web-a-9000", "web-c-9000"]);
    eventually!(SOON, pick(a, "web-c-9000")["share_permille"].as_u64(), |share| *share == Some(300));
    assert_eq!(seen(a), ["web-a-9000", "web-c-9000"].map(String::from).into());
}

#[test]
fn the_region_comes_after_the_zone_and_a_backup_after_all() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(3).without_agents().start();
    let [a, b, c] = cluster.nodes();
    for (node, region, zone) in [(a, "eu", "east"), (b, "eu", "west"), (c, "us", "east")] {
        let text = std::fs::read_to_string(node.config_file()).expect("a configuration");
        let placed =
            text.replacen("[node]\n", &format!("[node]\nregion = \"{region}\"\nzone = \"{zone}\"\n"), 1);
        std::fs::write(node.config_file(), placed).expect("the configuration is written");
        node.start_agent();
    }
    [a, b, c].iter().for_each(|node| node.wait_ready(Duration::from_secs(20)));
    let backends = [a, b, c].map(|node| node.serve("web", INSTANCE));
    let _spare = a.backend("web", INSTANCE + 1);
    a.define(&ServiceFile::new("web", INSTANCE + 1).key("backup", "true"));
    let all = ["web-a-9000", "web-a-9001", "web-b-9000", "web-c-9000"];
    cluster.wait_serving("web", &all);
    cluster.publish("web", PUBLISHED);
    let _ = a.plexus(["set", "web", "locality=prefer_zone"]).ok();
    eventually!(SOON, pick(a, "web-c-9000")["other_region"].clone(), |other| *other == true);
    let seen = || instances(a, a.at(PUBLISHED), 20).expect("answers").into_iter().collect::<Vec<_>>();
    assert_eq!(seen(), ["web-a-9000"]);
    let named = || {
        let answer = a.dig("_web._tcp.mesh.internal", "SRV");
        answer.data.iter().filter_map(|record| record.split(' ').nth(2)?.parse().ok()).collect::<Vec<u16>>()
    };
    assert_eq!(named(), [INSTANCE; 3]);
    for (backend, left, next) in [
        (&backends[0], vec!["web-a-9001", "web-b-9000", "web-c-9000"], "web-b-9000"),
        (&backends[1], vec!["web-a-9001", "web-c-9000"], "web-c-9000"),
        (&backends[2], vec!["web-a-9001"], "web-a-9001"),
    ] {
        backend.fail();
        cluster.wait_serving("web", &left);
        eventually!(SOON, seen(), |seen| *seen == [next]);
    }
    assert_eq!(named(), [INSTANCE + 1]);
}

#[test]
fn a_mistake_is_told_with_what_was_meant_and_changes_nothing() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    for (setting, told) in [
        ("polcy=maglev", "did you mean \"policy\"?"),
        ("policy=fastest", "least_connections"),
        ("limits.queue=-1", "whole number"),
        ("slow_start=never", "such as 500ms"),
    ] {
        let ran = a.plexus(["set", "web", "subset=3", setting]);
        assert!(!ran.success() && ran.stderr.contains(told), "{ran}");
    }
    let shown = a.plexus_json(["settings", "web"]);
    let settings = shown["settings"].as_array().cloned().unwrap_or_default();
    assert!(settings.len() > 20 && settings.iter().all(|setting| setting["default"] == true), "{shown}");
}
