//! Overlay networks: containers of all nodes reach each other by their own addresses, whatever happens to agents, store and kernel.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use plexus_tests::client::http::Held;
use plexus_tests::server::store::Make;
use plexus_tests::{Cluster, Namespace, Node, Process, backend_program, eventually, needs};

use crate::INSTANCE;

/// Shorter than the tick with which everything is compared.
pub(crate) const SOON: Duration = Duration::from_secs(10);
pub(crate) const CONFIGURATION: &str =
    "[overlay]\nenabled = true\ndefault = [\"10.42.0.0/16\", \"fd00:42::/48\"]\nlease = \"1m\"\n";

pub(crate) fn cluster(nodes: usize) -> Cluster {
    cluster_on(Make::Etcd(1), nodes)
}

pub(crate) fn cluster_on(make: Make, nodes: usize) -> Cluster {
    let cluster =
        Cluster::of(nodes).on(make).settings(|settings| settings.more = CONFIGURATION.to_owned()).start();
    for node in cluster.all() {
        wait_peers(node, "default", nodes - 1);
        // Its links are told of last.
        let networks = || node.metric("plexus_overlay_networks", "");
        let _ = eventually!(SOON, networks(), |networks| *networks >= Some(1.0));
    }
    cluster
}

#[track_caller]
pub(crate) fn wait_peers(node: &Node, network: &str, count: usize) {
    let labels = format!("network=\"{network}\"");
    let peers = || node.metric("plexus_overlay_peers", &labels);
    let _ = eventually!(SOON, peers(), |peers| *peers == Some(count as f64));
}

/// Something in a network namespace of its own, on a network.
pub(crate) struct Container {
    pub(crate) namespace: Namespace,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Container {
    #[track_caller]
    pub(crate) fn on(node: &Node, name: &str, network: &str) -> Self {
        let name = format!("{}-{name}", node.namespace().name());
        let namespace = Namespace::add(name, node.address());
        let attached = node.plexus_json(["attach", namespace.name(), "--network", network]);
        let addresses = attached["addresses"].as_array().expect("addresses").iter();
        let addresses = addresses.map(|address| address.as_str().expect("text").parse().expect("an address"));
        Self { addresses: addresses.collect(), namespace }
    }

    pub(crate) fn v4(&self) -> IpAddr {
        self.addresses[0]
    }

    pub(crate) fn reaches(&self, other: IpAddr) -> bool {
        self.sends(other, "56")
    }

    pub(crate) fn sends(&self, other: IpAddr, bytes: &str) -> bool {
        let other = other.to_string();
        self.namespace.exec("ping", &["-n", "-q", "-c", "1", "-W", "1", "-s", bytes, &other]).code == Some(0)
    }

    /// An HTTP server of an instance, on all of its addresses.
    pub(crate) fn serve(&self, cluster: &Cluster, node: &str) -> Process {
        let mut command = self.namespace.command(backend_program());
        let name = self.namespace.name();
        command.args([&format!("[::]:{INSTANCE}"), "web", name, node]);
        Process::start(name, &mut command, &cluster.world().log(name))
    }

    /// What the server at an address sees as the client's.
    fn seen_by(&self, server: IpAddr) -> IpAddr {
        self.namespace.enter(move || {
            let mut held = Held::open(SocketAddr::new(server, INSTANCE)).expect("a connection");
            let answer = held.get("/client").expect("an answer");
            answer.body.parse::<SocketAddr>().expect("an address").ip().to_canonical()
        })
    }
}

#[test]
fn every_container_reaches_every_other_by_its_own_address() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = cluster(3);
    let nodes: [&Node; 3] = cluster.nodes();
    let places = [(0, "one"), (0, "two"), (1, "one"), (2, "one")];
    let containers = places.map(|(node, name)| Container::on(nodes[node], name, "default"));
    let _servers = [2, 3].map(|n: usize| containers[n].serve(&cluster, nodes[places[n].0].name()));
    for from in &containers {
        for to in &containers {
            for address in &to.addresses {
                assert!(from.reaches(*address), "{} to {address}", from.namespace.name());
                // In fragments, and without: the largest packet that is not one (IPv4's header and ICMP's, IPv6's and ICMP's).
                let largest = if address.is_ipv4() { "1422" } else { "1402" };
                assert!(
                    from.sends(*address, largest) && from.sends(*address, "8000"),
                    "large ones to {address}"
                );
            }
        }
    }
    for server in &containers[2..] {
        for (n, address) in server.addresses.iter().enumerate() {
            let _ = eventually!(SOON, containers[0].seen_by(*address), |seen| *seen
                == containers[0].addresses[n]);
        }
    }
    // Nodes themselves reach containers of others too, which is what the balancer needs.
    for node in nodes {
        for to in &containers {
            let _ = node.exec("ping", &["-n", "-q", "-c", "1", "-W", "1", &to.v4().to_string()]).ok();
        }
    }
    let listed = nodes[0].plexus(["attachments"]).ok();
    assert!(containers[..2].iter().all(|container| listed.contains(&container.v4().to_string())), "{listed}");
}

#[test]
fn what_somebody_takes_away_is_put_back_at_once() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let (here, there) = (Container::on(a, "one", "default"), Container::on(b, "one", "default"));
    let vni = a.plexus_json(["network", "inspect", "default"])["network"]["vni"].as_u64().expect("a number");
    let (bridge, vxlan) = (format!("plxb{vni}"), format!("plxv{vni}"));
    let forward = a.exec("bridge", &["fdb", "show", "dev", &vxlan]).ok();
    let mac = forward.split_whitespace().next().expect("an entry of the peer").to_owned();
    let harm: [&[&str]; 6] = [
        &["ip", "link", "del", &vxlan],
        &["ip", "link", "del", &bridge],
        &["ip", "route", "flush", "proto", "82"],
        &["ip", "neigh", "flush", "dev", &vxlan, "nud", "permanent"],
        &["bridge", "fdb", "del", &mac, "dev", &vxlan],
        &["ip", "link", "set", &vxlan, "down"],
    ];
    for harm in harm {
        assert!(here.reaches(there.v4()), "before {harm:?}");
        let _ = a.exec(harm[0], &harm[1..]).ok();
        let begun = Instant::now();
        let _ = eventually!(SOON, here.reaches(there.v4()), |reaches| *reaches);
        println!("{harm:?}: back after {:?}", begun.elapsed());
    }
    let table = || a.exec("nft", &["list", "table", "inet", "plexus-overlay"]).code == Some(0);
    let _ = a.exec("nft", &["delete", "table", "inet", "plexus-overlay"]).ok();
    let _ = eventually!(SOON, table(), |is_there| *is_there);
    // What is not ours stays, and what is of nobody any more goes.
    let _ = a.exec("ip", &["route", "add", "198.51.100.0/24", "dev", &bridge]).ok();
    let _ = a.exec("ip", &["link", "add", "plxb77", "type", "bridge"]).ok();
    let links = || a.exec("ip", &["link"]).ok();
    let _ = eventually!(SOON, links(), |links| !links.contains("plxb77"));
    assert!(a.exec("ip", &["route"]).ok().contains("198.51.100.0/24"));
}

#[test]
fn peers_that_come_and_go_cost_no_comparison() {
    const PEERS: usize = 10;
    needs!("etcd", "etcdctl", "nft");
    let cluster = cluster(2);
    let [a, _] = cluster.nodes();
    let compared = || a.metric("plexus_overlay_comparisons_total", "part=\"network\",reason=\"kernel\"");
    // A way that somebody takes is missed, and counted: what is not counted below is none.
    let routes = a.exec("ip", &["-4", "route", "show", "proto", "82"]).ok();
    let subnet = routes.split_whitespace().next().expect("the way to the other node");
    let _ = a.exec("ip", &["route", "del", subnet, "proto", "82"]).ok();
    let repaired = || a.metric("plexus_overlay_repairs_total", "");
    let _ = eventually!(SOON, (repaired(), compared()), |(repaired, compared)| *repaired > Some(0.0)
        && compared.is_some());
    let before = compared().unwrap_or_default();
    let held = a.plexus_json(["network", "inspect", "default"])["subnets"].clone();
    let held = held.as_array().expect("a list");
    let is_free = |slot: &u64| held.iter().all(|held| held["slot"] != *slot);
    for slot in (0..256).filter(is_free).take(PEERS) {
        let key = format!("/plexus/v1/subnets/default/{slot}");
        let record =
            format!(r#"{{"node": "new", "address": "198.18.0.1", "mac": "02:50:4c:00:00:{slot:02x}"}}"#);
        let _ = cluster.etcd().ctl(&["put", &key, &record]).ok();
        wait_peers(a, "default", 2);
        let _ = cluster.etcd().ctl(&["del", &key]).ok();
        wait_peers(a, "default", 1);
    }
    let more = compared().unwrap_or_default() - before;
    assert!(more < PEERS as f64 / 2.0, "{more} comparisons for {PEERS} peers");
}

/// As if the agent had been killed before it wrote down what it knows: the store will say what there is before this node has its
/// part of it again.
fn forget_networks(node: &Node) {
    let file = node.directory().join("state/catalog.json");
    let Ok(text) = std::fs::read(&file) else { return };
    let mut saved: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let saved_networks = saved.as_object_mut().expect("an object");
    saved_networks.remove("networks");
    saved_networks.remove("subnets");
    std::fs::write(&file, saved.to_string()).expect("the node's directory is writable");
}

#[test]
fn a_stream_goes_on_while_agents_are_killed_and_the_store_is_gone() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let (here, there) = (Container::on(a, "one", "default"), Container::on(b, "one", "default"));
    let _server = there.serve(&cluster, "b");
    let server = SocketAddr::new(there.v4(), INSTANCE);
    let mut held =
        eventually!(SOON, here.namespace.enter(move || Held::open(server)), Result::is_ok).expect("open");
    let mut ask = || {
        let answer = held.get("/client").expect("the connection goes on");
        assert!(answer.body.contains(&here.v4().to_string()), "{}", answer.body);
    };
    ask();
    for node in [a, b] {
        node.kill_agent();
        ask();
        forget_networks(node);
        node.start_agent();
        node.wait_ready(SOON);
        // Ready says that it serves; its part of a network that it forgot it has only once the store told it.
        wait_peers(node, "default", 1);
        ask();
    }
    // They have the same subnets, and what was attached is.
    let again = Container::on(a, "two", "default");
    let same_subnet = |x: IpAddr, y: IpAddr| {
        x.to_string().rsplit_once('.').unwrap().0 == y.to_string().rsplit_once('.').unwrap().0
    };
    assert!(same_subnet(again.v4(), here.v4()) && again.v4() != here.v4());
    assert!(a.plexus(["attachments"]).ok().contains(&here.v4().to_string()));
    cluster.cut_store();
    ask();
    // A new container of a known peer, while nobody can ask the store.
    let new = Container::on(b, "new", "default");
    assert!(here.reaches(new.v4()) && new.reaches(here.v4()));
    cluster.heal_store();
    ask();
    // An agent that starts while there is no store takes nothing away.
    cluster.cut_store();
    a.kill_agent();
    a.start_agent();
    for _ in 0..10 {
        assert!(here.reaches(there.v4()));
    }
    cluster.heal_store();
    a.wait_ready(SOON);
    ask();
}

#[test]
fn who_vanishes_gives_its_address_back_and_nobody_gets_it_at_once() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = cluster(1);
    let [a] = cluster.nodes();
    let (gone, detached) = (Container::on(a, "gone", "default"), Container::on(a, "detached", "default"));
    let _ = a.exec("ip", &["netns", "del", gone.namespace.name()]).ok();
    let listed = || a.plexus(["attachments"]).ok();
    let _ = eventually!(SOON, listed(), |listed| !listed.contains(gone.namespace.name()));
    let done = a.plexus(["detach", detached.namespace.name(), "--network", "default"]).ok();
    assert!(done.contains("is detached"), "{done}");
    assert!(!detached.namespace.exec("ip", &["link"]).ok().contains("eth0"));
    let links = a.exec("ip", &["link"]).ok();
    assert!(!links.contains("plxe"), "{links}");
    let next = Container::on(a, "next", "default");
    assert!(next.v4() != gone.v4() && next.v4() != detached.v4());
    let taken = a.plexus([
        "attach",
        detached.namespace.name(),
        "--network",
        "default",
        "--address",
        &next.v4().to_string(),
    ]);
    assert!(taken.stderr.contains(&format!("{} is", next.v4())), "{}", taken.stderr);
    let unknown = a.plexus(["attach", detached.namespace.name(), "--network", "nowhere"]);
    assert!(unknown.stderr.contains("there is no network nowhere"), "{}", unknown.stderr);
    let missing = a.plexus(["attach", "not-there", "--network", "default"]);
    assert!(missing.stderr.contains("cannot open the network namespace"), "{}", missing.stderr);
    // A link that was made when the agent was killed before it was written down, or after it was forgotten.
    a.kill_agent();
    let _ = a.exec("ip", &["link", "add", "plxe00000000001", "type", "veth"]).ok();
    a.start_agent();
    a.wait_ready(SOON);
    let links = || a.exec("ip", &["link"]).ok();
    let _ = eventually!(SOON, links(), |links| !links.contains("plxe00000000001"));
    assert!(next.reaches("10.42.255.255".parse().unwrap()) || listed().contains(&next.v4().to_string()));
}

#[test]
fn networks_reach_each_other_only_where_one_says_so() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let _ = a.plexus(["network", "create", "blue", "--cidr", "10.43.0.0/16"]).ok();
    let _ = a.plexus(["network", "create", "green", "--cidr", "10.44.0.0/16", "--reach", "blue"]).ok();
    for network in ["blue", "green"] {
        wait_peers(a, network, 1);
        wait_peers(b, network, 1);
    }
    let on = |node: &Node, network: &str| Container::on(node, network, network);
    let default = [on(a, "default"), on(b, "default")];
    let (blue, green) = ([on(a, "blue"), on(b, "blue")], [on(a, "green"), on(b, "green")]);
    for (one, other) in [(&blue, &green), (&green, &blue)] {
        for to in other {
            let _ = eventually!(SOON, one[0].reaches(to.v4()), |reaches| *reaches);
        }
    }
    for (one, other) in [(&default, &blue), (&blue, &default), (&default, &green), (&green, &default)] {
        for to in other {
            assert!(!one[0].reaches(to.v4()), "{} to {}", one[0].v4(), to.v4());
        }
    }
    // A container on two networks reaches both.
    let both = &default[0];
    let second = ["attach", both.namespace.name(), "--network", "blue", "--interface", "eth1"];
    let _ = a.plexus(second).ok();
    for to in [&default[1], &blue[0], &blue[1]] {
        let _ = eventually!(SOON, both.reaches(to.v4()), |reaches| *reaches);
    }
}
