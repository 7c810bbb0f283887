//! What passes between containers: streams and datagrams of all pairs, between many nodes, over IPv6, and by ways that pass less.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use plexus_tests::client::http::Held;
use plexus_tests::{Builder, Cluster, Node, Process, ServiceFile, Settings, eventually, needs};
use serde_json::Value;

use crate::overlay::{CONFIGURATION, Container, SOON, cluster, wait_peers};
use crate::overlay_fast_path::wait_short;
use crate::{INSTANCE, PUBLISHED};

/// What a stream carries. iperf3 does not count what is in sockets' buffers when the sender is done.
const STREAM: u64 = 32 << 20;
const BUFFERED: u64 = 16 << 20;
/// Few enough datagrams to wait in a socket's buffer all together: however late the receiver is, none is lost for that.
const DATAGRAMS: u64 = 80;
const DATAGRAM: u64 = 1000;
/// What a stream carries where it is a few.
const BLOCKS: u64 = 64;
/// The tick with which nodes ask the kernel what passes to peers, and the one with which they compare.
const ASKED: Duration = Duration::from_secs(60);

/// Runs iperf3 to the server of a port at an address.
fn iperf(from: &Container, to: IpAddr, port: &str, options: &[&str]) -> Value {
    let to = to.to_string();
    let arguments =
        [&["--json", "--connect-timeout", "2000", "--client", &to, "--port", port], options].concat();
    let run = || {
        let ran = from.namespace.exec("iperf3", &arguments);
        serde_json::from_str::<Value>(&ran.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {ran}"))
    };
    // A server has one test at a time, and puts the last one away after its client has gone.
    let not_yet = |result: &Value| {
        let error = result["error"].as_str().unwrap_or_default();
        ["busy", "refused", "reset"].iter().any(|why| error.contains(why))
    };
    let result = eventually!(SOON, run(), |result| !not_yet(result));
    assert_eq!(result["error"], Value::Null, "to {to} {options:?}");
    result["end"].clone()
}

/// A stream and datagrams, both ways.
fn exchange(from: &Container, to: IpAddr, port: &str) {
    let name = from.namespace.name();
    for direction in [&[][..], &["--reverse"]] {
        let stream = iperf(from, to, port, &[&["--bytes", &STREAM.to_string()], direction].concat());
        let received = stream["sum_received"]["bytes"].as_u64().expect("a number");
        assert!(received >= STREAM - BUFFERED, "{name} to {to} {direction:?}: {stream}");
        let (length, all) = (DATAGRAM.to_string(), (DATAGRAM * DATAGRAMS).to_string());
        let options = ["--udp", "--bitrate", "1M", "--length", &length, "--bytes", &all];
        let datagrams = iperf(from, to, port, &[&options, direction].concat());
        let received = &datagrams["sum_received"];
        assert_eq!(received["lost_packets"], 0, "{name} to {to} {direction:?}: {datagrams}");
        // Those that come after the sender has said that it is done are not counted.
        assert!(
            received["packets"].as_u64() >= Some(DATAGRAMS / 2),
            "{name} to {to} {direction:?}: {datagrams}"
        );
    }
}

#[test]
fn streams_and_datagrams_pass_between_containers_of_all_pairs_both_ways() {
    needs!("etcd", "etcdctl", "nft", "ping", "iperf3");
    let cluster = cluster(3);
    let containers: Vec<Container> =
        cluster.all().map(|node| Container::on(node, "one", "default")).collect();
    // A server for each client, so that nobody waits for another.
    let port = |client: usize| (5201 + client).to_string();
    let servers =
        containers.iter().flat_map(|server| (0..containers.len()).map(move |client| (server, client)));
    let _servers: Vec<Process> = servers
        .map(|(server, client)| {
            let name = format!("iperf3-{}-{client}", server.namespace.name());
            let mut command = server.namespace.command("iperf3");
            Process::start(
                &name,
                command.args(["--server", "--port", &port(client)]),
                &cluster.world().log(&name),
            )
        })
        .collect();
    thread::scope(|scope| {
        for (n, from) in containers.iter().enumerate() {
            let others = containers.iter().enumerate().filter(move |(other, _)| *other != n);
            scope.spawn(move || {
                for address in others.flat_map(|(_, to)| &to.addresses) {
                    exchange(from, *address, &port(n));
                }
            });
        }
    });
}

/// Each reaches each other one by all of its addresses, with small packets, with the largest that are not fragments, and with fragments.
fn all_reach_all(containers: &[Container], overhead: u32) {
    thread::scope(|scope| {
        for from in containers {
            scope.spawn(move || {
                for to in containers.iter().filter(|to| to.v4() != from.v4()) {
                    for address in &to.addresses {
                        let headers = if address.is_ipv4() { 28 } else { 48 };
                        let largest = (1500 - overhead - headers).to_string();
                        for bytes in ["56", &largest, "8000"] {
                            let name = from.namespace.name();
                            assert!(from.sends(*address, bytes), "{bytes} bytes from {name} to {address}");
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn containers_of_eight_nodes_all_reach_each_other() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = cluster(8);
    let containers: Vec<Container> =
        cluster.all().map(|node| Container::on(node, "one", "default")).collect();
    all_reach_all(&containers, 50);
}

#[test]
fn nodes_that_have_ipv6_addresses_only_carry_both_families() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = Cluster::of(3).ipv6().settings(|settings| settings.more = CONFIGURATION.to_owned()).start();
    cluster.all().for_each(|node| wait_peers(node, "default", 2));
    let [a, b, c] = cluster.nodes();
    assert!(
        a.address().is_ipv6()
            && !a.exec("ip", &["-4", "address", "show", "dev", "eth0"]).ok().contains("inet")
    );
    let containers = [a, b, c].map(|node| Container::on(node, "one", "default"));
    all_reach_all(&containers, 70);
    // A port of every node leads to a container of one, by each of its addresses.
    let _server = containers[1].serve(&cluster, "b");
    for (service, address, port) in [("web", 0, PUBLISHED), ("web6", 1, PUBLISHED + 1)] {
        let address = format!("\"{}\"", containers[1].addresses[address]);
        b.define(&ServiceFile::new(service, INSTANCE).id(service).key("address", &address));
        cluster.wait_serving(service, &[service]);
        cluster.publish(service, port);
        for node in [a, b, c] {
            let answer = c.get(node.at(port), "/").expect("an answer");
            assert!(answer.body.contains(containers[1].namespace.name()), "{}", answer.body);
        }
    }
}

/// The MTU of what a network has on a node.
fn has_mtu(node: &Node, mtu: u32) -> bool {
    node.exec("ip", &["link"]).ok().matches(&format!("mtu {mtu} ")).count() >= 2
}

/// Two nodes, the second behind a router whose link to it passes 1400 bytes, and a container of each.
fn behind_a_narrow_link(builder: Builder) -> (Cluster, [Container; 2]) {
    let settings = |settings: &mut Settings| settings.more = CONFIGURATION.to_owned();
    let cluster = builder.behind_router("b").without_agents().settings(settings).start();
    let [a, b] = cluster.nodes();
    for (namespace, link) in [(&cluster.switch(), "to-b"), (b.namespace(), "eth0")] {
        let _ = namespace.exec("ip", &["link", "set", link, "mtu", "1400"]).ok();
    }
    cluster.all().for_each(Node::start_agent);
    cluster.all().for_each(|node| node.wait_ready(SOON));
    cluster.all().for_each(|node| wait_peers(node, "default", 1));
    let containers = [a, b].map(|node| Container::on(node, "one", "default"));
    // Else the first packets would take the usual way, by which senders are told what is too large.
    [a, b].iter().for_each(|node| wait_short(node, 1));
    (cluster, containers)
}

/// Streams of full-size packets pass both ways.
fn pass_streams(cluster: &Cluster, [here, there]: &[Container; 2]) {
    let _server = there.serve(cluster, "b");
    for address in &there.addresses {
        let server = SocketAddr::new(*address, INSTANCE);
        let both_ways = || {
            here.namespace.enter(move || {
                let mut held = Held::open(server)?;
                held.download(BLOCKS).and_then(|_| held.upload(BLOCKS))
            })
        };
        let _ = eventually!(SOON, both_ways(), Result::is_ok);
    }
}

/// Packets of all sizes pass both ways, soon enough for a node to have asked what the way passes.
fn pass_alone([here, there]: &[Container; 2], is_asked: impl Fn(&IpAddr) -> bool) {
    for (n, address) in there.addresses.iter().enumerate().filter(|(_, address)| is_asked(address)) {
        for bytes in ["1200", "1400", "8000"] {
            let both =
                || (address, bytes, here.sends(*address, bytes), there.sends(here.addresses[n], bytes));
            let _ = eventually!(ASKED, both(), |(.., out, back)| *out && *back);
        }
    }
}

#[test]
fn large_packets_pass_a_router_that_fragments_them() {
    needs!("etcd", "etcdctl", "nft", "ping", "sysctl");
    let (cluster, containers) = behind_a_narrow_link(Cluster::of(2));
    let [a, b] = cluster.nodes();
    pass_streams(&cluster, &containers);
    pass_alone(&containers, IpAddr::is_ipv4);
    // What may not be fragmented is told of by the router, and networks are made to fit.
    let to_b = b.address().to_string();
    let told = a.exec("ping", &["-n", "-q", "-c", "1", "-W", "1", "-M", "do", "-s", "1472", &to_b]);
    assert!(!told.success(), "{told}");
    let _ = eventually!(ASKED, has_mtu(a, 1350), |fits| *fits);
    let next = Container::on(a, "next", "default");
    assert!(next.namespace.exec("ip", &["link"]).ok().contains("mtu 1350"));
    pass_streams(&cluster, &containers);
    pass_alone(&containers, |_| true);
}

#[test]
fn large_packets_pass_a_router_that_says_what_is_too_big() {
    needs!("etcd", "etcdctl", "nft", "ping", "sysctl");
    let (cluster, containers) = behind_a_narrow_link(Cluster::of(2).ipv6());
    let [a, _] = cluster.nodes();
    pass_streams(&cluster, &containers);
    // The router tells of packets of the tunnel: nobody else asks.
    pass_alone(&containers, |_| true);
    assert!(has_mtu(a, 1330));
}
