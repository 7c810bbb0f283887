//! Who is not well gets no traffic, and how soon.

use std::time::Duration;

use plexus_tests::{Cluster, ServiceFile, eventually, needs, throughout};

use crate::{INSTANCE, PUBLISHED};

/// The interval of the checks of `ServiceFile`, times their `fall`.
const FALL: Duration = Duration::from_millis(600);
/// What may come on top: to write it to the store, to hear of it, to stop.
const GRACE: Duration = Duration::from_millis(100);
const ATTEMPTS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn an_unhealthy_instance_gets_no_new_connection_after_its_fall() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let backends = [a, b, c].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    let loads = [a, b, c].map(|node| node.load(node.at(PUBLISHED)));
    loads.iter().for_each(|load| load.wait_for(100));
    // A machine that is busy delays one probe; it does not delay the same one every time.
    let late: Vec<Duration> = (0..ATTEMPTS)
        .map(|_| {
            backends[0].fail();
            eventually!(PATIENCE, backends[0].seen().first_failed_probe, Option::is_some);
            eventually!(PATIENCE, b.serving("web"), |ids| *ids == ["web-b-9000", "web-c-9000"]);
            // Long enough for connections to come that should not.
            loads.iter().for_each(|load| load.wait_for(400));
            let seen = backends[0].seen();
            let last = seen.last_connection.expect("it had connections");
            let late = last.saturating_sub(seen.first_failed_probe.expect("a failed probe"));
            backends[0].recover();
            cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
            late
        })
        .collect();
    let soonest = late.iter().min().expect("attempts");
    assert!(*soonest <= FALL + GRACE, "connections came this long after the first failed probe: {late:?}");
    // Failing its probes, it served all the same: nobody lost anything.
    loads.into_iter().for_each(|load| load.stop().assert_unharmed());
}

#[test]
fn an_instance_that_recovers_gets_traffic_again() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let (backend, _other) = (a.serve("web", INSTANCE), b.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    cluster.publish("web", PUBLISHED);
    backend.fail();
    cluster.wait_serving("web", &["web-b-9000"]);
    let before = backend.seen().connections;
    let why = b.plexus(["why", "web"]).ok();
    assert!(why.contains("web-a-9000") && why.contains("503"), "{why}");
    backend.recover();
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    let load = b.load(b.at(PUBLISHED));
    load.wait_for(20);
    load.stop().assert_unharmed();
    assert!(backend.seen().connections > before);
}

#[test]
fn an_instance_that_hangs_is_as_unwell_as_one_that_says_so() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let (backend, _other) = (a.serve("web", INSTANCE), b.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    backend.freeze();
    eventually!(Duration::from_secs(2), b.serving("web"), |ids| *ids == ["web-b-9000"]);
    backend.thaw();
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
}

#[test]
fn an_instance_gets_no_traffic_before_its_check_has_passed() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    a.define(&ServiceFile::new("web", INSTANCE));
    throughout!(Duration::from_secs(2), b.serving("web"), Vec::is_empty);
    let backend = a.backend("web", INSTANCE);
    eventually!(Duration::from_secs(2), b.serving("web"), |ids| *ids == [backend.id()]);
}

#[test]
fn a_tcp_check_sees_whether_someone_listens() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let backend = a.backend("db", INSTANCE);
    let check = "{ tcp = true, interval = \"200ms\", rise = 1, fall = 2 }";
    a.define(&ServiceFile::new("db", INSTANCE).check(check));
    eventually!(Duration::from_secs(3), b.serving("db"), |ids| *ids == ["db-a-9000"]);
    backend.kill();
    eventually!(Duration::from_secs(2), b.serving("db"), Vec::is_empty);
}
