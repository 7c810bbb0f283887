//! The short way of packets between containers of different nodes, as text for `nft` (pure).
//!
//! By the usual way such a packet passes, on each of the two nodes, the bridge, connection tracking, every table of the packet filter
//! and the routing of the host. But where it goes to follows from its address alone. So a hook on the containers' links, before all of
//! that, hands it to the tunnel, and one on the tunnel hands it to the bridge (`fwd` of nft). Whether a node has the subnet is asked of
//! the routes, and its gateway is the subnet's first address, so nothing of it changes with the peers.
//!
//! Beginnings of TCP connections go the usual way: the host's packet filter decides on them, and a container that is not there is
//! told of. So does all that is not from a container of a network to one of the same: what leaves, other networks, gateways; and what
//! arrives and is too large for this node's part of the network, which its sender is told. Segments of TCP are not: both ends have agreed on
//! what fits, and many of them arrive as one.
//!
//! A hook of the family `netdev` cannot see sockets. So where this node shows containers their clients' own addresses, what arrives by
//! tunnels goes the usual way: it may be the answer to a socket of the balancer that has a container's address.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use nerve::model::{Pool, Prefix, Vni};

use super::names::{bridge, vxlan};
use crate::nft::Table;

/// Our table.
pub(super) const TABLE: Table = Table { family: "netdev", name: "plexus-fast" };
/// A chain has at most 256 links (`NFT_NETDEVHOOK_MAX` of the kernel).
const MOST_LINKS: usize = 200;

/// A network whose packets take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) vni: Vni,
    pub(super) pools: Vec<Pool>,
    /// This node's subnets.
    pub(super) own: Vec<Prefix>,
    /// The links of containers here that take no larger packets than the network does.
    pub(super) containers: Vec<String>,
    /// The largest packet that the network passes on this node.
    pub(super) mtu: u32,
}

/// The text that replaces our table, whether it is there or not, in one transaction; without containers there is none. `inward`: what
/// arrives by tunnels takes it as well.
pub(super) fn ruleset<'a>(lanes: impl IntoIterator<Item = &'a Lane>, inward: bool) -> String {
    let mut chains = String::new();
    for lane in lanes.into_iter().filter(|lane| !lane.containers.is_empty()) {
        for (number, links) in lane.containers.chunks(MOST_LINKS).enumerate() {
            let name = format!("outward{}_{number}", lane.vni);
            chains += &chain(&name, links, "", &lane.rules(Lane::outward));
        }
        if inward {
            let (name, tunnel) = (format!("inward{}", lane.vni), vxlan(lane.vni));
            let too_large = format!("    meta l4proto != tcp meta length > {} accept\n", lane.mtu);
            chains += &chain(&name, &[tunnel], &too_large, &lane.rules(Lane::inward));
        }
    }
    let mut text = TABLE.removal();
    if !chains.is_empty() {
        // Writing to a string does not fail.
        let _ = write!(text, "table {TABLE} {{\n{chains}}}\n");
    }
    text
}

fn chain(name: &str, links: &[String], first: &str, rules: &str) -> String {
    let links: Vec<String> = links.iter().map(|link| format!("\"{link}\"")).collect();
    format!(
        "  chain {name} {{\n    \
           type filter hook ingress devices = {{ {} }} priority filter; policy accept;\n    \
           tcp flags & syn == syn accept\n\
         {first}{rules}  \
         }}\n",
        links.join(", ")
    )
}

impl Lane {
    /// Those of each pool, of the subnet that this node has of it.
    fn rules(&self, rule: impl Fn(&Self, &Pool, Prefix) -> String) -> String {
        let own = |pool: &Pool| self.own.iter().copied().find(|own| pool.cidr().overlaps(own));
        self.pools.iter().filter_map(|pool| Some(rule(self, pool, own(pool)?))).collect()
    }

    /// From a container here to another node's part of the network: to the gateway that stands for it.
    fn outward(&self, pool: &Pool, own: Prefix) -> String {
        let Words { family, hops, first } = words(own);
        let (range, tunnel, mask) = (pool.cidr(), vxlan(self.vni), mask(own));
        format!(
            "    {family} saddr {own} {family} daddr {range} {family} daddr != {own} {hops} > 1 fib daddr oif \"{tunnel}\" \
             fwd {family} to {family} daddr & {mask} | {first} device \"{tunnel}\"\n"
        )
    }

    /// From another node's part of the network to a container here.
    fn inward(&self, pool: &Pool, own: Prefix) -> String {
        let Words { family, hops, .. } = words(own);
        let nobodys: BTreeSet<IpAddr> = nobodys(own).collect();
        let nobodys: Vec<String> = nobodys.iter().map(ToString::to_string).collect();
        format!(
            "    {family} saddr {range} {family} daddr {own} {family} daddr != {{ {} }} {hops} > 1 \
             fwd {family} to {family} daddr device \"{}\"\n",
            nobodys.join(", "),
            bridge(self.vni),
            range = pool.cidr(),
        )
    }
}

/// How nft speaks of a family.
struct Words {
    family: &'static str,
    hops: &'static str,
    /// The bits of a subnet's first address that its network does not have.
    first: &'static str,
}

fn words(subnet: Prefix) -> Words {
    if subnet.is_ipv4() {
        Words { family: "ip", hops: "ip ttl", first: "0.0.0.1" }
    } else {
        Words { family: "ip6", hops: "ip6 hoplimit", first: "::1" }
    }
}

/// The bits of an address that are its subnet's.
fn mask(subnet: Prefix) -> IpAddr {
    let length = u32::from(subnet.length());
    if subnet.is_ipv4() {
        IpAddr::from((!0_u32).checked_shl(32 - length).unwrap_or(0).to_be_bytes())
    } else {
        IpAddr::from((!0_u128).checked_shl(128 - length).unwrap_or(0).to_be_bytes())
    }
}

/// What no container has: the subnet's own address, the bridge's, and that of all.
fn nobodys(subnet: Prefix) -> impl Iterator<Item = IpAddr> {
    let last = subnet.is_ipv4().then(|| subnet.nth(subnet.size() - 1)).flatten();
    [subnet.nth(0), subnet.nth(1), last].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(containers: usize) -> Lane {
        let pool = |cidr: &str, length| Pool::new(cidr.parse().unwrap(), length).unwrap();
        Lane {
            vni: Vni::new(77).unwrap(),
            pools: vec![pool("10.42.0.0/16", 24), pool("fd42::/48", 64)],
            own: ["10.42.7.0/24", "fd42:0:0:7::/64"].map(|subnet| subnet.parse().unwrap()).into(),
            containers: (0..containers).map(|n| format!("plxe{n}")).collect(),
            mtu: 1450,
        }
    }

    #[test]
    fn a_packet_goes_to_the_gateway_of_its_subnet_and_to_containers_alone() {
        let text = ruleset(&[lane(1)], true);
        for rule in [
            "ip saddr 10.42.7.0/24 ip daddr 10.42.0.0/16 ip daddr != 10.42.7.0/24 ip ttl > 1 fib daddr oif \"plxv77\" fwd ip to ip \
             daddr & 255.255.255.0 | 0.0.0.1 device \"plxv77\"",
            "fwd ip6 to ip6 daddr & ffff:ffff:ffff:ffff:: | ::1 device \"plxv77\"",
            "ip daddr 10.42.7.0/24 ip daddr != { 10.42.7.0, 10.42.7.1, 10.42.7.255 } ip ttl > 1 fwd ip to ip daddr device \"plxb77\"",
            "ip6 daddr != { fd42:0:0:7::, fd42:0:0:7::1 } ip6 hoplimit > 1 fwd ip6 to ip6 daddr device \"plxb77\"",
        ] {
            assert!(text.contains(rule), "{rule}\n{text}");
        }
        assert_eq!(text.matches("tcp flags & syn == syn accept").count(), 2);
        let inward = text.split("chain inward").nth(1).unwrap();
        let at = |rule: &str| inward.find(rule).unwrap();
        assert!(at("meta l4proto != tcp meta length > 1450 accept") < at("fwd"), "{text}");
    }

    #[test]
    fn without_containers_there_is_nothing_and_for_many_there_are_several_chains() {
        assert_eq!(ruleset(&[lane(0)], true), TABLE.removal());
        let text = ruleset(&[lane(450)], false);
        assert!(text.contains("chain outward77_2 ") && !text.contains("chain outward77_3 "));
        assert!(text.contains("\"plxe449\"") && !text.contains("inward"));
    }

    #[test]
    fn a_mask_has_as_many_bits_as_the_prefix() {
        for (subnet, expected) in [
            ("10.42.7.0/24", "255.255.255.0"),
            ("10.42.7.64/26", "255.255.255.192"),
            ("fd42::/64", "ffff:ffff:ffff:ffff::"),
            ("fd42::/112", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0"),
        ] {
            assert_eq!(mask(subnet.parse().unwrap()).to_string(), expected);
        }
    }
}
