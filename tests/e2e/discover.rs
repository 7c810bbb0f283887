//! What is defined on one node is known on every node.

use std::time::Duration;

use plexus_tests::server::store::Make;
use plexus_tests::{Cluster, ServiceFile, eventually, needs};

use crate::INSTANCE;

/// Longer than a definition takes to travel, much shorter than any slow tick.
const SOON: Duration = Duration::from_secs(3);

#[test]
fn a_service_file_makes_an_instance_known_on_every_node() {
    needs!("etcd", "etcdctl");
    is_known_everywhere(Make::Etcd(1));
}

pub(crate) fn is_known_everywhere(make: Make) {
    let cluster = Cluster::of(3).on(make).start();
    let [a, b, c] = cluster.nodes();
    let backend = a.backend("web", INSTANCE);
    a.define(&ServiceFile::new("web", INSTANCE).key("tags", "[\"v2\"]").key("labels", "{ team = \"x\" }"));
    cluster.wait_serving("web", &[backend.id()]);
    for node in [a, b, c] {
        let answer = node.plexus_json(["endpoints", "web"]);
        let endpoint = &answer["endpoints"][0];
        assert_eq!(endpoint["node"], "a", "{answer}");
        assert_eq!(endpoint["address"], a.at(INSTANCE).to_string());
        assert_eq!(endpoint["tags"][0], "v2");
        assert_eq!(endpoint["labels"]["team"], "x");
    }
}

#[test]
fn a_service_file_that_changes_or_goes_is_followed_without_a_restart() {
    needs!("etcd", "etcdctl");
    is_followed(Make::Etcd(1));
}

pub(crate) fn is_followed(make: Make) {
    let cluster = Cluster::of(2).on(make).start();
    let [a, b] = cluster.nodes();
    let _backend = a.backend("web", INSTANCE);
    a.write_service_file("web.toml", &ServiceFile::new("web", INSTANCE).text());
    cluster.wait_serving("web", &["web-a-9000"]);
    a.write_service_file(
        "web.toml",
        &ServiceFile::new("web", INSTANCE).id("changed").key("weight", "7").text(),
    );
    eventually!(SOON, b.known("web"), |ids| *ids == ["changed"]);
    assert_eq!(b.plexus_json(["endpoints", "web"])["endpoints"][0]["weight"], 7);
    a.write_service_file("api.toml", &ServiceFile::new("api", INSTANCE).text());
    eventually!(SOON, b.serving("api"), |ids| *ids == ["api-a-9000"]);
    assert_eq!(b.known("web"), ["changed"], "another file does not touch it");
    a.remove_service_file("web.toml");
    eventually!(SOON, b.known("web"), Vec::is_empty);
    assert_eq!(b.serving("api"), ["api-a-9000"]);
}

#[test]
fn an_instance_is_registered_and_deregistered_by_command() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let backend = a.backend("web", INSTANCE);
    let register = ["register", "web", "--port", "9000", "--check", "http=/healthz", "--interval", "200ms"];
    let _ = a.plexus(register).ok();
    eventually!(SOON, b.serving("web"), |ids| *ids == ["web-a-9000"]);
    backend.fail();
    eventually!(SOON, b.serving("web"), Vec::is_empty);
    backend.recover();
    eventually!(SOON, b.serving("web"), |ids| *ids == ["web-a-9000"]);
    let elsewhere = b.plexus(["deregister", "web-a-9000"]).refused();
    assert!(elsewhere.contains("web-a-9000"), "{elsewhere}");
    let _ = a.plexus(["deregister", "web-a-9000"]).ok();
    eventually!(SOON, b.known("web"), Vec::is_empty);
}

#[test]
fn what_was_registered_by_command_outlives_a_restart_of_the_agent() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.backend("web", INSTANCE);
    let _ = a.plexus(["register", "web", "--port", "9000", "--id", "mine"]).ok();
    eventually!(SOON, b.serving("web"), |ids| *ids == ["mine"]);
    a.terminate_agent();
    a.wait_agent_end(Duration::from_secs(10));
    assert_eq!(b.known("web"), Vec::<String>::new());
    a.restart_agent();
    eventually!(SOON, b.serving("web"), |ids| *ids == ["mine"]);
}

#[test]
fn nodes_are_listed_with_what_they_run() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, _, c] = cluster.nodes();
    let (_one, _two) = (a.serve("web", 9000), a.serve("web", 9001));
    cluster.wait_serving("web", &["web-a-9000", "web-a-9001"]);
    let answer = c.plexus_json(["nodes"]);
    assert_eq!(answer["this"], "c");
    let serving: Vec<_> =
        answer["nodes"].as_array().unwrap().iter().map(|node| node["serving"].clone()).collect();
    assert_eq!(serving, [2, 0, 0], "{answer}");
    assert_eq!(answer["nodes"][0]["address"], a.address().to_string());
}
