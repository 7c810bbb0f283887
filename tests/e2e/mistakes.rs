//! What people get wrong: the error says where it is, what is wrong and what to do, and the rest keeps running.

use std::fs;
use std::time::Duration;

use plexus_tests::{Cluster, Node, ServiceFile, Settings, eventually, needs};

use crate::{INSTANCE, PUBLISHED};

const SOON: Duration = Duration::from_secs(3);

/// What `plexus status` says is wrong, once it says all of `parts`.
#[track_caller]
fn told(node: &Node, parts: &[&str]) {
    let said = |text: &String| parts.iter().all(|part| text.contains(part));
    eventually!(SOON, node.plexus(["status"]).stdout, |text| said(text));
    let line = |line: &str| parts.iter().all(|part| line.contains(part));
    let log = eventually!(SOON, node.agent_log(), |log| log.lines().any(line));
    assert!(log.lines().filter(|text| line(text)).count() <= 3, "told again and again:\n{log}");
}

#[test]
fn a_malformed_service_file_keeps_its_last_good_version_and_names_file_line_and_key() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backends = (a.backend("web", INSTANCE), a.serve("api", 9001));
    let good = ServiceFile::new("web", INSTANCE).text();
    a.write_service_file("web.toml", &good);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.wait_serving("api", &["api-a-9001"]);
    a.write_service_file("web.toml", &good.replace("port = 9000", "port = 90000"));
    told(a, &["web.toml:3:", "port", "65535"]);
    a.write_service_file("web.toml", &good.replace("port =", "prot ="));
    told(a, &["web.toml:3:", "prot", "did you mean `port`?"]);
    a.write_service_file("web.toml", "[[service]\n");
    told(a, &["web.toml:1:"]);
    assert_eq!((b.serving("web"), b.serving("api")), (vec!["web-a-9000".into()], vec!["api-a-9001".into()]));
    a.write_service_file("web.toml", &good);
    eventually!(SOON, a.plexus(["status"]).stdout, |text| text.contains("problems  none"));
}

#[test]
fn a_name_that_is_no_dns_label_is_refused_with_the_rule() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    a.write_service_file("bad.toml", "[[service]]\nname = \"Web_Shop\"\nport = 9001\n");
    told(a, &["bad.toml:2:", "name", "Web_Shop"]);
    let refused = a.plexus(["register", "Web_Shop", "--port", "9001"]);
    assert_eq!(refused.code, Some(2), "{refused}");
    assert!(refused.stderr.contains("Web_Shop"), "{refused}");
    let refused = a.plexus(["publish", "web", "99999"]);
    assert_eq!(refused.code, Some(2), "{refused}");
    assert!(refused.stderr.contains("65535"), "{refused}");
    assert_eq!(a.serving("web"), ["web-a-9000"]);
}

#[test]
fn an_id_that_is_used_twice_on_a_node_is_refused_and_both_places_are_named() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let _backends = (a.backend("web", INSTANCE), a.backend("web", 9001));
    a.write_service_file("one.toml", &ServiceFile::new("web", INSTANCE).id("same").text());
    cluster.wait_serving("web", &["same"]);
    a.write_service_file("two.toml", &ServiceFile::new("web", 9001).id("same").text());
    told(a, &["two.toml", "one.toml", "same"]);
    let endpoints = a.plexus_json(["endpoints", "web"]);
    assert_eq!(endpoints["endpoints"][0]["address"], a.at(INSTANCE).to_string());
}

#[test]
fn an_id_that_another_node_uses_is_told_on_the_node_that_came_second() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backends = [a, b].map(|node| node.backend("web", INSTANCE));
    a.write_service_file("web.toml", &ServiceFile::new("web", INSTANCE).id("same").text());
    cluster.wait_serving("web", &["same"]);
    b.write_service_file("web.toml", &ServiceFile::new("web", INSTANCE).id("same").text());
    eventually!(SOON, b.plexus(["status"]).stdout, |text| text.contains("same") && text.contains("node a"));
    let endpoints = b.plexus_json(["endpoints", "web"]);
    assert_eq!(endpoints["endpoints"][0]["node"], "a", "the first keeps it: {endpoints}");
}

#[test]
fn a_store_that_is_not_there_at_the_start_is_named_and_waited_for() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.etcd().stop();
    a.start_agent();
    let store = cluster.etcd().members()[0].clients().to_string();
    eventually!(Duration::from_secs(5), a.agent_log(), |log| log.contains(&store));
    let ready = eventually!(SOON, a.admin("/readyz"), Result::is_ok).expect("an answer");
    assert_eq!(ready.status, 503);
    let status = a.plexus(["status"]);
    assert!(status.stdout.contains(&store), "{status}");
    cluster.etcd().start_again();
    a.wait_ready(Duration::from_secs(5));
    cluster.wait_serving("web", &["web-a-9000"]);
}

#[test]
fn an_address_that_is_taken_is_named_and_the_rest_runs() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    // Someone else's name server, on one of the two addresses.
    let squatter = a.backend("squatter", 53);
    a.start_agent();
    let _backend = a.serve("web", INSTANCE);
    eventually!(Duration::from_secs(10), a.serving("web"), |ids| *ids == ["web-a-9000"]);
    let taken = a.at(53).to_string();
    told(a, &[&taken, "in use"]);
    assert_eq!(a.dig("web.mesh.internal", "A").data, [a.address().to_string()]);
    let _ = a.plexus(["publish", "web", "8080"]).ok();
    eventually!(SOON, a.can_connect(a.at(PUBLISHED)), |open| *open);
    squatter.kill();
}

#[test]
fn a_wrong_configuration_is_refused_at_the_start_with_everything_that_is_wrong() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let more = "[node2]\nx = 1\n[proxy]\nconnect_timeout = \"soon\"\n".to_owned();
    a.configure(&Settings { more, ..cluster.settings().clone() });
    a.start_agent();
    let ended = a.wait_agent_end(Duration::from_secs(5));
    assert_eq!(ended.code(), Some(1));
    let log = a.agent_log();
    let text = fs::read_to_string(a.config_file()).expect("a configuration");
    for wrong in ["[node2]", "connect_timeout"] {
        let line = text.lines().position(|line| line.starts_with(wrong)).expect("the mistake") + 1;
        assert!(log.contains(&format!("plexus.toml:{line}:")), "{wrong}: {log}");
    }
    let checked = a.plexus(["config", "check", "plexus.toml"]).refused();
    assert!(checked.contains("node2") && checked.contains("soon"), "{checked}");
}

#[test]
fn a_second_agent_of_a_node_s_name_does_not_start_and_says_who_has_it() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    b.terminate_agent();
    let _ = b.wait_agent_end(Duration::from_secs(20));
    let config = fs::read_to_string(b.config_file()).expect("its configuration");
    fs::write(b.config_file(), config.replace("name = \"b\"", "name = \"a\"")).expect("its configuration");
    b.define(&ServiceFile::new("api", 9001));
    b.start_agent();
    // It waits for three times the session's time to live, and stops what it had started.
    let ended = b.wait_agent_end(Duration::from_secs(60));
    assert_eq!(ended.code(), Some(1));
    let log = b.agent_log();
    let said =
        "the agent cannot start: node name a is taken by an agent at 10.77.0.1, and this one is at 10.77.0.2";
    assert!(log.contains(said), "{log}");
    assert_eq!((a.serving("web"), a.known("api")), (vec!["web-a-9000".to_owned()], Vec::new()));
    assert_eq!(a.known_nodes(), ["a"]);
    // Who was killed, and whose machine has another address now, waits for its own record to end.
    a.kill_agent();
    b.start_agent();
    b.wait_ready(Duration::from_secs(20));
    let _ = eventually!(SOON, b.known_nodes(), |nodes| *nodes == ["a"]);
}
