//! Datagrams through published ports: answered by who can, on every node, whatever dies.

use std::time::{Duration, Instant};

use plexus_tests::client::dig;
use plexus_tests::client::udp::Talk;
use plexus_tests::{Cluster, Node, Process, ServiceFile, eventually, needs};

use crate::{INSTANCE, PUBLISHED};

const SOON: Duration = Duration::from_secs(3);
/// Longer than an answer takes, shorter than a test's patience.
const ANSWER: Duration = Duration::from_millis(500);

/// Publishes a UDP port, and waits until it answers on these nodes, asked from `client`.
fn publish(nodes: &[&Node], client: &Node, service: &str, port: u16) {
    let _ = nodes[0].plexus(["publish", service, &format!("{port}/udp")]).ok();
    for node in nodes {
        let talk = || Talk::open(client.namespace(), node.at(port)).expect("a socket");
        eventually!(SOON, talk().ask(b"?", ANSWER).is_some(), |answered| *answered);
    }
}

#[test]
fn a_name_server_behind_a_published_port_answers_on_every_node() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::new(4);
    let [a, b, c, client] = cluster.nodes();
    let _web = a.serve("web", INSTANCE);
    // The agents' own name servers, as a service like any other.
    [a, b].iter().for_each(|node| node.define(&ServiceFile::new("resolver", 53).check("{ tcp = true }")));
    cluster.wait_serving("resolver", &["resolver-a-53", "resolver-b-53"]);
    cluster.wait_serving("web", &["web-a-9000"]);
    let _ = c.plexus(["publish", "resolver", "5353/udp"]).ok();
    for node in [a, b, c] {
        // dig takes an answer only from the address that it asked.
        let ask =
            || dig::ask(client.namespace(), node.address(), "web.mesh.internal", "A", &["-p", "5353"]).data;
        eventually!(SOON, ask(), |data| *data == [a.address().to_string()]);
        assert!(node.metric("plexus_udp_sessions_total", "resolver").is_some_and(|count| count > 0.0));
    }
}

#[test]
fn clients_of_an_endpoint_that_dies_go_on_with_another_and_no_agent_is_restarted() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(4);
    let [a, b, c, client] = cluster.nodes();
    let backends = [a, b].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    publish(&[a, b, c], client, "web", PUBLISHED);
    // As many clients through each node as it takes to have some at each endpoint.
    let talks: Vec<Talk> = [a, b, c]
        .iter()
        .flat_map(|node| {
            (0..6).map(|_| Talk::open(client.namespace(), node.at(PUBLISHED)).expect("a socket"))
        })
        .collect();
    let before: Vec<_> = talks.iter().map(|talk| talk.instance(ANSWER).expect("an answer")).collect();
    assert!(before.iter().any(|id| id == "web-a-9000") && before.iter().any(|id| id == "web-b-9000"));
    // A session keeps its endpoint.
    let again: Vec<_> = talks.iter().map(|talk| talk.instance(ANSWER).expect("an answer")).collect();
    assert_eq!(again, before);

    backends[0].kill();
    let killed = Instant::now();
    for talk in &talks {
        // Its host says that the port is closed: no need to wait for a check.
        eventually!(SOON, talk.instance(Duration::from_millis(50)), |id| id.as_deref() == Some("web-b-9000"));
    }
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
    // New ones lose nothing at all, before and after the check has noticed.
    for node in [a, b, c] {
        for _ in 0..4 {
            let talk = Talk::open(client.namespace(), node.at(PUBLISHED)).expect("a socket");
            assert_eq!(talk.instance(ANSWER).as_deref(), Some("web-b-9000"));
        }
    }
    for node in [a, b, c] {
        assert!(!node.agent_has_ended());
        assert!(node.metric("plexus_udp_sessions_total", "web").is_some_and(|count| count >= 10.0));
    }
}

#[test]
fn clients_of_an_endpoint_that_fails_its_check_move_though_it_still_answers() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, client] = cluster.nodes();
    let backends = [a, b].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    publish(&[a, b], client, "web", PUBLISHED);
    let talks: Vec<Talk> =
        (0..6).map(|_| Talk::open(client.namespace(), a.at(PUBLISHED)).expect("a socket")).collect();
    let first: Vec<_> = talks.iter().map(|talk| talk.instance(ANSWER).expect("an answer")).collect();
    assert!(first.iter().any(|id| id == "web-b-9000"), "{first:?}");
    backends[1].fail();
    eventually!(SOON, a.serving("web"), |ids| *ids == ["web-a-9000"]);
    // No stale flow: the very next datagram of each, and none of them is lost.
    for talk in &talks {
        assert_eq!(talk.instance(ANSWER).as_deref(), Some("web-a-9000"));
    }
    assert!(a.metric("plexus_udp_sessions_moved_total", "web").is_some_and(|count| count > 0.0));
}

#[test]
fn bulk_passes_both_ways_without_loss() {
    needs!("etcd", "etcdctl", "iperf3");
    let cluster = Cluster::new(3);
    let [a, b, client] = cluster.nodes();
    let log = cluster.world().log("iperf3");
    let _server = Process::start("iperf3", a.namespace().command("iperf3").arg("--server"), &log);
    a.define(&ServiceFile::new("bulk", 5201).check(""));
    cluster.wait_serving("bulk", &["bulk-a-5201"]);
    // It talks about the test over TCP, and does it over UDP. Not asked whether it answers: a connection that says nothing
    // confuses it.
    for port in ["5210/tcp", "5210/udp"] {
        let _ = b.plexus(["publish", "bulk", port]).ok();
        let listening = format!("{port}  main port  listening");
        eventually!(SOON, b.plexus(["why", "bulk"]).ok(), |why| why.contains(&listening));
    }
    let address = b.address().to_string();
    let forward =
        ["--client", &address, "--port", "5210", "--udp", "--bitrate", "20M", "--time", "1", "--json"];
    for arguments in [forward.to_vec(), [&forward[..], &["--reverse"]].concat()] {
        let ran = client.exec("iperf3", &arguments);
        let report: serde_json::Value = serde_json::from_str(&ran.ok()).expect("JSON");
        let sum = &report["end"]["sum"];
        assert!(sum["packets"].as_u64().is_some_and(|packets| packets > 1000), "{report}");
        assert!(sum["lost_percent"].as_f64().is_some_and(|lost| lost < 1.0), "{report}");
    }
}
