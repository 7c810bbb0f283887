//! The packet filter's part as text for `nft` (pure): what may pass between networks, and what leaves them under this node's address.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use nerve::model::{Prefix, Vni};

use super::names::{bridge, vxlan};
use crate::nft::Table;

/// Our table. Nothing outside of it is ours.
pub(crate) const TABLE: Table = Table { family: "inet", name: "plexus-overlay" };

/// A network as the packet filter knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Zone {
    pub(super) vni: Vni,
    pub(super) ranges: Vec<Prefix>,
    /// Networks whose containers it reaches and that reach it, of those that are here.
    pub(super) reaches: BTreeSet<Vni>,
    /// Where its packets come and go without a tunnel.
    pub(super) direct: Option<Direct>,
}

/// Packets of a network that pass a link of the underlay as they are. There they are known by their addresses: a tunnel's device,
/// which says whose they are, is not on their way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Direct {
    /// The link.
    pub(super) link: String,
    /// The subnets of the peers that send so. Whatever else comes there in the network's name is somebody else's.
    pub(super) sources: BTreeSet<Prefix>,
}

/// The text that replaces our table, whether it is there or not, in one transaction; without networks there is none. `port`: of the
/// tunnels, whose own packets are not tracked. They are no connections: their source port tells one that they carry from another.
pub(super) fn ruleset(zones: &BTreeSet<Zone>, port: u16) -> String {
    let mut text = TABLE.removal();
    if zones.is_empty() {
        return text;
    }
    // Of a concatenation that is not in the set, it is nobody's wish that it pass. Writing to a string does not fail.
    let _ = write!(
        text,
        "table {TABLE} {{\n\
         {ranges}  \
           set passing {{\n    \
             type ifname . ifname\n    \
             elements = {{ {passing} }}\n  \
           }}\n  \
           chain arriving {{\n    \
             type filter hook prerouting priority raw; policy accept;\n    \
             udp dport {port} notrack\n  \
           }}\n  \
           chain departing {{\n    \
             type filter hook output priority raw; policy accept;\n    \
             udp dport {port} notrack\n  \
           }}\n  \
           chain forward {{\n    \
             type filter hook forward priority filter; policy accept;\n    \
             oifname \"plxv*\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu\n    \
             iifname \"plx*\" oifname \"plx*\" iifname . oifname != @passing counter drop\n\
         {direct}    \
             iifname != \"plx*\" oifname \"plx*\" ct state new counter drop\n  \
           }}\n  \
           chain leaving {{\n    \
             type nat hook postrouting priority srcnat; policy accept;\n\
         {masquerading}  \
           }}\n\
         }}\n",
        ranges = sets(zones) + &sources(zones),
        direct = direct(zones),
        passing = passing(zones).join(", "),
        masquerading = masquerading(zones),
    );
    text
}

/// From a network's links to those of the same network, and of those that it reaches.
fn passing(zones: &BTreeSet<Zone>) -> Vec<String> {
    let mut pairs = BTreeSet::new();
    for zone in zones {
        pairs.insert((zone.vni, zone.vni));
        for other in zones.iter().filter(|other| zone.reaches.contains(&other.vni)) {
            pairs.insert((zone.vni, other.vni));
            pairs.insert((other.vni, zone.vni));
        }
    }
    let mut elements = Vec::new();
    for (from, to) in pairs {
        let (from_links, to_links) = ([bridge(from), vxlan(from)], [bridge(to), vxlan(to)]);
        for from in &from_links {
            elements.extend(to_links.iter().map(|to| format!("\"{from}\" . \"{to}\"")));
        }
    }
    elements
}

/// The subnets that packets come from without a tunnel, of each network.
fn sources(zones: &BTreeSet<Zone>) -> String {
    let mut text = String::new();
    for Zone { vni, direct, .. } in zones {
        let Some(Direct { sources, .. }) = direct.as_ref().filter(|direct| !direct.sources.is_empty()) else {
            continue;
        };
        let kind = if sources.iter().all(Prefix::is_ipv4) { "ipv4_addr" } else { "ipv6_addr" };
        let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            text,
            "  set direct{vni} {{\n    type {kind}\n    flags interval\n    elements = {{ {} }}\n  }}",
            sources.join(", ")
        );
    }
    text
}

/// What passes a link of the underlay without a tunnel: from there, what a peer sends to the networks that may be reached from its
/// own; to there, from these networks alone. The rest of what comes from there is nobody's, and meets the rule after these.
fn direct(zones: &BTreeSet<Zone>) -> String {
    let mut text = String::new();
    for zone in zones {
        let Some(Direct { link, sources }) = &zone.direct else { continue };
        let bridges: Vec<String> = zones
            .iter()
            .filter(|other| {
                other.vni == zone.vni
                    || zone.reaches.contains(&other.vni)
                    || other.reaches.contains(&zone.vni)
            })
            .map(|other| format!("\"{}\"", bridge(other.vni)))
            .collect();
        let bridges = bridges.join(", ");
        if let Some(source) = sources.first() {
            let family = if source.is_ipv4() { "ip" } else { "ip6" };
            let _ = writeln!(
                text,
                "    iifname \"{link}\" oifname {{ {bridges} }} {family} saddr @direct{} accept",
                zone.vni
            );
        }
        for range in &zone.ranges {
            let family = if range.is_ipv4() { "ip" } else { "ip6" };
            let _ = writeln!(
                text,
                "    oifname \"{link}\" {family} daddr {range} iifname \"plx*\" iifname != {{ {bridges} }} counter drop"
            );
        }
    }
    text
}

/// What containers may be reached under.
fn sets(zones: &BTreeSet<Zone>) -> String {
    let mut text = String::new();
    for (name, kind, v4) in [("ranges4", "ipv4_addr", true), ("ranges6", "ipv6_addr", false)] {
        let ranges: Vec<String> = zones
            .iter()
            .flat_map(|zone| &zone.ranges)
            .filter(|range| range.is_ipv4() == v4)
            .map(ToString::to_string)
            .collect();
        if !ranges.is_empty() {
            let _ = writeln!(
                text,
                "  set {name} {{\n    type {kind}\n    flags interval\n    elements = {{ {} }}\n  }}",
                ranges.join(", ")
            );
        }
    }
    text
}

/// Who is not of a network knows no way back to a container: to them it speaks under this node's address.
fn masquerading(zones: &BTreeSet<Zone>) -> String {
    let mut text = String::new();
    for (name, family, v4) in [("ranges4", "ip", true), ("ranges6", "ip6", false)] {
        if zones.iter().flat_map(|zone| &zone.ranges).any(|range| range.is_ipv4() == v4) {
            let _ = writeln!(
                text,
                "    oifname != \"plx*\" {family} saddr @{name} {family} daddr != @{name} masquerade"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(vni: u32, range: &str, reaches: &[u32]) -> Zone {
        Zone {
            vni: Vni::new(vni).unwrap(),
            ranges: vec![range.parse().unwrap()],
            reaches: reaches.iter().map(|vni| Vni::new(*vni).unwrap()).collect(),
            direct: None,
        }
    }

    #[test]
    fn networks_pass_to_themselves_and_where_one_of_two_says_so() {
        let zones = BTreeSet::from([
            zone(1, "10.1.0.0/16", &[]),
            zone(2, "10.2.0.0/16", &[1]),
            zone(3, "10.3.0.0/16", &[9]),
        ]);
        let pairs = passing(&zones);
        let has = |from: &str, to: &str| pairs.contains(&format!("\"{from}\" . \"{to}\""));
        for (from, to) in [
            ("plxb1", "plxv1"),
            ("plxv1", "plxb1"),
            ("plxb1", "plxb2"),
            ("plxv2", "plxb1"),
            ("plxb3", "plxv3"),
        ] {
            assert!(has(from, to), "{from} to {to}");
        }
        for (from, to) in [("plxb1", "plxb3"), ("plxv3", "plxb2"), ("plxb3", "plxv9")] {
            assert!(!has(from, to), "{from} to {to}");
        }
    }

    #[test]
    fn what_comes_without_a_tunnel_is_known_by_the_subnets_of_peers_and_goes_where_networks_pass() {
        let direct = |sources: &[&str]| {
            let sources = sources.iter().map(|source| source.parse().unwrap()).collect();
            Some(Direct { link: "eth0".to_owned(), sources })
        };
        let with = |sources: &[&str]| {
            let near = Zone { direct: direct(sources), ..zone(1, "10.1.0.0/16", &[]) };
            ruleset(&BTreeSet::from([near, zone(2, "10.2.0.0/16", &[1]), zone(3, "10.3.0.0/16", &[])]), 4789)
        };
        let text = with(&["10.1.7.0/24", "10.1.9.0/24"]);
        assert!(text.contains("elements = { 10.1.7.0/24, 10.1.9.0/24 }"), "{text}");
        let accepted = r#"iifname "eth0" oifname { "plxb1", "plxb2" } ip saddr @direct1 accept"#;
        let dropped = r#"oifname "eth0" ip daddr 10.1.0.0/16 iifname "plx*" iifname != { "plxb1", "plxb2" } counter drop"#;
        let rest = r#"iifname != "plx*" oifname "plx*" ct state new counter drop"#;
        let at = |rule: &str| text.find(rule).unwrap_or_else(|| panic!("{rule} in {text}"));
        assert!(at(accepted) < at(rest) && at(dropped) < at(rest));
        // Without such peers nothing may come that way, and nothing of others may go.
        let text = with(&[]);
        assert!(!text.contains("accept\n") && text.contains(dropped), "{text}");
    }

    #[test]
    fn a_family_that_no_network_has_is_not_spoken_of() {
        let text = ruleset(&BTreeSet::from([zone(1, "10.1.0.0/16", &[])]), 4789);
        assert!(
            text.contains("ip saddr @ranges4 ip daddr != @ranges4 masquerade") && !text.contains("ranges6"),
            "{text}"
        );
        let text = ruleset(&BTreeSet::from([zone(1, "fd42::/48", &[])]), 4789);
        assert!(text.contains("ip6 saddr @ranges6") && !text.contains("ranges4"), "{text}");
    }

    #[test]
    fn without_networks_the_table_goes() {
        assert_eq!(ruleset(&BTreeSet::new(), 4789), TABLE.removal());
    }
}
