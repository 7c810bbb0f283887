//! Networks without a tunnel between nodes on one link: where there is one, packets pass as they are; where there is none, and for
//! everybody else, all is as ever.

use std::net::IpAddr;
use std::time::Duration;

use plexus_tests::{Cluster, Node, eventually, needs};

use crate::overlay::{CONFIGURATION, Container, wait_peers};

const SOON: Duration = Duration::from_secs(10);

/// Packets of a kind that pass the switch, bridged or routed.
struct Seen<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Seen<'a> {
    /// Counts from now on what one of the rules is true of.
    fn count(cluster: &'a Cluster, name: &str, rules: &[String]) -> Self {
        let hook = "{ type filter hook forward priority filter; policy accept; }";
        for table in ["inet", "bridge"] {
            let nft = |arguments: &[&str]| cluster.switch().exec("nft", arguments).ok();
            let _ = nft(&["add", "table", table, "seen"]);
            let _ = nft(&["add", "chain", table, "seen", "forward", hook]);
            let _ = nft(&["add", "counter", table, "seen", name]);
            for rule in rules {
                let rule = format!("{rule} counter name {name}");
                let _ = nft(&["add", "rule", table, "seen", "forward", &rule]);
            }
        }
        Self { cluster, name: name.to_owned() }
    }

    /// Tunnels between two nodes.
    fn tunnels(cluster: &'a Cluster, one: &Node, other: &Node) -> Self {
        let rule = |from: &Node, to: &Node| {
            format!("udp dport 4789 ip saddr {} ip daddr {}", from.address(), to.address())
        };
        Self::count(
            cluster,
            &format!("{}{}", one.name(), other.name()),
            &[rule(one, other), rule(other, one)],
        )
    }

    fn packets(&self) -> u64 {
        let of = |table: &str| {
            let listed =
                self.cluster.switch().exec("nft", &["list", "counter", table, "seen", &self.name]).ok();
            let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
            words.nth(1).and_then(|count| count.parse::<u64>().ok()).expect("a counter")
        };
        of("inet") + of("bridge")
    }
}

#[test]
fn nodes_on_one_link_need_no_tunnel_and_one_behind_a_router_does() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let settings = |settings: &mut plexus_tests::Settings| settings.more = CONFIGURATION.to_owned();
    let cluster = Cluster::of(3).settings(settings).behind_router("c").start();
    let [a, b, c] = cluster.nodes();
    let _ = a
        .plexus(["network", "create", "fast", "--cidr", "10.44.0.0/16", "--cidr", "fd00:44::/48", "--direct"])
        .ok();
    for node in [a, b, c] {
        wait_peers(node, "fast", 2);
        wait_peers(node, "default", 2);
    }
    let shown = b.plexus(["network", "inspect", "fast"]).ok();
    assert!(shown.contains("on one link   without a tunnel"), "{shown}");
    let on = |node: &Node, network: &str| Container::on(node, network, network);
    let fast = [on(a, "fast"), on(b, "fast"), on(c, "fast")];
    let default = [on(a, "default"), on(b, "default")];
    let direct = || a.exec("ip", &["route", "show", "proto", "82", "dev", "eth0"]).ok();
    let via = |node: &Node| format!("via {}", node.address());
    let routes = eventually!(SOON, direct(), |routes| routes.contains(&via(b)));
    assert!(!routes.contains(&via(c)), "{routes}");
    for from in &fast {
        for to in &fast {
            for address in &to.addresses {
                let _ = eventually!(SOON, from.reaches(*address), |reaches| *reaches);
                assert!(from.sends(*address, "8000"), "{} to {address}", from.v4());
            }
        }
    }
    let (near, far) = (Seen::tunnels(&cluster, a, b), Seen::tunnels(&cluster, a, c));
    for _ in 0..5 {
        assert!(
            fast[0].reaches(fast[1].v4()) && fast[1].reaches(fast[0].v4()) && fast[0].reaches(fast[2].v4())
        );
    }
    assert_eq!(near.packets(), 0, "between a and b");
    assert!(far.packets() >= 10, "between a and c: {}", far.packets());

    // Networks are kept apart on the link as in tunnels: by who sends, and by who receives.
    let leaving =
        Seen::count(&cluster, "leaving", &[format!("ip saddr {} ip daddr 10.44.0.0/16", default[0].v4())]);
    for one in &default {
        for other in &fast {
            assert!(!one.reaches(other.v4()) && !other.reaches(one.v4()), "{} and {}", one.v4(), other.v4());
        }
    }
    assert_eq!(leaving.packets(), 0);
    // Nor does a stranger on the link get in, whatever addresses it claims to have: one of the network that nobody has, one
    // outside of it. Answers would find their way back to it.
    let stranger = cluster.machine("stranger");
    let target = fast[1].v4();
    let _ = stranger.exec("ip", &["route", "add", &target.to_string(), "via", &b.address().to_string()]).ok();
    for claimed in ["10.44.255.9", "198.51.100.9"] {
        let _ = stranger.exec("ip", &["address", "add", claimed, "dev", "eth0"]).ok();
        let _ = b.exec("ip", &["route", "add", claimed, "via", &stranger.address().to_string()]).ok();
        let heard = || {
            stranger
                .exec("ping", &["-n", "-q", "-c", "1", "-W", "1", "-I", claimed, &target.to_string()])
                .success()
        };
        assert!(!heard(), "{claimed} is let in");
        // So it is the packet filter, and nothing else.
        assert!(
            stranger
                .exec("ping", &["-n", "-q", "-c", "1", "-W", "1", "-I", claimed, &b.address().to_string()])
                .success()
        );
        let _ = b.exec("ip", &["route", "del", claimed]).ok();
    }
    told_and_repaired(a, &fast);
    let _ = a.plexus(["network", "rm", "fast", "--force"]).ok();
    let _ = eventually!(SOON, direct(), |routes| routes.is_empty());
}

fn told_and_repaired(a: &Node, fast: &[Container; 3]) {
    let told = a.plexus(["doctor"]).ok();
    let line = |subject: &str, by: &str| {
        told.lines().any(|line| line.starts_with(&format!("✓ {subject}")) && line.contains(by))
    };
    assert!(line("b on fast, without a tunnel", "pass, ") && line("c on fast", "pass, "), "{told}");
    let to: IpAddr = fast[1].v4();
    let harm: [&[&str]; 3] = [
        &["route", "flush", "proto", "82", "dev", "eth0"],
        // The kernel takes routes along and says nothing of them.
        &["link", "set", "eth0", "down"],
        &["link", "set", "eth0", "up"],
    ];
    for harm in harm {
        let _ = a.exec("ip", harm).ok();
    }
    let _ = a.exec("ip", &["route", "replace", "default", "via", "10.77.0.254"]).ok();
    let _ = eventually!(SOON, fast[0].reaches(to), |reaches| *reaches);
}
