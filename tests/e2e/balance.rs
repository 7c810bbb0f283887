//! Connections go to who can serve them, whatever dies.

use std::time::{Duration, Instant};

use plexus_tests::client::http::Step;
use plexus_tests::{Cluster, ServiceFile, eventually, needs, pause};

use crate::{INSTANCE, PUBLISHED};

#[test]
fn a_killed_instance_under_load_costs_only_what_was_established_to_it() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let backends = [a, b, c].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    // From its own node, whose kernel refuses at once, and from another.
    let loads = [a, b].map(|node| node.load(node.at(PUBLISHED)));
    loads.iter().for_each(|load| load.wait_for(200));
    backends[0].kill();
    let gone = loads.each_ref().map(plexus_tests::client::load::Load::now);
    cluster.wait_serving("web", &["web-b-9000", "web-c-9000"]);
    loads.iter().for_each(|load| load.wait_for(400));
    for (load, gone) in loads.into_iter().zip(gone) {
        let record = load.stop();
        record.assert_unharmed_after(gone);
        assert!(record.failed.iter().all(|failed| failed.why.step != Step::Connect), "{record}");
        assert!(record.by_instance.contains_key("web-a-9000"), "{record}");
    }
}

#[test]
fn instances_are_taken_in_turn() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backends = [a, b, c].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    let load = c.load(a.at(PUBLISHED));
    load.wait_for(600);
    let record = load.stop();
    record.assert_unharmed();
    for id in ["web-a-9000", "web-b-9000", "web-c-9000"] {
        let share = record.by_instance.get(id).copied().unwrap_or(0) * 3;
        assert!(share * 10 >= record.succeeded * 9 && share * 10 <= record.succeeded * 11, "{record}");
    }
}

#[test]
fn a_machine_that_vanishes_costs_no_connection_made_elsewhere() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backends = [a, b, c].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    let load = b.load(b.at(PUBLISHED));
    load.wait_for(100);
    // No reset, no refusal: connecting to it hangs until it is given up.
    cluster.cut(a);
    let cut = load.now();
    eventually!(Duration::from_secs(10), b.serving("web"), |ids| *ids == ["web-b-9000", "web-c-9000"]);
    load.wait_for(200);
    let record = load.stop();
    // Those under way when the cable went are lost with it.
    record.assert_unharmed_after(cut);
    cluster.heal(a);
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
}

#[test]
fn a_drained_instance_gets_nothing_new_and_keeps_what_it_has() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let (backend, _other) = (a.serve("web", INSTANCE), b.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    cluster.publish("web", PUBLISHED);
    let mut held = (0..4).map(|_| b.hold(b.at(PUBLISHED)).expect("a connection")).collect::<Vec<_>>();
    let served = held.iter_mut().filter_map(|held| held.get("/").expect("an answer").instance());
    assert!((1..=3).contains(&served.filter(|id| id == "web-a-9000").count()), "both have some");
    let _ = a.plexus(["drain", "web-a-9000"]).ok();
    cluster.wait_serving("web", &["web-b-9000"]);
    let before = backend.seen().connections;
    let load = b.load(b.at(PUBLISHED));
    load.wait_for(100);
    load.stop().assert_unharmed();
    assert_eq!(backend.seen().connections, before);
    held.iter_mut().for_each(|held| assert_eq!(held.get("/").expect("it goes on").status, 200));
    let why = b.plexus(["why", "web"]).ok();
    assert!(why.contains("drain"), "{why}");
    let _ = a.plexus(["undrain", "web-a-9000"]).ok();
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
}

#[test]
fn with_a_deadline_a_drained_instance_keeps_what_it_has_until_then_and_no_longer() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backends = [a, b].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    cluster.publish("web", PUBLISHED);
    let deadline = Duration::from_secs(4);
    let _ = c.plexus(["set", "web", "drain=4s"]).ok();
    let shown = || c.admin_json("/v1/plexus/services/web/settings").to_string();
    eventually!(Duration::from_secs(5), shown(), |shown| shown.contains("4s"));
    let mut held = (0..4).map(|_| c.hold(c.at(PUBLISHED)).expect("a connection")).collect::<Vec<_>>();
    let of = held.iter_mut().map(|held| held.get("/").expect("an answer").instance().unwrap_or_default());
    let of: Vec<String> = of.collect();
    assert!((1..=3).contains(&of.iter().filter(|id| *id == "web-a-9000").count()), "both have some: {of:?}");
    let drained = Instant::now();
    let _ = a.plexus(["drain", "web-a-9000"]).ok();
    cluster.wait_serving("web", &["web-b-9000"]);
    for (held, id) in held.iter_mut().zip(&of) {
        // Neither quiet nor busy ones live longer; those of the other instance do.
        let mut last = Duration::ZERO;
        while id == "web-a-9000" && last < 2 * deadline && held.get("/").is_ok() {
            last = drained.elapsed();
            pause(Duration::from_millis(20));
        }
        if id == "web-a-9000" {
            assert!(held.get("/").is_err() && last < deadline + Duration::from_secs(2), "{last:?}");
        }
    }
    let ended = drained.elapsed();
    assert!(ended > deadline.mul_f64(0.9) && ended < deadline + Duration::from_secs(3), "{ended:?}");
    for (held, _) in held.iter_mut().zip(&of).filter(|(_, id)| *id == "web-b-9000") {
        assert_eq!(held.get("/").expect("it goes on").status, 200);
    }
}

#[test]
fn a_drained_node_gets_nothing_new_on_any_of_its_instances() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backends = (a.serve("web", INSTANCE), a.serve("api", 9001), b.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    cluster.wait_serving("api", &["api-a-9001"]);
    let _ = a.plexus(["drain", "--node"]).ok();
    cluster.wait_serving("web", &["web-b-9000"]);
    cluster.wait_serving("api", &[]);
    assert_eq!(b.plexus_json(["nodes"])["nodes"][0]["draining"], true);
    let _ = a.plexus(["undrain", "--node"]).ok();
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    cluster.wait_serving("api", &["api-a-9001"]);
}

#[test]
fn without_instances_a_client_is_told_at_once_and_served_when_there_is_one() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    a.remove_service_file("web-9000.toml");
    cluster.wait_serving("web", &[]);
    let asked = Instant::now();
    assert!(b.get(b.at(PUBLISHED), "/").is_err());
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    a.define(&ServiceFile::new("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000"]);
    assert_eq!(b.get(b.at(PUBLISHED), "/").expect("an answer").instance().as_deref(), Some(backend.id()));
}
