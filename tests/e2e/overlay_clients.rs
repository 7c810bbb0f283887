//! A container sees the clients that connected to another node by their own addresses, and its answers go back by that node.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use plexus_tests::client::http::{Failure, Held};
use plexus_tests::client::udp::Talk;
use plexus_tests::{Cluster, Namespace, Node, Process, ServiceFile, eventually, needs};

use crate::overlay::{Container, SOON, cluster};
use crate::{INSTANCE, PUBLISHED};

const ANSWER: Duration = Duration::from_millis(500);
/// Where the service of the container's IPv6 address is published.
const PUBLISHED_V6: u16 = 8086;
/// A machine behind a node, as the harness gives it, and that node's end of the link.
const FAR: [&str; 2] = ["172.30.0.2", "fd77:30::2"];
const GATEWAY: [&str; 2] = ["172.30.0.1", "fd77:30::1"];

/// Three nodes; a client on a network that only the first knows the way to; and a container of the second, which is the endpoint of
/// one service with each of its addresses.
struct World {
    cluster: Cluster,
    far: Namespace,
    _server: Process,
}

fn world() -> World {
    let cluster = cluster(3);
    let [a, b, _] = cluster.nodes();
    let far = a.namespace().container("far");
    let endpoint = Container::on(b, "endpoint", "default");
    let server = endpoint.serve(&cluster, "b");
    for (service, address, port) in [("web", 0, PUBLISHED), ("web6", 1, PUBLISHED_V6)] {
        let address = format!("\"{}\"", endpoint.addresses[address]);
        b.define(&ServiceFile::new(service, INSTANCE).id(service).key("address", &address));
        cluster.wait_serving(service, &[service]);
        let _ = a.plexus(["set", service, "client_address=transparent"]).ok();
        cluster.publish(service, port);
    }
    World { cluster, far, _server: server }
}

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// The client's address, and what the container sees of it.
fn seen(client: &Namespace, at: SocketAddr) -> Result<(SocketAddr, SocketAddr), Failure> {
    client.enter(move || {
        let mut held = Held::open(at)?;
        let answer = held.get("/client")?;
        let seen = answer.body.parse::<SocketAddr>().expect("an address");
        Ok((held.own_address(), SocketAddr::new(seen.ip().to_canonical(), seen.port())))
    })
}

#[track_caller]
fn wait_seen(client: &Namespace, at: SocketAddr) {
    let _ = eventually!(SOON, seen(client, at), |seen| matches!(seen, Ok((own, seen)) if own == seen));
}

fn strictly_checked_sources(node: &Node) {
    for interface in ["all", "default", "eth0"] {
        let _ = node.exec("sysctl", &["-w", &format!("net.ipv4.conf.{interface}.rp_filter=1")]).ok();
    }
}

#[test]
fn a_container_of_another_node_sees_who_its_clients_are() {
    needs!("etcd", "etcdctl", "nft", "ping", "sysctl");
    let world = world();
    let [a, b, c] = world.cluster.nodes();
    for (gateway, port, own) in [(GATEWAY[0], PUBLISHED, FAR[0]), (GATEWAY[1], PUBLISHED_V6, FAR[1])] {
        wait_seen(&world.far, address(gateway, port));
        for _ in 0..50 {
            let (client, seen) = seen(&world.far, address(gateway, port)).expect("an answer");
            assert_eq!((client, client.ip()), (seen, own.parse::<IpAddr>().expect("an address")));
        }
    }
    // Over UDP too.
    let _ = a.plexus(["publish", "web", &format!("{PUBLISHED}/udp")]).ok();
    let talk = || Talk::open(&world.far, address(GATEWAY[0], PUBLISHED)).expect("a socket");
    eventually!(SOON, talk().ask(b"?", ANSWER).is_some(), |answered| *answered);
    for _ in 0..10 {
        let talk = talk();
        // The server has one socket for both families.
        let own = format!("[::ffff:{}]:{}", talk.own_address().ip(), talk.own_address().port());
        assert_eq!(talk.ask(b"/client", ANSWER), Some(own.clone()));
        assert_eq!(talk.ask(b"/client", ANSWER), Some(own));
    }
    // By the container's own node, and by one that has neither it nor the client.
    for (client, node) in [(a, b), (c, b), (a, c), (c, a)] {
        wait_seen(client.namespace(), node.at(PUBLISHED));
    }
    // What the container's node itself asks of another one it would be answered past that one, by whichever of its addresses.
    let _ = b.exec("ip", &["address", "add", "192.0.2.99/32", "dev", "eth0"]).ok();
    let _ = a.exec("ip", &["route", "add", "192.0.2.99/32", "dev", "eth0"]).ok();
    let other = SocketAddr::from(([192, 0, 2, 99], 45_000));
    let at = a.at(PUBLISHED);
    let from_other = || b.namespace().enter(move || Held::open_from(other, at)?.get("/client"));
    let _ = eventually!(SOON, from_other(), Result::is_ok);
    assert!(seen(b.namespace(), at).is_ok_and(|(own, seen)| own.ip() != seen.ip()));
    // A client that is a container of the node it asks. One of another node would be answered past that one, and is served all the same.
    let (here, there) = (Container::on(a, "client", "default"), Container::on(c, "client", "default"));
    wait_seen(&here.namespace, a.at(PUBLISHED));
    let gateway_of_a = {
        let IpAddr::V4(own) = here.v4() else { panic!("IPv4 comes first") };
        let [x, y, z, _] = own.octets();
        SocketAddr::from(([x, y, z, 1], PUBLISHED))
    };
    wait_seen(&here.namespace, gateway_of_a);
    let (own, shown) = seen(&there.namespace, gateway_of_a).expect("an answer");
    assert!(own.ip() == there.v4() && shown.ip() != own.ip());
    assert!(a.metric("plexus_connections_plain_total", "reason=\"neighbour\",service=\"web\"") > Some(0.0));
    let why = a.plexus(["why", "web"]).ok();
    assert!(why.contains("in 10.42.0.0/16"), "{why}");
    // Strictly checked sources change nothing; that they are is noticed by an agent that starts, or half a minute later.
    for node in [a, b] {
        let _ = node.exec("ip", &["route", "replace", "default", "dev", "eth0"]).ok();
        strictly_checked_sources(node);
    }
    b.kill_agent();
    b.start_agent();
    b.wait_ready(SOON);
    wait_seen(&world.far, address(GATEWAY[0], PUBLISHED));
}

#[test]
fn connections_with_their_clients_addresses_outlive_agents_and_what_is_flushed() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let world = world();
    let [a, b, _] = world.cluster.nodes();
    let published = address(GATEWAY[0], PUBLISHED);
    wait_seen(&world.far, published);
    let mut held = world.far.enter(move || Held::open(published)).expect("a connection");
    let own = held.own_address().to_string();
    let mut ask = |after: &str| {
        let seen = held.get("/client").unwrap_or_else(|error| panic!("after {after}: {error:?}")).body;
        assert!(seen.contains(&world.far.address().to_string()), "{seen} for {own} after {after}");
    };
    ask("nothing");
    b.kill_agent();
    ask("the agent of the container's node was killed");
    b.start_agent();
    b.wait_ready(SOON);
    ask("it was started");
    let repairs = || b.metric("plexus_overlay_repairs_total", "").unwrap_or_default();
    let network = a.plexus_json(["network", "inspect", "default"]);
    let table = (0x5200_0000 + network["network"]["vni"].as_u64().expect("a number")).to_string();
    for harm in [
        &["nft", "delete", "table", "inet", "plexus-return"][..],
        &["nft", "flush", "chain", "netdev", "plexus-return", "back"],
        &["ip", "rule", "del", "pref", "82"],
        &["ip", "-6", "rule", "del", "pref", "82"],
        &["ip", "route", "flush", "table", &table],
    ] {
        let _ = b.exec(harm[0], &harm[1..]).ok();
        wait_seen(&world.far, published);
        ask(harm[1]);
    }
    assert!(repairs() > 0.0);
    a.kill_agent();
    a.start_agent();
    a.wait_ready(SOON);
    wait_seen(&world.far, published);
    // What the node says of itself goes with what it can do.
    let subnets = || a.plexus(["network", "inspect", "default", "--json"]).ok();
    assert_eq!(subnets().matches("\"returns\": true").count(), 3, "{}", subnets());
}
