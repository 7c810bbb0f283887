//! Nodes and members of the store die, hang and are cut off.

use std::time::{Duration, Instant};

use plexus_tests::server::etcd::{Etcd, Member};
use plexus_tests::server::store::Make;
use plexus_tests::{Cluster, Node, Ran, Settings, eventually, needs, pause};

use crate::{INSTANCE, PUBLISHED};

#[test]
fn a_node_that_is_killed_is_gone_within_its_lease_and_costs_others_nothing() {
    needs!("etcd", "etcdctl");
    a_killed_node_is_gone(Make::Etcd(1));
}

pub(crate) fn a_killed_node_is_gone(make: Make) {
    let cluster = Cluster::of(3).on(make).start();
    let [a, b, c] = cluster.nodes();
    let backends = [a, b, c].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    let loads = [b, c].map(|node| node.load(node.at(PUBLISHED)));
    loads.iter().for_each(|load| load.wait_for(100));
    a.kill_agent();
    backends[0].kill();
    let killed = loads.each_ref().map(plexus_tests::client::load::Load::now);
    let within = cluster.settings().session_ttl + Duration::from_secs(1);
    for node in [b, c] {
        eventually!(within, node.known("web"), |ids| *ids == ["web-b-9000", "web-c-9000"]);
        eventually!(within, node.known_nodes(), |names| *names == ["b", "c"]);
    }
    loads.iter().for_each(|load| load.wait_for(200));
    for (load, killed) in loads.into_iter().zip(killed) {
        load.stop().assert_unharmed_after(killed);
    }
}

#[test]
fn a_node_that_is_cut_off_serves_its_own_and_comes_back() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backends = [a, b, c].map(|node| node.serve("web", INSTANCE));
    let all = ["web-a-9000", "web-b-9000", "web-c-9000"];
    cluster.wait_serving("web", &all);
    cluster.publish("web", PUBLISHED);
    cluster.cut(a);
    let within = cluster.settings().session_ttl + Duration::from_secs(1);
    eventually!(within, b.known("web"), |ids| *ids == all[1..]);
    // It no longer reaches the others, and says that what it knows is old; its own instance is still there.
    eventually!(Duration::from_secs(5), a.plexus_json(["status"])["catalog"] == "stale", |stale| *stale);
    assert_eq!(a.dig("web.mesh.internal", "A").status, "NOERROR");
    let served = a.get(a.at(PUBLISHED), "/").expect("an answer from its own instance");
    assert_eq!(served.instance().as_deref(), Some("web-a-9000"));
    cluster.heal(a);
    for node in [a, b, c] {
        eventually!(Duration::from_secs(10), node.serving("web"), |ids| *ids == all);
    }
    eventually!(Duration::from_secs(5), a.plexus_json(["status"])["catalog"] == "live", |live| *live);
}

#[test]
fn an_agent_that_is_killed_and_started_again_takes_its_instances_back() {
    needs!("etcd", "etcdctl");
    a_killed_agent_is_started_again(Make::Etcd(1));
}

pub(crate) fn a_killed_agent_is_started_again(make: Make) {
    let cluster = Cluster::of(2).on(make).start();
    let [a, b] = cluster.nodes();
    let _backends = [a, b].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    cluster.publish("web", PUBLISHED);
    let load = b.load(b.at(PUBLISHED));
    load.wait_for(50);
    a.kill_agent();
    a.restart_agent();
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    // The lease of the dead agent ends: what the living one wrote must not go with it.
    let over = cluster.settings().session_ttl + Duration::from_secs(2);
    plexus_tests::throughout!(over, cluster.store().leased("/plexus/v1/instances").len(), |keys| *keys == 2);
    load.stop().assert_unharmed();
}

#[test]
fn each_member_of_the_store_may_die_in_turn() {
    needs!("etcd", "etcdctl");
    members_fail_in_turn(Member::kill, |member, etcd| {
        member.start();
        etcd.wait_ready();
    });
}

#[test]
fn each_member_of_the_store_may_hang_in_turn() {
    needs!("etcd", "etcdctl");
    members_fail_in_turn(Member::freeze, |member, etcd| {
        member.thaw();
        etcd.wait_ready();
    });
}

/// With each member failing in turn, no call fails for longer than 3 s and no lease is lost.
fn members_fail_in_turn(fail: impl Fn(&Member), mend: impl Fn(&Member, &Etcd)) {
    // As installed: the default time to live is meant to outlast a failing member.
    let long = |settings: &mut Settings| settings.session_ttl = Duration::from_secs(10);
    let cluster = Cluster::of(3).etcd_members(3).settings(long).start();
    let [a, b, c] = cluster.nodes();
    let _backends = [a, b, c].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    let load = b.load(b.at(PUBLISHED));
    let leases = leases(cluster.etcd());
    for member in cluster.etcd().members() {
        fail(member);
        let failures = std::thread::scope(|scope| {
            let threads = [a, b, c].map(|node| (node, scope.spawn(|| longest_failure(node))));
            threads.map(|(node, thread)| (node, thread.join().expect("no panic")))
        });
        for (node, longest) in failures {
            assert!(
                longest < Duration::from_secs(3),
                "{} down: a call of {} failed for {longest:?}",
                member.name(),
                node.name()
            );
        }
        mend(member, cluster.etcd());
    }
    assert_eq!(self::leases(cluster.etcd()), leases);
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    load.stop().assert_unharmed();
}

/// Calls that write to the store, for longer than a session lives; returns for how long none was successful.
fn longest_failure(node: &Node) -> Duration {
    let begin = Instant::now();
    let (mut last_good, mut longest) = (begin, Duration::ZERO);
    // A port belongs to one service: each node has a hundred of its own.
    let mut port = 20_000 + u16::from(node.name().as_bytes()[0]) * 100;
    while begin.elapsed() < Duration::from_secs(4) {
        let ran = node.plexus(["publish", &format!("probe-{}", node.name()), &port.to_string()]);
        longest = longest.max(last_good.elapsed());
        if ran.success() {
            last_good = Instant::now();
            port += 1;
        }
        pause(Duration::from_millis(100));
    }
    longest
}

fn leases(etcd: &Etcd) -> Vec<(String, Option<u64>)> {
    let keys = etcd.keys("/plexus/v1/instances").into_iter().chain(etcd.keys("/plexus/v1/nodes"));
    keys.map(|key| (key.clone(), etcd.lease_of(&key))).collect()
}

#[test]
fn an_agent_restarted_while_the_store_is_down_serves_what_it_knew_within_a_second() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backends = [b, c].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-b-9000", "web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    // What it knows is on its disk a moment after it has heard of it.
    eventually!(Duration::from_secs(10), remembers(a, "web-c-9000"), |it_does| *it_does);
    cluster.etcd().stop();
    // The soonest: a machine that is busy delays some start, not every one.
    let took = [(); 3].map(|()| {
        a.kill_agent();
        a.start_agent();
        let started = Instant::now();
        eventually!(
            Duration::from_secs(10),
            a.get(a.at(PUBLISHED), "/").ok().map(|answer| answer.status),
            |status| *status == Some(200),
        );
        let answer = a.dig("web.mesh.internal", "A");
        assert_eq!(answer.data.len(), 2, "{answer:?}");
        started.elapsed()
    });
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
    let status = a.plexus(["status"]);
    assert!(status.stdout.contains("stale") || status.stdout.contains("STALE"), "{status}");
    cluster.etcd().start_again();
    eventually!(Duration::from_secs(5), a.plexus_json(["status"])["catalog"] == "live", |live| *live);
}

/// Does anything in the node's state directory name this instance?
fn remembers(node: &Node, id: &str) -> bool {
    let state = node.directory().join("state").to_string_lossy().into_owned();
    plexus_tests::run(&["grep", "-rqs", id, &state]).is_ok_and(|ran: Ran| ran.success())
}
