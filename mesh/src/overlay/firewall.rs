//! The packet filter's part as text for `nft` (pure): what may pass between networks, and what leaves them under this node's address.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use nerve::model::{Prefix, Vni};

use super::names::{bridge, vxlan};
use crate::nft::Table;

/// Our table. Nothing outside of it is ours.
pub(super) const TABLE: Table = Table { family: "inet", name: "plexus-overlay" };

/// A network as the packet filter knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Zone {
    pub(super) vni: Vni,
    pub(super) ranges: Vec<Prefix>,
    /// Networks whose containers it reaches and that reach it, of those that are here.
    pub(super) reaches: BTreeSet<Vni>,
}

/// The text that replaces our table, whether it is there or not, in one transaction; without networks there is none.
pub(super) fn ruleset(zones: &BTreeSet<Zone>) -> String {
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
           chain forward {{\n    \
             type filter hook forward priority filter; policy accept;\n    \
             oifname \"plxv*\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu\n    \
             iifname \"plx*\" oifname \"plx*\" iifname . oifname != @passing counter drop\n    \
             iifname != \"plx*\" oifname \"plx*\" ct state new counter drop\n  \
           }}\n  \
           chain leaving {{\n    \
             type nat hook postrouting priority srcnat; policy accept;\n\
         {masquerading}  \
           }}\n\
         }}\n",
        ranges = sets(zones),
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
    fn a_family_that_no_network_has_is_not_spoken_of() {
        let text = ruleset(&BTreeSet::from([zone(1, "10.1.0.0/16", &[])]));
        assert!(
            text.contains("ip saddr @ranges4 ip daddr != @ranges4 masquerade") && !text.contains("ranges6"),
            "{text}"
        );
        let text = ruleset(&BTreeSet::from([zone(1, "fd42::/48", &[])]));
        assert!(text.contains("ip6 saddr @ranges6") && !text.contains("ranges4"), "{text}");
    }

    #[test]
    fn without_networks_the_table_goes() {
        assert_eq!(ruleset(&BTreeSet::new()), TABLE.removal());
    }
}
