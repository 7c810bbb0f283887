//! `plexus doctor`: whoever asks why it does not work is told the culprit and what to do, and that is what helps.

use std::time::Duration;

use plexus_tests::{Cluster, Node, Ran, eventually, needs};

use crate::overlay::{CONFIGURATION, Container, cluster, wait_peers};

/// Probes of a peer that is hard to reach take some seconds.
const SOON: Duration = Duration::from_secs(30);
/// Longer than the tick with which everything is compared.
const TICK: Duration = Duration::from_secs(60);

/// Something is wrong, and this is said of it.
#[track_caller]
fn assert_told(ran: &Ran, said: &[&str]) {
    assert_eq!(ran.code, Some(1), "{ran}");
    let culprits: Vec<&str> = ran.stdout.lines().filter(|line| line.starts_with('✗')).collect();
    assert!(said.iter().all(|said| culprits.iter().any(|line| line.contains(said))), "{said:?} in {ran}");
}

fn assert_well(node: &Node) {
    let ran = node.plexus(["doctor"]);
    assert!(ran.success() && !ran.stdout.contains('✗'), "{ran}");
}

/// Rules on the way between nodes, for frames that the switch passes on.
#[track_caller]
fn on_the_way(cluster: &Cluster, rules: &[&str]) {
    let switch = cluster.switch();
    let chain = "{ type filter hook forward priority filter; policy accept; }";
    let _ = switch.exec("nft", &["add", "table", "bridge", "way"]).ok();
    let _ = switch.exec("nft", &["add", "chain", "bridge", "way", "forward", chain]).ok();
    for rule in rules {
        let _ = switch.exec("nft", &["add", "rule", "bridge", "way", "forward", rule]).ok();
    }
}

fn clear_the_way(cluster: &Cluster) {
    let _ = cluster.switch().exec("nft", &["delete", "table", "bridge", "way"]).ok();
}

#[test]
fn where_all_is_well_every_line_says_so() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = cluster(3);
    let [a, b, c] = cluster.nodes();
    for node in [a, b, c] {
        assert_well(node);
    }
    let told = a.plexus_json(["doctor"]);
    let findings = told["findings"].as_array().expect("findings");
    assert!(findings.iter().all(|finding| finding["state"] == "good"), "{told}");
    for subject in [
        "agent",
        "store",
        "capabilities",
        "nft",
        "forwarding",
        "ranges",
        "filters",
        "b on default",
        "c on default",
    ] {
        assert!(findings.iter().any(|finding| finding["subject"] == subject), "{subject} in {told}");
    }
    assert!(b.metric("plexus_overlay_probes_total", "answered").is_some_and(|answered| answered >= 4.0));
}

#[test]
fn a_port_that_is_blocked_on_the_way_is_named() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let (this, other) = ("this node".to_owned(), b.address().to_string());
    // Both ways, and one way alone.
    for (rule, from, to) in [
        ("udp dport 4789 drop".to_owned(), &this, &other),
        (format!("udp dport 4789 ip daddr {} drop", b.address()), &this, &other),
        (format!("udp dport 4789 ip saddr {} drop", b.address()), &other, &this),
    ] {
        on_the_way(&cluster, &[&rule]);
        assert_told(
            &a.plexus(["doctor"]),
            &[&format!("b on default  UDP 4789 is blocked from {from} to {to}")],
        );
        clear_the_way(&cluster);
        assert_well(a);
    }
    // The port of the probes is not open: there is less to tell.
    on_the_way(&cluster, &["udp dport 4790 drop", "udp sport 4790 drop"]);
    assert_well(a);
    clear_the_way(&cluster);
    on_the_way(&cluster, &["udp dport 4789 drop", "udp dport 4790 drop"]);
    assert_told(
        &a.plexus(["doctor"]),
        &[&format!("{other} answers, but neither what comes by the tunnel (UDP 4789)")],
    );
    clear_the_way(&cluster);
    // Nothing at all passes.
    cluster.cut(b);
    assert_told(&a.plexus(["doctor"]), &[&format!("nothing comes back from {}", b.address())]);
}

#[test]
fn a_link_that_carries_less_is_told_from_the_rest_and_what_helps_is_said() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let (here, there) = (Container::on(a, "one", "default"), Container::on(b, "one", "default"));
    // A switch passes what is too large to nobody and tells nobody. A little more than it says (a VLAN's tag) may still fit.
    let _ = cluster.switch().exec("ip", &["link", "set", "to-b", "mtu", "1396"]).ok();
    assert!(here.reaches(there.v4()) && !here.sends(there.v4(), "1422"));
    let ran = a.plexus(["doctor"]);
    assert_told(&ran, &["MTU: small packets pass, those of 1450 bytes", "only up to 13"]);
    let told = ran.stdout.split("ip link set LINK mtu ").nth(1).and_then(|rest| rest.split('`').next());
    let told = told.and_then(|mtu| mtu.parse::<u32>().ok());
    assert!(told.is_some_and(|mtu| (1396..=1400).contains(&mtu)), "{ran}");
    let (beneath, inside) = (told.unwrap_or_default().to_string(), told.unwrap_or_default() - 50);
    assert!(ran.stdout.contains(&format!("--mtu {inside}")), "{ran}");
    // Doing so helps: networks follow.
    for node in [a, b] {
        let _ = node.exec("ip", &["link", "set", "eth0", "mtu", &beneath]).ok();
    }
    let _ = eventually!(TICK, have_mtu([a, b], inside), |fits| *fits);
    assert_well(a);
    let (here, there) = (Container::on(a, "two", "default"), Container::on(b, "two", "default"));
    assert!(here.sends(there.v4(), &(inside - 28).to_string()) && here.sends(there.v4(), "8000"));
}

/// The bridge and the tunnel of each.
fn have_mtu(nodes: [&Node; 2], mtu: u32) -> bool {
    nodes.iter().all(|node| node.exec("ip", &["link"]).ok().matches(&format!("mtu {mtu} ")).count() >= 2)
}

#[test]
fn a_router_that_carries_less_and_says_nothing_is_noticed_by_fragments() {
    needs!("etcd", "etcdctl", "nft");
    let settings = |settings: &mut plexus_tests::Settings| settings.more = CONFIGURATION.to_owned();
    let cluster = Cluster::of(2).settings(settings).behind_router("b").start();
    let [a, b] = cluster.nodes();
    for node in [a, b] {
        wait_peers(node, "default", 1);
    }
    assert_well(a);
    let switch = cluster.switch();
    // As if its way on were narrow, in both directions.
    let (to_b, to_a) = (b.address().to_string(), a.address().to_string());
    for (to, link) in [(&to_b, "to-b"), (&to_a, "switch")] {
        let _ = switch.exec("ip", &["route", "replace", to, "dev", link, "mtu", "1400"]).ok();
    }
    let chain = "{ type filter hook output priority filter; policy accept; }";
    let _ = switch.exec("nft", &["add", "table", "ip", "mute"]).ok();
    let _ = switch.exec("nft", &["add", "chain", "ip", "mute", "output", chain]).ok();
    let _ = switch
        .exec("nft", &["add", "rule", "ip", "mute", "output", "icmp type destination-unreachable drop"])
        .ok();
    let ran = a.plexus(["doctor"]);
    assert!(
        ran.success()
            && ran.stdout.contains("in fragments: beneath, 1500 bytes do not pass whole, only up to 1400"),
        "{ran}"
    );
    assert!(ran.stdout.contains("the route to"), "{ran}");
    // What it says helps: networks keep to the MTU of a route.
    let _ = a.exec("ip", &["route", "replace", &to_b, "via", "10.77.0.254", "mtu", "1400"]).ok();
    let _ = b.exec("ip", &["route", "replace", &to_a, "via", "10.77.255.254", "mtu", "1400"]).ok();
    let fitting =
        || [a, b].iter().all(|node| node.exec("ip", &["link"]).ok().matches("mtu 1350").count() >= 2);
    let _ = eventually!(TICK, fitting(), |fits| *fits);
    let ran = a.plexus(["doctor"]);
    assert!(ran.success() && !ran.stdout.contains("in fragments"), "{ran}");
    assert!(a.agent_log().contains("the way to a node passes smaller packets"));
}

#[test]
fn wrong_checksums_of_what_is_within_are_told_from_a_blocked_port() {
    needs!("etcd", "etcdctl", "nft", "ethtool");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    for node in [a, b] {
        // The kernel writes checksums itself, else there would be none in packets that never leave the machine.
        let _ = node.exec("ethtool", &["-K", "eth0", "tx", "off"]).ok();
    }
    assert_well(a);
    // As such a network card does: the checksum of a UDP packet within VXLAN is another one; where there is none, there stays none.
    // From the beginning of UDP's header: 8 of it, 8 of VXLAN's, 14 of Ethernet's, 20 of IP's, and 6 of UDP's within.
    on_the_way(&cluster, &["udp dport 4789 @th,448,16 != 0 @th,448,16 set 0xbeef"]);
    assert_told(&a.plexus(["doctor"]), &["checksum offload"]);
    assert!(a.plexus(["doctor"]).stdout.contains("ethtool -K LINK tx off"));
    clear_the_way(&cluster);
    assert_well(a);
}

#[test]
fn a_filter_of_others_that_drops_is_named_and_what_is_said_lets_packets_pass() {
    needs!("etcd", "etcdctl", "nft", "ping", "iptables", "iptables-legacy");
    // Pings take the way that beginnings of connections take in any case.
    let more = format!("{CONFIGURATION}fast_path = \"off\"\n");
    let cluster = Cluster::of(2).settings(move |settings| settings.more = more.clone()).start();
    let [a, b] = cluster.nodes();
    [a, b].iter().for_each(|node| wait_peers(node, "default", 1));
    let (here, there) = (Container::on(a, "one", "default"), Container::on(b, "one", "default"));
    let _ = eventually!(SOON, here.reaches(there.v4()), |reaches| *reaches);
    // The older iptables, as Docker does when it starts.
    let _ = a.exec("iptables-legacy", &["-P", "FORWARD", "DROP"]).ok();
    assert!(!here.reaches(there.v4()));
    assert_told(&a.plexus(["doctor"]), &["chain FORWARD of iptables-legacy"]);
    for side in ["-i", "-o"] {
        let _ = a.exec("iptables-legacy", &["-I", "FORWARD", side, "plx+", "-j", "ACCEPT"]).ok();
    }
    assert!(here.reaches(there.v4()));
    assert_well(a);
    // A table of somebody else's.
    let chain = "{ type filter hook forward priority 0; policy drop; }";
    let _ = a.exec("nft", &["add", "table", "inet", "theirs"]).ok();
    let _ = a.exec("nft", &["add", "chain", "inet", "theirs", "passing", chain]).ok();
    assert!(!here.reaches(there.v4()));
    assert_told(&a.plexus(["doctor"]), &["table inet theirs, chain passing"]);
    for side in ["iifname", "oifname"] {
        let _ = a.exec("nft", &["add", "rule", "inet", "theirs", "passing", side, "plx*", "accept"]).ok();
    }
    assert!(here.reaches(there.v4()));
    assert_well(a);
    // With iptables as it is now, the agent sees to it itself.
    let _ = a.exec("iptables-nft", &["-P", "FORWARD", "DROP"]).ok();
    let _ = eventually!(SOON, here.reaches(there.v4()), |reaches| *reaches);
    assert_well(a);
}

#[test]
fn what_the_host_needs_and_lacks_is_named() {
    needs!("etcd", "etcdctl", "nft");
    let settings = |settings: &mut plexus_tests::Settings| settings.more = CONFIGURATION.to_owned();
    let cluster = Cluster::of(1).settings(settings).without_agents().start();
    let [a] = cluster.nodes();
    // Somebody else has addresses of the network that the configuration wants.
    let _ = a.exec("ip", &["route", "add", "10.42.4.0/24", "dev", "eth0"]).ok();
    a.restart_agent();
    let told = || a.plexus(["doctor"]);
    let used = "overlay.default: network default is not made with 10.42.0.0/16: this host has a route to 10.42.4.0/24 on eth0";
    let _ = eventually!(SOON, told(), |ran| ran.stdout.contains(used));
    assert!(a.plexus(["network", "ls"]).ok().contains("there is no network"));
    let _ = a.exec("ip", &["route", "del", "10.42.4.0/24"]).ok();
    let _ = eventually!(TICK, a.plexus(["network", "ls"]).ok(), |listed| listed.contains("default"));
    let _ = eventually!(SOON, told(), |ran| ran.success() && ran.stdout.contains("✓ ranges"));
    // Somebody takes addresses of a network that is there.
    let _ = a.exec("ip", &["route", "add", "10.42.4.0/24", "dev", "eth0"]).ok();
    assert_told(&told(), &["network default has 10.42.0.0/16, and this host has a route"]);
}

#[test]
fn a_port_that_a_program_has_is_told_with_what_to_do() {
    needs!("etcd", "etcdctl", "nft");
    let settings = |settings: &mut plexus_tests::Settings| settings.more = CONFIGURATION.to_owned();
    let cluster = Cluster::of(1).settings(settings).without_agents().start();
    let [a] = cluster.nodes();
    let taken = a.namespace().enter(|| std::net::UdpSocket::bind("0.0.0.0:4789").expect("nobody has it yet"));
    a.restart_agent();
    let _ = eventually!(SOON, a.plexus(["doctor"]), |ran| ran
        .stdout
        .contains("the UDP port of the tunnels (overlay.port) is somebody else's"));
    drop(taken);
    let _ = eventually!(SOON, a.plexus(["doctor"]).success(), |well| *well);
}

#[test]
fn what_an_agent_has_left_is_removed_without_it_and_twice_is_once() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let container = Container::on(a, "one", "default");
    let _ = a.plexus(["network", "create", "fast", "--cidr", "10.44.0.0/16", "--direct"]).ok();
    let direct = || a.exec("ip", &["route", "show", "proto", "82", "dev", "eth0"]).ok();
    let _ = eventually!(SOON, direct(), |routes| routes.contains("10.44."));
    let refused = a.plexus(["network", "cleanup"]);
    assert!(
        !refused.success() && refused.stderr.contains("the agent of node a runs and would put it back"),
        "{refused}"
    );
    assert!(a.exec("ip", &["link"]).ok().contains("plxb"));
    a.kill_agent();
    let _ = a.exec("ip", &["link", "add", "plxother", "type", "bridge"]).ok();
    let removed = a.plexus(["network", "cleanup"]).ok();
    for what in [
        "removed link plxb",
        "removed link plxv",
        "removed link plxe",
        "removed route 10.44.",
        "removed packet filter table inet plexus-overlay",
    ] {
        assert!(removed.contains(what), "{what} in {removed}");
    }
    let links = a.exec("ip", &["-br", "link"]).ok();
    assert!(
        !links.contains("plxb")
            && !links.contains("plxv")
            && !links.contains("plxe")
            && links.contains("plxother"),
        "{links}"
    );
    assert!(direct().is_empty());
    assert!(!container.namespace.exec("ip", &["link"]).ok().contains("eth0"));
    assert_ne!(a.exec("nft", &["list", "table", "inet", "plexus-overlay"]).code, Some(0));
    assert_eq!(a.plexus(["network", "cleanup"]).ok().trim(), "nothing of overlay networks is here");
    // An agent that comes back all the same makes everything anew.
    a.restart_agent();
    let _ = eventually!(SOON, a.plexus(["doctor"]).success(), |well| *well);
    assert_well(b);
}
