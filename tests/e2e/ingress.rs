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
    let more = "[[ingress.localhost]]\nservice = \"web\"\nport = 3219\n\
                [[ingress.localhost]]\nservice = \"web\"\nport = 3220\ntarget = \"9100\"";
    let cluster = Cluster::of(2).settings(|settings: &mut Settings| settings.more = more.to_owned()).start();
    let [a, b] = cluster.nodes();
    let backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let local = "127.0.0.1:3219".parse().expect("an address");
    assert_eq!(b.get(local, "/").expect("an answer").instance().as_deref(), Some(backend.id()));
    assert!(!a.can_connect(b.at(3219)));
    let other = a.backend("other", 9100);
    let target = "127.0.0.1:3220".parse().expect("an address");
    assert_eq!(b.get(target, "/").expect("an answer").instance().as_deref(), Some(other.id()));
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
    assert!(why.contains("8080") && why.contains("it is plexus-test-bac"), "{why}");
    let status = b.plexus(["status"]).ok();
    assert!(status.contains("8080"), "{status}");
    squatter.kill();
    eventually!(
        Duration::from_secs(15),
        b.get(b.at(PUBLISHED), "/").ok().and_then(|answer| answer.instance()),
        |id| id.as_deref() == Some("web-a-9000"),
    );
}

#[test]
fn a_range_opens_on_every_node_and_leads_to_the_same_ports() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let main = a.serve("web", INSTANCE);
    let others = [a.backend("first", 7000), a.backend("last", 7002)];
    cluster.wait_serving("web", &["web-a-9000"]);
    let _ = b.plexus(["publish", "web", "7000-7002"]).ok();
    let within = plexus_tests::Deadline::after(WITHIN_A_SECOND);
    for node in [b, c] {
        for port in [7000, 7001, 7002] {
            eventually!(within.left(), (node.name(), port, a.can_connect(node.at(port))), |(.., open)| *open);
        }
        for (port, backend) in [(7000, &others[0]), (7002, &others[1])] {
            assert_eq!(
                c.get(node.at(port), "/").expect("an answer").instance().as_deref(),
                Some(backend.id())
            );
        }
    }
    // All of a range to one port, by number.
    let _ = b.plexus(["publish", "web", "7100-7101:9000"]).ok();
    eventually!(WITHIN_A_SECOND, a.can_connect(c.at(7101)), |open| *open);
    assert_eq!(a.get(c.at(7101), "/").expect("an answer").instance().as_deref(), Some(main.id()));
    // A part of a range is not withdrawn, and whoever tries is told what is.
    let told = b.plexus(["unpublish", "web", "7001"]).ok();
    assert!(told.contains("plexus unpublish web 7000-7002/tcp"), "{told}");
    let _ = b.plexus(["unpublish", "web", "7000-7002"]).ok();
    eventually!(WITHIN_A_SECOND, [7000, 7001, 7002].map(|port| a.can_connect(c.at(port))), |open| *open
        == [false; 3]);
}

#[test]
fn a_port_with_addresses_opens_on_these_and_only_where_they_are() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backends = [a.serve("web", INSTANCE), a.serve("api", 9001)];
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.wait_serving("api", &["api-a-9001"]);
    let _ = a.plexus(["publish", "web", "8080", "--address", &b.address().to_string()]).ok();
    eventually!(WITHIN_A_SECOND, a.can_connect(b.at(PUBLISHED)), |open| *open);
    assert!(!b.can_connect("127.0.0.1:8080".parse().expect("an address")), "not on its other addresses");
    assert!(!a.can_connect(c.at(PUBLISHED)) && !b.can_connect(a.at(PUBLISHED)), "not on nodes without it");
    // Another service may have the port elsewhere, and nowhere where it would meet.
    let _ = a.plexus(["publish", "api", "8080", "--address", &c.address().to_string()]).ok();
    eventually!(WITHIN_A_SECOND, a.get(c.at(PUBLISHED), "/").ok().and_then(|a| a.instance()), |id| {
        id.as_deref() == Some("api-a-9001")
    });
    for address in ["10.77.0.0/24", "0.0.0.0/0"] {
        let refused = a.plexus(["publish", "late", "8080", "--address", address]);
        assert!(
            !refused.success() && refused.stderr.contains("service api publishes 8080/tcp@10.77.0.3"),
            "{refused}"
        );
    }
    // An address that a node gets later is opened there.
    let _ = a.plexus(["publish", "web", "8090", "--address", "198.51.100.0/24"]).ok();
    let _ = c.exec("ip", &["address", "add", "198.51.100.7/24", "dev", "eth0"]).ok();
    let late = "198.51.100.7:8090".parse().expect("an address");
    eventually!(Duration::from_secs(8), c.can_connect(late), |open| *open);
}

#[test]
fn a_host_port_is_open_where_an_instance_runs_and_leads_to_that_one() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let backends = [a, b].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    let _ = c.plexus(["publish", "web", "8080", "--mode", "host"]).ok();
    for (node, backend) in [(a, &backends[0]), (b, &backends[1])] {
        eventually!(WITHIN_A_SECOND, c.can_connect(node.at(PUBLISHED)), |open| *open);
        for _ in 0..4 {
            let answer = c.get(node.at(PUBLISHED), "/").expect("an answer");
            assert_eq!(answer.instance().as_deref(), Some(backend.id()));
        }
    }
    assert!(!a.can_connect(c.at(PUBLISHED)));
    let third = c.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    let answer = || a.get(c.at(PUBLISHED), "/").ok().and_then(|answer| answer.instance());
    eventually!(WITHIN_A_SECOND, answer(), |id| id.as_deref() == Some(third.id()));
    a.remove_service_file("web-9000.toml");
    eventually!(Duration::from_secs(5), c.can_connect(a.at(PUBLISHED)), |open| !*open);
    let why = b.plexus(["why", "web"]).ok();
    assert!(why.contains("this node"), "{why}");
    // The mode of a port that is published can be changed.
    let _ = c.plexus(["publish", "web", "8080"]).ok();
    eventually!(WITHIN_A_SECOND, c.can_connect(a.at(PUBLISHED)), |open| *open);
}

#[test]
fn a_port_of_another_service_is_refused_with_its_name() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _ = a.plexus(["publish", "web", "8000-8010"]).ok();
    for (port, more) in [("8005", "ingress"), ("7990-8000", "ingress"), ("8010", "host")] {
        let refused = b.plexus(["publish", "api", port, "--mode", more]);
        assert!(!refused.success(), "{refused}");
        assert!(refused.stderr.contains("service web publishes 8000-8010/tcp"), "{refused}");
        assert!(refused.stderr.contains("plexus unpublish web 8000-8010/tcp"), "{refused}");
    }
    let _ = b.plexus(["publish", "api", "8005/udp"]).ok();
    let own = b.plexus(["publish", "web", "8003"]);
    assert!(!own.success() && own.stderr.contains("it publishes 8000-8010/tcp already"), "{own}");
}
