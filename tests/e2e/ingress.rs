//! A published port is open on every node, and closes without harm.

use std::time::Duration;

use plexus_tests::{Cluster, ServiceFile, Settings, eventually, needs};

use crate::{INSTANCE, PUBLISHED};

const WITHIN_A_SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_port_published_on_any_node_opens_on_every_node_within_a_second() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &[backend.id()]);
    for (port, publisher) in [(8080, a), (8081, b), (8082, c)] {
        assert!(!b.can_connect(c.at(port)));
        let _ = publisher.plexus(["publish", "web", &port.to_string()]).ok();
        let within = plexus_tests::Deadline::after(WITHIN_A_SECOND);
        for node in [a, b, c] {
            eventually!(within.left(), (node.name(), c.can_connect(node.at(port))), |(_, open)| *open);
            assert_eq!(
                c.get(node.at(port), "/").expect("an answer").instance().as_deref(),
                Some(backend.id())
            );
        }
    }
    let listed = b.plexus_json(["services"]);
    assert_eq!(listed["services"][0]["published"].as_array().map(Vec::len), Some(3), "{listed}");
}

#[test]
fn an_unpublished_port_closes_on_every_node_and_lets_open_connections_finish() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    let mut held = b.hold(c.at(PUBLISHED)).expect("a connection");
    held.get("/").expect("an answer");
    let _ = b.plexus(["unpublish", "web", "8080"]).ok();
    let within = plexus_tests::Deadline::after(WITHIN_A_SECOND);
    for node in [a, b, c] {
        eventually!(within.left(), (node.name(), b.can_connect(node.at(PUBLISHED))), |(_, open)| !*open);
    }
    assert_eq!(held.get("/").expect("it goes on").status, 200);
}

#[test]
fn a_published_port_is_still_there_after_everything_was_restarted() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    for node in [a, b] {
        node.terminate_agent();
        node.wait_agent_end(Duration::from_secs(10));
    }
    cluster.etcd().stop();
    cluster.etcd().start_again();
    [a, b].iter().for_each(|node| node.restart_agent());
    cluster.wait_serving("web", &["web-a-9000"]);
    eventually!(WITHIN_A_SECOND, b.get(b.at(PUBLISHED), "/").map(|answer| answer.status).ok(), |status| {
        *status == Some(200)
    });
}

#[test]
fn a_port_may_lead_to_a_named_port_of_the_instances() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _main = a.backend("web", INSTANCE);
    let metrics = a.backend("metrics", 9100);
    a.define(&ServiceFile::new("web", INSTANCE).key("ports", "{ metrics = 9100 }"));
    cluster.wait_serving("web", &["web-a-9000"]);
    let _ = b.plexus(["publish", "web", "9190:metrics"]).ok();
    eventually!(WITHIN_A_SECOND, b.can_connect(b.at(9190)), |open| *open);
    assert_eq!(b.get(b.at(9190), "/").expect("an answer").instance().as_deref(), Some(metrics.id()));
}

#[test]
fn a_localhost_port_is_for_this_machine_alone() {
    needs!("etcd", "etcdctl");
    let more = "[[ingress.localhost]]\nservice = \"web\"\nport = 3219";
    let cluster = Cluster::of(2).settings(|settings: &mut Settings| settings.more = more.to_owned()).start();
    let [a, b] = cluster.nodes();
    let backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let local = "127.0.0.1:3219".parse().expect("an address");
    assert_eq!(b.get(local, "/").expect("an answer").instance().as_deref(), Some(backend.id()));
    assert!(!a.can_connect(b.at(3219)));
}

#[test]
fn a_port_that_is_taken_on_one_node_is_open_on_the_others_and_opens_when_it_is_free() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    let squatter = b.backend("squatter", PUBLISHED);
    cluster.wait_serving("web", &["web-a-9000"]);
    let _ = b.plexus(["publish", "web", "8080"]).ok();
    eventually!(WITHIN_A_SECOND, b.can_connect(a.at(PUBLISHED)), |open| *open);
    let why =
        eventually!(Duration::from_secs(3), b.plexus(["why", "web"]).ok(), |why| why.contains("in use"));
    assert!(why.contains("8080"), "{why}");
    let status = b.plexus(["status"]).ok();
    assert!(status.contains("8080"), "{status}");
    squatter.kill();
    eventually!(
        Duration::from_secs(15),
        b.get(b.at(PUBLISHED), "/").ok().and_then(|answer| answer.instance()),
        |id| id.as_deref() == Some("web-a-9000"),
    );
}
