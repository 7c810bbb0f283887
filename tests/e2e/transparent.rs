//! With `client_address=transparent` an endpoint sees its client's own address, and what steers its answers comes and goes with
//! the need.

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use plexus_tests::client::http::{Failure, Held};
use plexus_tests::client::udp::Talk;
use plexus_tests::{
    Cluster, Namespace, Node, Process, ServiceFile, backend_program, eventually, needs, plexus_program,
    throughout,
};

use crate::{INSTANCE, PUBLISHED};

const SOON: Duration = Duration::from_secs(10);
/// Longer than an answer takes.
const ANSWER: Duration = Duration::from_millis(500);
/// The address of a container, as the harness gives it.
const BOX: &str = "172.30.0.2";
/// Where `boxed` is published, an instance of which is in a container of node a, and `web`, of which one is a process of node a.
const BOXED: u16 = 8081;

/// Nodes with a service in a container of the first and one of its processes, both published, both transparent.
fn cluster(nodes: usize) -> (Cluster, Namespace, Vec<Process>) {
    let cluster = Cluster::of(nodes).start();
    let a = cluster.all().next().expect("a node");
    let container = a.namespace().container("box");
    let servers = vec![
        server(&cluster, &container, "boxed", &format!("{BOX}:{INSTANCE}")),
        server(&cluster, a.namespace(), "web", &a.at(INSTANCE).to_string()),
    ];
    a.define(&ServiceFile::new("boxed", INSTANCE).id("boxed").key("address", &format!("\"{BOX}\"")));
    a.define(&ServiceFile::new("web", INSTANCE).id("web"));
    for (service, port) in [("boxed", BOXED), ("web", PUBLISHED)] {
        cluster.wait_serving(service, &[service]);
        cluster.publish(service, port);
        let _ = a.plexus(["set", service, "client_address=transparent"]).ok();
    }
    (cluster, container, servers)
}

fn server(cluster: &Cluster, namespace: &Namespace, service: &str, address: &str) -> Process {
    let mut command = namespace.command(backend_program());
    command.args([address, service, service, "a"]);
    Process::start(service, &mut command, &cluster.world().log(&format!("{service}-{address}")))
}

/// The client's address and what the endpoint sees of it, on a new connection.
fn seen_from(machine: &Namespace, address: SocketAddr) -> Result<(SocketAddr, SocketAddr), Failure> {
    machine.enter(move || {
        let mut held = Held::open(address)?;
        let answer = held.get("/client")?;
        Ok((held.own_address(), answer.body.parse().expect("an address")))
    })
}

/// Waits until an endpoint sees a client's address and port.
#[track_caller]
fn wait_seen(machine: &Namespace, address: SocketAddr) {
    let _ =
        eventually!(SOON, seen_from(machine, address), |seen| matches!(seen, Ok((own, seen)) if own == seen));
}

/// Everything of ours that the kernel of a node has.
fn left(node: &Node) -> String {
    let mut left = node.exec("nft", &["list", "tables"]).ok();
    for family in ["-4", "-6"] {
        left += &node.exec("ip", &[family, "rule"]).ok();
        left += &node.exec("ip", &[family, "route", "show", "table", "all"]).ok();
    }
    let is_ours = |line: &&str| line.contains("plexus") || line.contains("proto 81");
    left.lines().filter(is_ours).collect::<Vec<_>>().join("\n")
}

fn plain_of(node: &Node, service: &str, reason: &str) -> f64 {
    let labels = format!("reason=\"{reason}\",service=\"{service}\"");
    node.metric("plexus_connections_plain_total", &labels).unwrap_or_default()
}

#[test]
fn containers_and_processes_of_a_node_see_who_their_clients_are() {
    needs!("etcd", "etcdctl", "nft", "sysctl");
    let (cluster, container, _servers) = cluster(2);
    let [a, client] = cluster.nodes();
    let _plain = a.serve("plain", 9200);
    cluster.wait_serving("plain", &["plain-a-9200"]);
    cluster.publish("plain", 8082);
    for port in [BOXED, PUBLISHED] {
        wait_seen(client.namespace(), a.at(port));
        // Strictly checked sources change nothing.
        for interface in ["all", "default", "eth0", "lo", "to-box"] {
            let _ = a.exec("sysctl", &["-w", &format!("net.ipv4.conf.{interface}.rp_filter=1")]).ok();
        }
        for _ in 0..100 {
            let (own, seen) = seen_from(client.namespace(), a.at(port)).expect("an answer");
            assert_eq!(own, seen);
        }
        let load = client.load(a.at(port));
        load.wait_for(400);
        load.stop().assert_unharmed();
        // A client of this very node has its port itself.
        let (own, seen) = seen_from(a.namespace(), a.at(port)).expect("an answer");
        assert_eq!(own.ip(), seen.ip());
    }
    let (own, seen) = seen_from(client.namespace(), a.at(8082)).expect("an answer");
    assert_ne!(own.ip(), seen.ip(), "nobody asked for it");

    // A container that comes to itself cannot be shown its own address: it would answer itself. It is served all the same.
    let (own, seen) = seen_from(&container, SocketAddr::new("172.30.0.1".parse().unwrap(), BOXED)).unwrap();
    assert_ne!(own.ip(), seen.ip());
    assert!(plain_of(a, "boxed", "neighbour") > 0.0);
    // Nor a client by loopback.
    let _ =
        seen_from(a.namespace(), SocketAddr::new(IpAddr::from([127, 0, 0, 1]), BOXED)).expect("an answer");
    assert!(plain_of(a, "boxed", "scope") > 0.0);
    // A host whose way back depends on the mark takes the answers of containers for inventions.
    let _ = a.exec("sysctl", &["-w", "net.ipv4.conf.all.src_valid_mark=1"]).ok();
    let asked = || (seen_from(client.namespace(), a.at(BOXED)), plain_of(a, "boxed", "source_check"));
    let _ = eventually!(SOON, asked(), |(seen, count)| *count > 0.0
        && matches!(seen, Ok((own, seen)) if own.ip() != seen.ip()));
    let why = a.plexus(["why", "boxed"]).ok();
    assert!(why.contains("src_valid_mark = 1 on its interface would drop its answers"), "{why}");
    wait_seen(client.namespace(), a.at(PUBLISHED));
    // From one container to a process of the host it is as from anywhere else.
    let (own, seen) =
        seen_from(&container, SocketAddr::new("172.30.0.1".parse().unwrap(), PUBLISHED)).unwrap();
    assert_eq!(own, seen);
}

#[test]
fn a_port_that_a_client_has_towards_the_endpoint_already_is_another_one_there() {
    needs!("etcd", "etcdctl", "nft");
    let (cluster, _container, _servers) = cluster(2);
    let [a, client] = cluster.nodes();
    for (service, port, second) in [("boxed", BOXED, 8091), ("web", PUBLISHED, 8090)] {
        wait_seen(client.namespace(), a.at(port));
        cluster.publish(service, second);
        let own = SocketAddr::new(client.address(), 45_000);
        let open = |to| client.namespace().enter(move || Held::open_from(own, to)).expect("a connection");
        // One after the other: two threads of the balancer may have them.
        let (mut both, mut seen) = [port, second]
            .map(|port| {
                let mut held = open(a.at(port));
                let seen = held.get("/client").expect("an answer").body;
                (held, seen.parse::<SocketAddr>().expect("an address"))
            })
            .into_iter()
            .unzip::<_, _, Vec<_>, Vec<_>>();
        assert_eq!((seen[0], seen[1].ip()), (own, own.ip()));
        assert_ne!(seen[1].port(), own.port());
        // Both go on, and neither hears what is for the other.
        seen.swap(0, 1);
        both.swap(0, 1);
        for (held, seen) in both.iter_mut().zip(seen) {
            assert_eq!(held.get("/client").expect("an answer").body, seen.to_string());
        }
    }
}

#[test]
fn datagrams_show_their_clients_too() {
    needs!("etcd", "etcdctl", "nft");
    let (cluster, _container, servers) = cluster(2);
    let [a, client] = cluster.nodes();
    // Open to the end: one port for both services would be two ports to see.
    let mut talks = Vec::new();
    for (service, port) in [("boxed", BOXED), ("web", PUBLISHED)] {
        wait_seen(client.namespace(), a.at(port));
        let _ = a.plexus(["publish", service, &format!("{port}/udp")]).ok();
        let talk = || Talk::open(client.namespace(), a.at(port)).expect("a socket");
        eventually!(SOON, talk().ask(b"?", ANSWER).is_some(), |answered| *answered);
        for _ in 0..20 {
            let talk = talk();
            let own = talk.own_address().to_string();
            assert_eq!(talk.ask(b"/client", ANSWER), Some(own.clone()));
            assert_eq!(talk.ask(b"/client", ANSWER), Some(own));
            talks.push(talk);
        }
    }
    // One socket that talks to both: the second session has another port, and hears what is its own.
    let talk = Talk::open(client.namespace(), a.at(BOXED)).expect("a socket");
    let own = talk.own_address();
    assert_eq!(talk.ask(b"/client", ANSWER), Some(own.to_string()));
    talk.turn_to(a.at(PUBLISHED)).expect("a socket");
    let seen: SocketAddr = talk.ask(b"/client", ANSWER).expect("an answer").parse().expect("an address");
    assert!(seen.ip() == own.ip() && seen.port() != own.port(), "{seen} {own}");
    // An endpoint that is gone is told by ICMP, which comes back like an answer.
    drop(servers);
    for port in [BOXED, PUBLISHED] {
        let talk = Talk::open(client.namespace(), a.at(port)).expect("a socket");
        let unreachable = || {
            let _ = talk.ask(b"?", Duration::from_millis(20));
            a.metric("plexus_udp_dropped_total", "reason=\"endpoint_unreachable\"").unwrap_or_default()
        };
        let before = unreachable();
        eventually!(SOON, unreachable(), |count| *count > before);
    }
}

#[test]
fn addresses_of_ipv6_are_shown_to_endpoints_of_ipv6() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = Cluster::new(2);
    let [a, client] = cluster.nodes();
    for (node, address) in [(a, "fd77::1/64"), (client, "fd77::2/64")] {
        let _ = node.exec("ip", &["address", "add", address, "dev", "eth0", "nodad"]).ok();
    }
    let container = a.namespace().container("box");
    let _servers = [
        server(&cluster, &container, "boxed", "[fd77:30::2]:9000"),
        server(&cluster, a.namespace(), "web", "[fd77::1]:9000"),
    ];
    for (service, address, port) in [("boxed", "fd77:30::2", BOXED), ("web", "fd77::1", PUBLISHED)] {
        let address = format!("\"{address}\"");
        a.define(&ServiceFile::new(service, INSTANCE).id(service).key("address", &address));
        cluster.wait_serving(service, &[service]);
        cluster.publish(service, port);
        let _ = a.plexus(["set", service, "client_address=transparent"]).ok();
        wait_seen(client.namespace(), SocketAddr::new("fd77::1".parse().unwrap(), port));
        // Between the families there is nothing to be shown.
        let (own, seen) = seen_from(client.namespace(), a.at(port)).expect("an answer");
        assert!(own.is_ipv4() && seen.is_ipv6());
        assert!(plain_of(a, service, "family") > 0.0);
    }
}

#[test]
fn what_somebody_flushes_is_put_back_and_what_is_somebody_elses_stays() {
    needs!("etcd", "etcdctl", "nft");
    let (cluster, _container, _servers) = cluster(2);
    let [a, client] = cluster.nodes();
    let foreign = ["add", "table", "inet", "foreign"];
    let _ = a.exec("ip", &["rule", "add", "fwmark", "0x7", "lookup", "77", "pref", "82"]).ok();
    [BOXED, PUBLISHED].iter().for_each(|port| wait_seen(client.namespace(), a.at(*port)));
    let mut held = [BOXED, PUBLISHED].map(|port| client.hold(a.at(port)).expect("a connection"));
    held.iter_mut().for_each(|held| assert!(held.get("/client").is_ok()));
    let complete = left(a);
    for command in [
        &["nft", "flush", "ruleset"][..],
        &["nft", "flush", "chain", "inet", "plexus-steer", "arriving"],
        &["ip", "rule", "del", "pref", "81"],
        &["ip", "-6", "rule", "add", "fwmark", "1", "lookup", "9", "pref", "81", "protocol", "81"],
        &["ip", "route", "flush", "table", "8180"],
    ] {
        let repairs = || a.metric("plexus_steer_repairs_total", "").unwrap_or_default();
        let before = repairs();
        let _ = a.exec(command[0], &command[1..]).ok();
        eventually!(Duration::from_secs(3), (left(a), repairs()), |(now, count)| *now == complete
            && (*count > before || command[1] == "-6"));
        held.iter_mut().for_each(|held| assert!(held.get("/client").is_ok(), "{command:?}"));
        for port in [BOXED, PUBLISHED] {
            let (own, seen) = seen_from(client.namespace(), a.at(port)).expect("an answer");
            assert_eq!(own, seen, "{command:?}");
        }
    }
    let _ = a.exec("nft", &foreign).ok();
    drop(held);
    a.terminate_agent();
    a.wait_agent_end(SOON);
    assert_eq!(left(a), "");
    assert!(a.exec("nft", &["list", "tables"]).ok().contains("foreign"));
    assert!(a.exec("ip", &["rule"]).ok().contains("lookup 77"));
}

#[test]
fn it_goes_when_nobody_wants_it_and_no_open_connection_needs_it() {
    needs!("etcd", "etcdctl", "nft");
    let (cluster, _container, _servers) = cluster(2);
    let [a, client] = cluster.nodes();
    [BOXED, PUBLISHED].iter().for_each(|port| wait_seen(client.namespace(), a.at(*port)));
    let mut held = [BOXED, PUBLISHED].map(|port| client.hold(a.at(port)).expect("a connection"));
    held.iter_mut().for_each(|held| assert!(held.get("/client").is_ok()));
    for (service, port) in [("boxed", BOXED), ("web", PUBLISHED)] {
        let _ = client.plexus(["unset", service, "client_address"]).ok();
        let _ = eventually!(SOON, seen_from(client.namespace(), a.at(port)), |seen| matches!(
            seen, Ok((own, seen)) if own.ip() != seen.ip()
        ));
    }
    // Longer than the agent waits between two looks.
    throughout!(
        Duration::from_secs(6),
        held.iter_mut().all(|held| held
            .get("/client")
            .is_ok_and(|answer| answer.body == held.own_address().to_string())),
        |served| *served
    );
    assert_ne!(left(a), "");
    drop(held);
    eventually!(SOON, left(a), |left| left.is_empty());
    assert_eq!(a.metric("plexus_steer_on", ""), Some(0.0));
}

#[test]
fn what_a_killed_agent_leaves_is_taken_over_or_removed_by_the_next() {
    needs!("etcd", "etcdctl", "nft");
    let (cluster, _container, _servers) = cluster(2);
    let [a, client] = cluster.nodes();
    [BOXED, PUBLISHED].iter().for_each(|port| wait_seen(client.namespace(), a.at(*port)));
    let complete = left(a);
    a.kill_agent();
    assert_eq!(left(a), complete, "the next one finds it");
    a.restart_agent();
    [BOXED, PUBLISHED].iter().for_each(|port| wait_seen(client.namespace(), a.at(*port)));
    assert_eq!(left(a), complete);
    // Another process takes over: what is open goes on in the old one.
    let mut held = [BOXED, PUBLISHED].map(|port| client.hold(a.at(port)).expect("a connection"));
    held.iter_mut().for_each(|held| assert!(held.get("/client").is_ok()));
    let mut before = a.take_over();
    throughout!(
        Duration::from_secs(2),
        held.iter_mut().all(|held| held.get("/client").is_ok()) && left(a) == complete,
        |served| *served
    );
    [BOXED, PUBLISHED].iter().for_each(|port| wait_seen(client.namespace(), a.at(*port)));
    drop(held);
    before.wait(SOON);
    assert_eq!(left(a), complete, "it is the next one's");
    // Killed again; nobody wants it any more.
    a.kill_agent();
    for service in ["boxed", "web"] {
        let _ = client.plexus(["unset", service, "client_address"]).ok();
    }
    a.restart_agent();
    eventually!(SOON, left(a), |left| left.is_empty());
}

#[test]
fn what_an_agent_before_has_open_goes_on_when_nobody_wants_it_any_more() {
    needs!("etcd", "etcdctl", "nft");
    let (cluster, _container, _servers) = cluster(2);
    let [a, client] = cluster.nodes();
    let ports = [BOXED, PUBLISHED];
    ports.iter().for_each(|port| wait_seen(client.namespace(), a.at(*port)));
    let complete = left(a);
    let mut held = ports.map(|port| client.hold(a.at(port)).expect("a connection"));
    let mut are_served = || {
        held.iter_mut()
            .all(|held| held.get("/client").is_ok_and(|answer| answer.body == held.own_address().to_string()))
    };
    assert!(are_served());
    let mut first = a.take_over();
    for service in ["boxed", "web"] {
        let _ = client.plexus(["unset", service, "client_address"]).ok();
    }
    for port in ports {
        let _ = eventually!(SOON, seen_from(client.namespace(), a.at(port)), |seen| matches!(
            seen, Ok((own, seen)) if own.ip() != seen.ip()
        ));
    }
    // Longer than the agent waits between two looks; so below.
    throughout!(Duration::from_secs(6), are_served(), |served| *served);
    assert_eq!(left(a), complete);
    // The next one finds that nobody wants it, and was never told who has something open.
    let _second = a.take_over();
    throughout!(Duration::from_secs(6), are_served(), |served| *served);
    assert_eq!(left(a), complete);
    assert!(first.status().is_none(), "it has connections");
    drop(held);
    first.wait(SOON);
    eventually!(SOON, left(a), |left| left.is_empty());
}

#[test]
fn what_an_agent_before_has_open_keeps_what_the_next_one_wants_less_of() {
    needs!("etcd", "etcdctl", "nft");
    let (cluster, _container, _servers) = cluster(2);
    let [a, client] = cluster.nodes();
    [BOXED, PUBLISHED].iter().for_each(|port| wait_seen(client.namespace(), a.at(*port)));
    let mut held = client.hold(a.at(PUBLISHED)).expect("a connection");
    let mut is_served =
        || held.get("/client").is_ok_and(|answer| answer.body == held.own_address().to_string());
    assert!(is_served());
    let tracks = || a.exec("nft", &["list", "table", "inet", "plexus-steer"]).ok().contains("ct mark");
    let mut first = a.take_over();
    // What containers need stays, what processes of the host need has lost its last service.
    let _ = client.plexus(["unset", "web", "client_address"]).ok();
    throughout!(Duration::from_secs(6), is_served(), |served| *served);
    let _second = a.take_over();
    throughout!(Duration::from_secs(6), is_served(), |served| *served);
    assert!(tracks());
    wait_seen(client.namespace(), a.at(BOXED));
    drop(held);
    first.wait(SOON);
    eventually!(SOON, tracks(), |tracks| !*tracks);
    wait_seen(client.namespace(), a.at(BOXED));
}

#[test]
fn an_endpoint_elsewhere_sees_the_node_and_that_is_said() {
    needs!("etcd", "etcdctl", "nft");
    let (cluster, _container, _servers) = cluster(3);
    let [a, b, client] = cluster.nodes();
    wait_seen(client.namespace(), a.at(PUBLISHED));
    let (_, seen) = seen_from(client.namespace(), b.at(PUBLISHED)).expect("an answer");
    assert_eq!(seen.ip(), b.address());
    assert!(plain_of(b, "web", "elsewhere") > 0.0);
    let said = "sees this node's address: its answers do not pass through this node";
    assert!(b.plexus(["why", "web"]).ok().contains(said));
    assert_eq!(b.plexus_json(["why", "web"])["endpoints"][0]["plain_reason"], "elsewhere");
    // Where it sees addresses, there are clients that it does not see: whom, that depends on where it is.
    let said_of = |service| a.plexus(["why", service]).ok();
    let both = "sees this node's address for clients with IPv6, by loopback or link-local addresses, by unix sockets";
    for (service, of_neighbours) in [("web", ""), ("boxed", ", in 172.30.0.0/24")] {
        let why = said_of(service);
        assert!(why.contains(&format!("{both}{of_neighbours}\n")), "{why}");
    }
    let told = a.plexus_json(["why", "boxed"])["endpoints"][0].clone();
    let reasons: Vec<_> =
        told["plain_for"].as_array().expect("a list").iter().map(|one| one["reason"].clone()).collect();
    assert_eq!(reasons, ["family", "scope", "unix_socket", "neighbour"]);
    assert!(told["plain"].is_null(), "{told}");
    assert_eq!(left(b), "", "nothing to be steered there");
    // One that this node has registered, and that is another machine.
    let other = client.backend("other", 9300);
    a.define(&ServiceFile::new("other", 9300).key("address", &format!("\"{}\"", client.address())));
    cluster.wait_serving("other", &["other-a-9300"]);
    cluster.publish("other", 8083);
    let _ = a.plexus(["set", "other", "client_address=transparent"]).ok();
    eventually!(SOON, a.plexus(["why", "other"]).ok(), |why| why.contains(said));
    let (_, seen) = seen_from(b.namespace(), a.at(8083)).expect("an answer");
    assert_eq!(seen.ip(), a.address());
    assert!(a.agent_log().contains("endpoints see this node's address"));
    drop(other);
}

/// Starts the agent of a node where nft is not installed, but for what is put into the directory that this returns.
fn start_without_nft(node: &Node) -> PathBuf {
    let [installed, nothing] = ["installed", "nothing"].map(|name| node.directory().join(name));
    for directory in [&installed, &nothing] {
        std::fs::create_dir(directory).expect("a new directory");
    }
    // A view of the file system of its own, in which the place that is looked at beside the path is empty.
    let script = "mount --bind \"$1\" /usr/sbin && PATH=\"$2\" && export PATH && shift 2 && exec \"$@\"";
    let program = ["unshare", "--mount", "sh", "-c", script, "sh"].map(OsStr::new);
    let own = [nothing.as_os_str(), installed.as_os_str(), plexus_program().as_os_str()];
    node.start_agent_by(&program.into_iter().chain(own).collect::<Vec<_>>());
    node.wait_ready(2 * SOON);
    installed
}

/// Installs a program of this machine, as package managers do: whole from the moment it has its name.
fn install(program: &str, directory: &Path) {
    let path = std::env::var_os("PATH").expect("a path");
    let file = std::env::split_paths(&path).map(|place| place.join(program)).find(|file| file.is_file());
    let new = directory.join("new");
    std::fs::copy(file.expect("it is installed"), &new).expect("copied");
    std::fs::rename(new, directory.join(program)).expect("named");
}

#[test]
fn a_host_without_nft_says_what_to_install_and_steers_once_it_is() {
    needs!("etcd", "etcdctl", "nft", "unshare", "mount");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, client] = cluster.nodes();
    client.restart_agent();
    let installed = start_without_nft(a);
    let _web = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    let _ = client.plexus(["set", "web", "client_address=transparent"]).ok();
    let lacks = "the program nft is not installed; install nftables";
    let status = eventually!(SOON, a.plexus(["status"]).ok(), |status| status.contains(lacks));
    assert!(status.contains("endpoints on this node see its address instead of their clients'"), "{status}");
    let why = a.plexus(["why", "web"]).ok();
    assert!(why.contains(&format!("answers to clients' addresses are not steered here: {lacks}")), "{why}");
    assert_eq!(a.plexus_json(["why", "web"])["endpoints"][0]["plain_reason"], "off");
    // Longer than the agent waits between two looks.
    throughout!(
        Duration::from_secs(6),
        seen_from(client.namespace(), a.at(PUBLISHED)),
        |seen| matches!(seen, Ok((_, seen)) if seen.ip() == a.address())
    );
    let plain = plain_of(a, "web", "off");
    assert!(plain > 0.0 && a.metric("plexus_connections_plain_total", "") == Some(plain), "{plain}");
    assert_eq!(a.agent_log().matches(lacks).count(), 1, "said once");
    assert_eq!(a.metric("plexus_steer_on", ""), Some(0.0));
    // Nobody tells the agent that it is there now.
    install("nft", &installed);
    wait_seen(client.namespace(), a.at(PUBLISHED));
    let status = a.plexus(["status"]).ok();
    assert!(!status.contains("nftables"), "{status}");
    assert_eq!(a.metric("plexus_steer_on", ""), Some(1.0));
    a.terminate_agent();
    a.wait_agent_end(SOON);
    assert_eq!(left(a), "");
}

#[test]
fn an_agent_that_may_not_steer_says_so_and_serves() {
    needs!("etcd", "etcdctl", "nft", "setpriv");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, client] = cluster.nodes();
    client.restart_agent();
    let mut command = a.namespace().command("setpriv");
    command.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"]);
    command.arg(plexus_program()).arg("agent").arg("--config").arg(a.config_file());
    command.current_dir(a.directory());
    let agent = Process::start("the agent of a", &mut command, &cluster.world().log("agent-a"));
    let _web = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    let _ = client.plexus(["set", "web", "client_address=transparent"]).ok();
    eventually!(SOON, a.plexus(["status"]).ok(), |status| status.contains("CAP_NET_ADMIN"));
    let (_, seen) = seen_from(client.namespace(), a.at(PUBLISHED)).expect("an answer");
    assert_eq!(seen.ip(), a.address());
    assert!(plain_of(a, "web", "off") > 0.0);
    let why = a.plexus(["why", "web"]).ok();
    assert!(why.contains("are not steered here: ") && why.contains("CAP_NET_ADMIN"), "{why}");
    assert_eq!(agent.output().matches("CAP_NET_ADMIN").count(), 1, "said once");
    let _ = client.plexus(["unset", "web", "client_address"]).ok();
    eventually!(SOON, a.plexus(["status"]).ok(), |status| !status.contains("CAP_NET_ADMIN"));
}
