//! Packets between containers of different nodes pass their hosts by the short way, where nobody needs to see them.

use std::net::{IpAddr, SocketAddr};

use plexus_tests::client::http::Held;
use plexus_tests::{Cluster, Node, ServiceFile, eventually, needs, run};

use crate::overlay::{CONFIGURATION, Container, SOON, cluster, wait_peers};
use crate::{INSTANCE, PUBLISHED};

/// Counts what the host forwards.
const COUNTER: &str = "table inet counted { chain forward { type filter hook forward priority 10; ip saddr 10.42.0.0/16 counter; \
                       ip6 saddr fd00:42::/48 counter; }; }";

#[track_caller]
pub(crate) fn wait_short(node: &Node, containers: u32) {
    let short = || node.metric("plexus_overlay_fast_path_containers", "");
    let _ = eventually!(SOON, short(), |short| *short == Some(f64::from(containers)));
}

/// The chains of the short way.
fn chains(node: &Node) -> String {
    node.exec("nft", &["list", "table", "netdev", "plexus-fast"]).stdout
}

/// The containers that programs in the kernel see the packets of.
#[track_caller]
fn wait_programs(node: &Node, containers: u32) {
    let of_programs = || node.metric("plexus_overlay_fast_path_program_containers", "");
    let _ = eventually!(SOON, of_programs(), |count| *count == Some(f64::from(containers)));
}

/// What is at the ingress of its links of that kind: `vxlan`, or `veth` for those of containers.
fn classifiers(node: &Node, kind: &str) -> String {
    let links = node.exec("ip", &["-o", "link", "show", "type", kind]).ok();
    names(&links).map(|name| node.exec("tc", &["filter", "show", "dev", name, "ingress"]).stdout).collect()
}

/// Those of ours.
fn names(links: &str) -> impl Iterator<Item = &str> {
    links.lines().filter_map(|line| line.split([' ', ':', '@']).find(|word| word.starts_with("plx")))
}

/// So many packets of containers the hosts of both have forwarded by the usual way since the last time.
fn forwarded(nodes: [&Node; 2]) -> u64 {
    let of = |node: &Node| {
        let listed = node.exec("nft", &["list", "table", "inet", "counted"]).ok();
        let _ = node.exec("nft", &["delete", "table", "inet", "counted"]).ok();
        let _ = node.exec("nft", &[COUNTER]).ok();
        let counts =
            listed.split("packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        counts.sum::<u64>()
    };
    nodes.map(of).into_iter().sum()
}

#[test]
fn packets_of_containers_take_the_short_way_and_beginnings_of_connections_the_usual_one() {
    needs!("etcd", "etcdctl", "nft", "ping", "tc");
    short_way(&cluster(2), 1);
}

#[test]
fn rules_send_on_the_same_packets_as_programs_do() {
    needs!("etcd", "etcdctl", "nft", "ping", "tc");
    let more = format!("{CONFIGURATION}fast_path = \"filter\"\n");
    let cluster = Cluster::of(2).settings(move |settings| settings.more = more.clone()).start();
    cluster.all().for_each(|node| wait_peers(node, "default", 1));
    short_way(&cluster, 0);
}

#[test]
fn no_packet_is_lost_when_programs_come() {
    needs!("etcd", "etcdctl", "nft", "ping", "tc");
    let cluster = cluster(2);
    let nodes: [&Node; 2] = cluster.nodes();
    let [here, there] = nodes.map(|node| Container::on(node, "one", "default"));
    let _ = eventually!(SOON, here.reaches(there.v4()), |reaches| *reaches);
    // From before they come until after they have.
    let mut ping = here.namespace.command("ping");
    ping.args(["-n", "-q", "-i", "0.002", &there.v4().to_string()]);
    let ping = ping.stdout(std::process::Stdio::piped()).spawn().expect("ping");
    nodes.iter().for_each(|node| wait_programs(node, 1));
    let _second = nodes.map(|node| Container::on(node, "two", "default"));
    nodes.iter().for_each(|node| wait_programs(node, 2));
    let _ = run(&["kill", "-INT", &ping.id().to_string()]).expect("kill").ok();
    let said = ping.wait_with_output().expect("it ends").stdout;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains(" 0% packet loss"), "{said}");
}

/// `programs`: how many containers of a node they see the packets of.
fn short_way(cluster: &Cluster, programs: u32) {
    let nodes: [&Node; 2] = cluster.nodes();
    let [here, there] = nodes.map(|node| Container::on(node, "one", "default"));
    nodes.iter().for_each(|node| wait_short(node, 1));
    nodes.iter().for_each(|node| wait_programs(node, programs));
    let are_there = |node: &Node| ["vxlan", "veth"].map(|kind| classifiers(node, kind).contains("plexus"));
    assert_eq!(nodes.map(are_there), [[programs > 0; 2]; 2]);
    nodes.iter().for_each(|node| drop(node.exec("nft", &[COUNTER]).ok()));
    for address in &there.addresses {
        assert!(here.reaches(*address) && here.sends(*address, "8000"));
    }
    assert_eq!(forwarded(nodes), 0, "pings, and fragments, of both families");
    // A connection: SYN and its answer on each of the two hosts, and nothing else however much it carries.
    let _server = there.serve(cluster, "b");
    for server in there.addresses.clone() {
        let open = || here.namespace.enter(move || Held::open(SocketAddr::new(server, INSTANCE)));
        drop(eventually!(SOON, open(), Result::is_ok));
        let _ = forwarded(nodes);
        open().expect("it listens").download(64).expect("the content");
        assert_eq!(forwarded(nodes), 4, "{server}");
    }
    // Who traces the way sees both hosts.
    let [first, second] = [(&here, 1), (&there, 2)].map(|(of, hops)| {
        let (to, hops) = (there.v4().to_string(), hops.to_string());
        let traced = here.namespace.exec("ping", &["-n", "-c", "1", "-W", "1", "-t", &hops, &to]).stdout;
        (traced.contains("Time to live exceeded"), traced, of.v4())
    });
    assert!(first.0 && second.0, "{first:?} {second:?}");
    // What somebody takes away is back, and what an agent before has left is taken over.
    let _ = nodes[0].exec("nft", &["delete", "table", "netdev", "plexus-fast"]).ok();
    let _ = eventually!(SOON, chains(nodes[0]), |chains| chains.contains("outward"));
    nodes[0].kill_agent();
    assert!(here.reaches(there.v4()));
    nodes[0].start_agent();
    nodes[0].wait_ready(SOON);
    wait_short(nodes[0], 1);
    wait_programs(nodes[0], programs);
    let _ = forwarded(nodes);
    assert!(here.reaches(there.v4()));
    assert_eq!(forwarded(nodes), 0);
    // With the last container it goes.
    let _ = nodes[0].plexus(["detach", here.namespace.name(), "--network", "default"]).ok();
    let _ = eventually!(SOON, chains(nodes[0]), String::is_empty);
}

#[test]
fn what_others_shape_or_look_at_is_no_programs() {
    needs!("etcd", "etcdctl", "nft", "ping", "tc");
    let cluster = cluster(2);
    let nodes: [&Node; 2] = cluster.nodes();
    let [here, there] = nodes.map(|node| Container::on(node, "one", "default"));
    nodes.iter().for_each(|node| wait_programs(node, 1));
    let links = nodes[1].exec("ip", &["-o", "link", "show", "type", "veth"]).ok();
    let link = names(&links).next().expect("its end of the container's link");
    let tc = |arguments: &str| drop(nodes[1].exec("tc", &arguments.split(' ').collect::<Vec<_>>()).ok());
    let at_link = || classifiers(nodes[1], "veth").contains("plexus");
    // A limit for what goes to the container, which no program may pass by; somebody's classifier for what comes from it.
    for (done, undone, programs) in [
        (
            format!("qdisc add dev {link} root tbf rate 1gbit burst 64kb latency 50ms"),
            format!("qdisc del dev {link} root"),
            0,
        ),
        (
            format!("filter add dev {link} ingress pref 7 u32 match u32 0 0 flowid 1:1"),
            format!("filter del dev {link} ingress pref 7"),
            1,
        ),
    ] {
        tc(&done);
        let _ = eventually!(SOON, at_link(), |is_there| !is_there);
        wait_programs(nodes[1], programs);
        wait_short(nodes[1], 1);
        assert!(here.reaches(there.v4()) && here.sends(there.v4(), "8000"));
        tc(&undone);
        let _ = eventually!(SOON, at_link(), |is_there| *is_there);
        wait_programs(nodes[1], 1);
        assert!(here.reaches(there.v4()));
    }
}

#[test]
fn what_may_be_an_answer_to_the_balancer_takes_the_usual_way_in() {
    needs!("etcd", "etcdctl", "nft", "ping", "tc");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let (client, endpoint) = (Container::on(a, "client", "default"), Container::on(b, "endpoint", "default"));
    wait_short(a, 1);
    let _ = eventually!(SOON, chains(a), |chains| chains.contains("inward"));
    let _server = endpoint.serve(&cluster, "b");
    b.define(&ServiceFile::new("web", INSTANCE).key("address", &format!("\"{}\"", endpoint.v4())));
    let _ = a.plexus(["set", "web", "client_address=transparent"]).ok();
    cluster.publish("web", PUBLISHED);
    let at = a.at(PUBLISHED);
    let seen = || {
        client.namespace.enter(move || {
            let answer = Held::open(at)?.get("/client")?;
            Ok::<_, plexus_tests::client::http::Failure>(
                answer.body.parse::<SocketAddr>().expect("an address").ip().to_canonical(),
            )
        })
    };
    let _ = eventually!(SOON, seen(), |seen| matches!(seen, Ok(seen) if *seen == client.v4()));
    let chains_now = chains(a);
    assert!(!chains_now.contains("inward") && chains_now.contains("outward"), "{chains_now}");
    assert_eq!(["vxlan", "veth"].map(|kind| classifiers(a, kind).contains("plexus")), [false, true]);
    let _ = a.plexus(["set", "web", "client_address=plain"]).ok();
    let _ = eventually!(SOON, chains(a), |chains| chains.contains("inward"));
    let gateway = |seen: &IpAddr| *seen != client.v4();
    let _ = eventually!(SOON, seen(), |seen| seen.as_ref().is_ok_and(gateway));
}

#[test]
fn without_the_short_way_all_of_it_passes_the_hosts_packet_filter() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let more = format!("{CONFIGURATION}fast_path = \"off\"\n");
    let cluster = Cluster::of(2).settings(move |settings| settings.more = more.clone()).start();
    let nodes: [&Node; 2] = cluster.nodes();
    nodes.iter().for_each(|node| wait_peers(node, "default", 1));
    let [here, there] = nodes.map(|node| Container::on(node, "one", "default"));
    let _ = eventually!(SOON, here.reaches(there.v4()), |reaches| *reaches);
    nodes.iter().for_each(|node| drop(node.exec("nft", &[COUNTER]).ok()));
    assert!(here.reaches(there.v4()));
    assert_eq!(forwarded(nodes), 4);
    assert!(nodes.iter().all(|node| chains(node).is_empty()));
}
