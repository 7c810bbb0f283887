//! The store is down for a minute: nobody notices, and everything is there again when it returns.
//!
//! `PLEXUS_TEST_OUTAGE` is the length in seconds, 60 unless given.

use std::time::Duration;

use plexus_tests::server::store::{Make, Store};
use plexus_tests::{Cluster, eventually, needs, pause, throughout};

use crate::{INSTANCE, PUBLISHED};

const MINUTE: Duration = Duration::from_secs(60);
const IDS: [&str; 3] = ["web-a-9000", "web-b-9000", "web-c-9000"];

#[test]
fn a_store_that_was_stopped_is_missed_by_nobody() {
    needs!("etcd", "etcdctl", "dig");
    survives(Make::Etcd(1), MINUTE, is_stopped);
}

#[test]
fn a_store_that_forgot_its_history_is_missed_by_nobody() {
    needs!("etcd", "etcdctl", "dig");
    survives(Make::Etcd(1), MINUTE, |cluster, length| {
        // Unreachable, alive: the leases end, the history moves on and is compacted meanwhile.
        cluster.cut_store();
        names_are_answered(cluster, length);
        let etcd = cluster.etcd();
        eventually!(Duration::from_secs(30), etcd.keys("/plexus/v1/instances"), Vec::is_empty);
        etcd.compact();
        cluster.heal_store();
    });
}

#[test]
fn a_store_that_lost_its_data_is_missed_by_nobody() {
    needs!("etcd", "etcdctl", "dig");
    survives(Make::Etcd(1), MINUTE, is_wiped);
}

pub(crate) fn is_stopped(cluster: &Cluster, length: Duration) {
    cluster.store().stop();
    names_are_answered(cluster, length);
    cluster.store().start_again();
}

pub(crate) fn is_wiped(cluster: &Cluster, length: Duration) {
    cluster.store().stop();
    names_are_answered(cluster, length);
    cluster.store().wipe();
    cluster.store().start_again();
}

pub(crate) fn is_frozen(cluster: &Cluster, length: Duration) {
    cluster.store().freeze();
    names_are_answered(cluster, length);
    cluster.store().thaw();
}

/// Under load, with the store gone meanwhile: no failed connection, names are answered, and all is there again.
pub(crate) fn survives(make: Make, length: Duration, outage: impl Fn(&Cluster, Duration)) {
    let asked = std::env::var("PLEXUS_TEST_OUTAGE").ok().and_then(|seconds| seconds.parse().ok());
    let length = asked.map_or(length, Duration::from_secs);
    let cluster = Cluster::of(3).on(make).start();
    let [a, b, c] = cluster.nodes();
    let backends = [a, b, c].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &IDS);
    cluster.publish("web", PUBLISHED);
    let load = b.load(c.at(PUBLISHED));
    load.wait_for(100);
    outage(&cluster, length);
    // It is back: everything registered under a live lease, each once.
    eventually!(Duration::from_secs(5), registered(cluster.store()), |ids| *ids == IDS);
    for node in cluster.all() {
        eventually!(Duration::from_secs(5), node.serving("web"), |ids| *ids == IDS);
        eventually!(Duration::from_secs(5), node.plexus_json(["status"])["catalog"] == "live", |live| *live);
    }
    // … and it stays so for longer than a lease lives without its agent.
    let over = cluster.settings().session_ttl + Duration::from_secs(2);
    throughout!(over, (registered(cluster.store()), a.serving("web")), |(ids, seen)| *ids == IDS
        && *seen == IDS);
    // What changes now is seen, so the watches are live as well.
    backends[0].fail();
    cluster.wait_serving("web", &IDS[1..]);
    backends[0].recover();
    cluster.wait_serving("web", &IDS);
    load.stop().assert_unharmed();
}

/// While the store is gone every node answers the name with all addresses.
fn names_are_answered(cluster: &Cluster, length: Duration) {
    let deadline = plexus_tests::Deadline::after(length);
    while !deadline.passed() {
        for node in cluster.all() {
            let answer = node.dig("web.mesh.internal", "A");
            assert_eq!(
                (answer.status.as_str(), answer.data.len()),
                ("NOERROR", 3),
                "{}: {answer:?}",
                node.name()
            );
        }
        pause(Duration::from_millis(500).min(deadline.left()));
    }
}

/// The ids of the instances of `web` whose lease lives, in order.
fn registered(store: &Store) -> Vec<String> {
    let prefix = "/plexus/v1/instances/web/";
    store.leased(prefix).into_iter().map(|(key, _)| key[prefix.len()..].to_owned()).collect()
}

#[test]
fn an_agent_that_leaves_right_after_an_outage_is_believed_at_once() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &IDS[..1]);
    cluster.cut_store();
    eventually!(Duration::from_secs(20), b.plexus_json(["status"])["catalog"] == "stale", |stale| *stale);
    // From here on it counts, and long enough that the others doubt what they hear afterwards.
    throughout!(Duration::from_secs(4), b.serving("web"), |ids| *ids == IDS[..1]);
    cluster.heal_store();
    eventually!(Duration::from_secs(10), b.plexus_json(["status"])["catalog"] == "live", |live| *live);
    eventually!(Duration::from_secs(10), registered(cluster.store()), |ids| *ids == IDS[..1]);
    a.terminate_agent();
    // Much sooner than the 15 s for which a delete that was not announced is doubted.
    eventually!(Duration::from_secs(5), b.known("web"), Vec::is_empty);
    assert!(a.wait_agent_end(Duration::from_secs(10)).success());
}
