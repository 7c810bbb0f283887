//! Nodes that leave, return and die, and a store that is gone for a minute: what containers notice of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use plexus_tests::client::http::Held;
use plexus_tests::server::store::Make;
use plexus_tests::{Cluster, Deadline, Node, eventually, needs, pause, throughout};

use crate::INSTANCE;
use crate::overlay::{CONFIGURATION, Container, SOON, cluster_on, wait_peers};

/// Longer than the lease of a node's subnets lasts in these tests, with what etcd takes to end it.
const OVER: Duration = Duration::from_secs(90);

/// The parts of a network that a node has, as another one knows it.
fn parts(asked: &Node, network: &str, node: &Node) -> Vec<String> {
    let subnets = asked.admin_json(&format!("/v1/plexus/networks/{network}"))["subnets"].clone();
    let subnets = subnets.as_array().cloned().unwrap_or_default();
    let of_node = subnets.iter().filter(|subnet| subnet["node"] == node.name());
    let prefixes = of_node.flat_map(|subnet| subnet["prefixes"].as_array().cloned().unwrap_or_default());
    prefixes.filter_map(|prefix| prefix.as_str().map(str::to_owned)).collect()
}

/// What a node's kernel has that leads to a peer, by its address beneath and its parts of networks.
fn traces(on: &Node, peer: &Node, parts: &[String]) -> Vec<String> {
    let end = format!("dst {} ", peer.address());
    let is_of_part = |line: &str| {
        // Without the host's part: 10.42.7.0/24 → 10.42.7. and fd00:42:0:7::/64 → fd00:42:0:7::
        let begins = |part: &String| {
            line.starts_with(part[..part.rfind('/').expect("a length")].trim_end_matches('0'))
        };
        parts.iter().any(begins)
    };
    let list = |program: &str, arguments: &[&str], is_of_peer: &dyn Fn(&str) -> bool| {
        let listed = on.exec(program, arguments).ok();
        listed.lines().filter(|line| is_of_peer(line)).map(str::to_owned).collect::<Vec<_>>()
    };
    [
        list("bridge", &["fdb", "show"], &|line| line.contains(&end)),
        list("ip", &["-4", "route", "show", "proto", "82"], &is_of_part),
        list("ip", &["-6", "route", "show", "proto", "82"], &is_of_part),
        list("ip", &["-4", "neigh", "show", "nud", "permanent"], &is_of_part),
        list("ip", &["-6", "neigh", "show", "nud", "permanent"], &is_of_part),
    ]
    .concat()
}

fn are_of_one_part(one: IpAddr, other: IpAddr) -> bool {
    let part = |address: IpAddr| address.to_string().rsplit_once('.').map(|(part, _)| part.to_owned());
    part(one) == part(other)
}

fn reach_each_other(one: &Container, other: &Container) -> bool {
    unreached(one, other).is_empty()
}

/// Which addresses of the two the other one does not reach.
fn unreached(one: &Container, other: &Container) -> Vec<String> {
    let ways = [(one, other), (other, one)];
    let ways = ways.iter().flat_map(|(from, to)| to.addresses.iter().map(move |address| (from, address)));
    let lost = ways.filter(|(from, address)| !from.reaches(**address));
    lost.map(|(from, address)| format!("{} does not reach {address}", from.namespace.name())).collect()
}

#[track_caller]
fn wait_reach_each_other(one: &Container, other: &Container) {
    let _ = eventually!(SOON, reach_each_other(one, other), |reach| *reach);
}

#[test]
fn containers_of_a_node_that_leaves_and_returns_in_time_are_reached_all_the_while() {
    needs!("etcd", "etcdctl", "nft", "ping");
    a_node_leaves_and_returns(Make::Etcd(1));
}

pub(crate) fn a_node_leaves_and_returns(make: Make) {
    let cluster = cluster_on(make, 3);
    let [a, b, c] = cluster.nodes();
    let [here, there] = [a, c].map(|node| Container::on(node, "one", "default"));
    let _server = there.serve(&cluster, "c");
    let server = SocketAddr::new(there.v4(), INSTANCE);
    let connect = || here.namespace.enter(move || Held::open(server));
    let mut held = eventually!(SOON, connect(), Result::is_ok).expect("open");
    let mut ask = |when: &str| {
        let answer = held.get("/client").unwrap_or_else(|error| panic!("{when}: {error}"));
        assert!(answer.body.contains(&here.v4().to_string()), "{when}: {}", answer.body);
    };
    let part = parts(a, "default", c);
    let led_there = traces(a, c, &part);
    assert_eq!(led_there.len(), 5, "{led_there:?}");
    c.terminate_agent();
    assert!(c.wait_agent_end(SOON).success());
    ask("the agent has left");
    for node in [a, b] {
        let _ = eventually!(SOON, node.known_nodes(), |known| *known == ["a", "b"]);
    }
    // It has left, and what it has of networks is its own for as long as its lease lasts.
    let stays = || (parts(a, "default", c), traces(a, c, &part), reach_each_other(&here, &there));
    throughout!(Duration::from_secs(3), stays(), |(now, leads, reach)| {
        *reach && *now == part && *leads == led_there
    });
    c.restart_agent();
    wait_peers(c, "default", 2);
    ask("the next agent is there");
    assert_eq!(parts(a, "default", c), part);
    let next = Container::on(c, "next", "default");
    assert!(are_of_one_part(next.v4(), there.v4()) && next.v4() != there.v4());
    for container in [&next, &there] {
        wait_reach_each_other(&here, container);
    }
    ask("the end");
}

/// Three nodes, two of which have a part of a network that has no more.
fn tight() -> Cluster {
    let cluster = Cluster::of(3).without_agents();
    let cluster = cluster.settings(|settings| settings.more = CONFIGURATION.to_owned()).start();
    let [a, b, c] = cluster.nodes();
    for node in [a, c] {
        node.restart_agent();
    }
    let _ = a.plexus(["network", "create", "tight", "--cidr", "10.44.0.0/23"]).ok();
    for node in [a, c] {
        wait_peers(node, "tight", 1);
    }
    b.restart_agent();
    for node in [a, b, c] {
        wait_peers(node, "default", 2);
    }
    says_that_all_are_taken(b);
    cluster
}

#[track_caller]
fn says_that_all_are_taken(node: &Node) {
    let status = || node.plexus(["status"]).stdout;
    let _ = eventually!(SOON, status(), |status| status
        .contains("this node has no subnet of network tight: all 2 are taken"));
}

#[test]
fn what_a_dead_node_had_is_anothers_and_it_has_its_own_or_something_else_when_it_returns() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = tight();
    let [a, b, c] = cluster.nodes();
    let [here, there] = [a, c].map(|node| Container::on(node, "one", "default"));
    let [here_tight, there_tight] = [a, c].map(|node| Container::on(node, "tight", "tight"));
    wait_reach_each_other(&here, &there);
    wait_reach_each_other(&here_tight, &there_tight);
    let (part, tight) = (parts(a, "default", c), parts(a, "tight", c));
    let is_led_there = |node: &Node| traces(node, c, &part).len();
    assert_eq!(is_led_there(a), 6);

    // It dies: nothing is said, and nothing is heard of it.
    cluster.cut(c);
    c.kill_agent();
    let _ = eventually!(OVER, (is_led_there(a), is_led_there(b)), |left| *left == (0, 0));
    assert_eq!(parts(a, "default", c), [""; 0]);
    let _ = eventually!(SOON, parts(a, "tight", b), |now| *now == tight);
    wait_peers(b, "tight", 1);
    let successor = Container::on(b, "successor", "tight");
    assert!(are_of_one_part(successor.v4(), there_tight.v4()));
    wait_reach_each_other(&here_tight, &successor);

    // It returns. What nobody took is its own again, and so are its containers.
    cluster.heal(c);
    c.restart_agent();
    let _ = eventually!(SOON, parts(a, "default", c), |now| *now == part);
    wait_reach_each_other(&here, &there);
    // What somebody took is not, and nothing of it is given here.
    says_that_all_are_taken(c);
    let one_more = ["attach", there.namespace.name(), "--network", "tight", "--interface", "eth1"];
    let refused = c.plexus(one_more).refused();
    assert!(refused.contains("this node may give no addresses of network tight now"), "{refused}");
    wait_reach_each_other(&here_tight, &successor);

    // Another part becomes free, and is its part from now on; containers have addresses of it when they are attached again.
    let freed = parts(b, "tight", a);
    a.kill_agent();
    let keys = cluster.etcd().keys("/plexus/v1/subnets/tight/");
    let leases = keys.iter().filter_map(|key| cluster.etcd().lease_of(key)).collect::<Vec<_>>();
    let of_b = leases_of(&cluster, b);
    for lease in leases.iter().filter(|lease| !of_b.contains(lease)) {
        let _ = cluster.etcd().ctl(&["lease", "revoke", &format!("{lease:x}")]).ok();
    }
    let _ = eventually!(SOON, parts(b, "tight", c), |now| *now == freed);
    wait_peers(c, "tight", 1);
    let name = there_tight.namespace.name();
    let log = c.agent_log();
    assert!(log.contains("must be attached again"), "{log}");
    let _ = c.plexus(["detach", name, "--network", "tight"]).ok();
    let again = c.plexus_json(["attach", name, "--network", "tight"]);
    let again: IpAddr = again["addresses"][0].as_str().expect("an address").parse().expect("an address");
    assert!(!are_of_one_part(again, there_tight.v4()));
    let _ = eventually!(SOON, successor.reaches(again), |reaches| *reaches);
}

/// The leases of what a node has of networks.
fn leases_of(cluster: &Cluster, node: &Node) -> Vec<u64> {
    let etcd = cluster.etcd();
    let is_of_node = |key: &String| {
        let record = etcd.ctl(&["get", "--print-value-only", key]).ok();
        record.contains(&format!("\"node\":\"{}\"", node.name()))
    };
    let keys = etcd.keys("/plexus/v1/subnets/").into_iter().filter(is_of_node);
    keys.filter_map(|key| etcd.lease_of(&key)).collect()
}

#[test]
fn a_store_that_is_gone_for_a_minute_is_missed_by_no_container() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = Cluster::of(3).without_agents().start();
    let [a, b, c] = cluster.nodes();
    for (node, lease) in [(a, "15m"), (b, "15m"), (c, "1m")] {
        let mut settings = cluster.settings().clone();
        settings.more = CONFIGURATION.replace("\"1m\"", &format!("\"{lease}\""));
        node.configure(&settings);
        node.restart_agent();
    }
    cluster.all().for_each(|node| wait_peers(node, "default", 2));
    let mut containers: Vec<Container> =
        [a, b, c].iter().map(|node| Container::on(node, "one", "default")).collect();
    let _servers = [1, 2].map(|n| containers[n].serve(&cluster, "bc"));
    let client = containers[0].namespace.clone();
    let mut held = [1, 2].map(|n| {
        let server = SocketAddr::new(containers[n].v4(), INSTANCE);
        eventually!(SOON, client.enter(move || Held::open(server)), Result::is_ok).expect("open")
    });
    let part = parts(a, "default", c);
    let mut probe = |containers: &[Container], when: &str| {
        for held in &mut held {
            let answer = held.get("/client").unwrap_or_else(|error| panic!("{when}: {error}"));
            assert!(answer.body.contains(&containers[0].v4().to_string()), "{when}: {}", answer.body);
        }
        for (n, one) in containers.iter().enumerate() {
            let next = &containers[(n + 1) % containers.len()];
            assert_eq!(unreached(one, next), [""; 0], "{when}");
        }
    };
    probe(&containers, "before");

    cluster.cut_store();
    for second in 0..60 {
        let next = Deadline::after(Duration::from_secs(1));
        if second % 12 == 5 {
            let node = [a, b][second / 12 % 2];
            let new = Container::on(node, &format!("new{second}"), "default");
            for other in &containers[..3] {
                assert_eq!(unreached(other, &new), [""; 0], "{second} s");
            }
            containers.push(new);
        }
        probe(&containers, &format!("without a store for {second} s"));
        pause(next.left());
    }
    // A lease that is shorter than that has ended: nothing is attached there, and what is attached goes on.
    let lost = || c.metric("plexus_overlay_leases_lost_total", "");
    let _ = eventually!(Duration::from_secs(30), lost(), |lost| *lost == Some(1.0));
    assert_eq!([a, b].map(|node| node.metric("plexus_overlay_leases_lost_total", "")), [Some(0.0); 2]);
    let spare = plexus_tests::Namespace::add(format!("{}-spare", c.namespace().name()), c.address());
    let refused = c.plexus(["attach", spare.name(), "--network", "default"]).refused();
    assert!(refused.contains("its lease is not renewed; is the store reachable?"), "{refused}");
    let status = c.plexus(["status"]).ok();
    assert!(status.contains("lease"), "{status}");
    probe(&containers, "after the lease of one has ended");

    // It is back, and nobody notices that either, for longer than what has vanished is doubted.
    cluster.heal_store();
    let doubted = Deadline::after(Duration::from_secs(20));
    while !doubted.passed() {
        probe(&containers, "with the store again");
        pause(Duration::from_millis(500));
    }
    assert_eq!(parts(a, "default", c), part);
    let attached = c.plexus_json(["attach", spare.name(), "--network", "default"]);
    let address: IpAddr = attached["addresses"][0].as_str().expect("an address").parse().expect("an address");
    assert!(are_of_one_part(address, containers[2].v4()));
    assert!(containers[0].reaches(address));
}
