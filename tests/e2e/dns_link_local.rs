//! An address that every node gives itself: containers ask the node that they are on, wherever that is.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::time::Duration;

use plexus_tests::client::dig;
use plexus_tests::{Cluster, Namespace, Node, Settings, eventually, needs, plexus_program, run};

use crate::INSTANCE;
use crate::overlay::Container;

const ADDRESS: &str = "169.254.53.53";
/// The agent looks every 5 s whether it is still there.
const SOON: Duration = Duration::from_secs(12);

fn address() -> IpAddr {
    ADDRESS.parse().expect("an address")
}

/// With the address in its configuration.
fn configure(node: &Node, settings: &Settings) {
    node.configure(settings);
    let text = std::fs::read_to_string(node.config_file()).expect("a configuration");
    let text = text.replace("[dns]\n", &format!("[dns]\nlink_local = \"{ADDRESS}\"\n"));
    std::fs::write(node.config_file(), text).expect("written");
}

/// Routes of the node that an agent has made for it.
fn routes(node: &Node) -> String {
    node.exec("ip", &["route", "show", "table", "local", "proto", "83"]).ok()
}

fn asked_from(namespace: &Namespace) -> Vec<String> {
    dig::ask(namespace, address(), "web.mesh.internal", "A", &[]).data
}

/// A container behind a bridge of its node, as Docker makes them.
fn container(node: &Node) -> Namespace {
    let container = Namespace::add(format!("{}-box", node.namespace().name()), [172, 18, 0, 2]);
    let (host, name) = (node.namespace().name(), container.name());
    for command in [
        format!("ip -n {host} link add docker0 type bridge forward_delay 0"),
        format!("ip -n {host} address add 172.18.0.1/16 dev docker0"),
        format!("ip -n {host} link set docker0 up"),
        format!("ip -n {host} link add veth1 type veth peer name eth0 netns {name}"),
        format!("ip -n {host} link set veth1 master docker0 up"),
        format!("ip -n {name} address add 172.18.0.2/16 dev eth0"),
        format!("ip -n {name} link set eth0 up"),
        format!("ip -n {name} route add default via 172.18.0.1"),
    ] {
        let _ = run(&command.split(' ').collect::<Vec<_>>()).expect("ip").ok();
    }
    container
}

#[test]
fn containers_of_every_node_ask_the_same_address_and_get_their_own_node() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    for node in [a, b] {
        configure(node, cluster.settings());
        node.restart_agent();
    }
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let expected = [a.address().to_string()];
    for node in [a, b] {
        let container = container(node);
        assert_eq!(asked_from(node.namespace()), expected);
        assert_eq!(asked_from(&container), expected);
        let over_tcp = dig::ask(&container, address(), "web.mesh.internal", "A", &["+tcp"]);
        assert_eq!(over_tcp.data, expected);
        // Strict reverse paths, and ARP for the addresses of its own interface alone, are no hindrance.
        let strict = [
            "net.ipv4.conf.all.rp_filter=1",
            "net.ipv4.conf.docker0.rp_filter=1",
            "net.ipv4.conf.all.arp_ignore=1",
        ];
        strict.iter().for_each(|setting| drop(node.exec("sysctl", &["-qw", setting]).ok()));
        assert_eq!(asked_from(&container), expected);
        let queries = |node: &Node| node.metric("plexus_dns_queries_total", "").unwrap_or_default();
        let before = [queries(a), queries(b)];
        assert_eq!(asked_from(&container), expected);
        let more = [queries(a) > before[0], queries(b) > before[1]];
        assert_eq!(more, [node.name() == "a", node.name() == "b"], "its own node answers");
    }
}

#[test]
fn containers_of_overlay_networks_ask_their_own_node_too() {
    needs!("etcd", "etcdctl", "dig", "nft");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    let more = "[overlay]\nenabled = true\ndefault = [\"10.42.0.0/16\"]\n".to_owned();
    let settings = Settings { more, ..cluster.settings().clone() };
    for node in [a, b] {
        configure(node, &settings);
        node.restart_agent();
    }
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    for node in [a, b] {
        let _ =
            eventually!(SOON, node.metric("plexus_overlay_networks", ""), |networks| *networks >= Some(1.0));
        let container = Container::on(node, "box", "default");
        let expected = [a.address().to_string()];
        eventually!(SOON, asked_from(&container.namespace), |data| *data == expected);
    }
}

#[test]
fn the_address_outlives_a_kill_and_a_take_over_and_goes_with_the_last_agent() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    configure(a, cluster.settings());
    a.restart_agent();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let expected = [a.address().to_string()];
    assert!(routes(a).contains(ADDRESS), "{}", routes(a));
    // What somebody takes away is put back.
    let _ = a.exec("ip", &["route", "del", "local", ADDRESS, "table", "local"]).ok();
    let _ = eventually!(SOON, routes(a), |routes| routes.contains(ADDRESS));
    a.kill_agent();
    assert!(routes(a).contains(ADDRESS));
    a.restart_agent();
    let _ = eventually!(SOON, asked_from(a.namespace()), |data| *data == expected);
    let mut before = a.take_over();
    before.wait(SOON);
    assert!(routes(a).contains(ADDRESS), "it is the next one's");
    assert_eq!(asked_from(a.namespace()), expected);
    a.terminate_agent();
    let _ = a.wait_agent_end(SOON);
    assert_eq!(routes(a), "");
}

#[test]
fn an_address_that_is_somebody_else_s_is_used_and_left_alone_and_without_privileges_that_is_said() {
    needs!("etcd", "etcdctl", "dig", "setpriv");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    [a, b].iter().for_each(|node| configure(node, cluster.settings()));
    let _ = a.exec("ip", &["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"]).ok();
    let program =
        [OsStr::new("setpriv"), OsStr::new("--bounding-set=-net_admin"), plexus_program().as_os_str()];
    b.start_agent_by(&program);
    b.wait_ready(SOON);
    a.restart_agent();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    assert_eq!((asked_from(a.namespace()), routes(a)), (vec![a.address().to_string()], String::new()));
    a.terminate_agent();
    let _ = a.wait_agent_end(SOON);
    assert!(a.exec("ip", &["address", "show", "dev", "lo"]).ok().contains(ADDRESS));
    // The other addresses are answered on all the same.
    assert_eq!(b.dig("b.node.mesh.internal", "A").data, [b.address().to_string()]);
    let status = b.plexus(["status"]).ok();
    assert!(
        status.contains("this node does not have 169.254.53.53") && status.contains("CAP_NET_ADMIN"),
        "{status}"
    );
    let listeners = b.admin_json("/v1/plexus/dns")["listeners"].to_string();
    assert!(listeners.contains("this node does not have"), "{listeners}");
}
