//! What the kernel is to have of a network on this node (pure).
//!
//! Between nodes a network is routed: each node's subnet is behind the gateway of its bridge, and the gateways are each other's
//! neighbours on a VXLAN device. A node costs its peers, for each family, a route and a neighbour, and once a forwarding entry that says at
//! which address of the underlay the neighbour's MAC is. Nothing is learned and nothing is flooded.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use nerve::model::{Mac, Network, Prefix, Slot, Subnet, Transport, Vni};

use super::names::{bridge, mac, vxlan};
use super::returns;
use super::ways::Ways;

/// What VXLAN adds to a packet: Ethernet, VXLAN and UDP headers (RFC 7348, section 5); the outer IP header comes on top.
const ENCAPSULATION: u32 = 14 + 8 + 8;
pub(super) const IPV4_HEADER: u32 = 20;
pub(super) const IPV6_HEADER: u32 = 40;
/// Of every bridge: what it looks for containers from. The kernel would give it one a second or two after the first container.
const LINK_LOCAL: (IpAddr, u8) = (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), 64);

/// The links of a network on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Links {
    pub(super) vni: Vni,
    /// Of the underlay: where peers send to.
    pub(super) local: IpAddr,
    pub(super) port: u16,
    /// Of the VXLAN device.
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    /// This node's subnets; the gateway of each is its first address.
    pub(super) subnets: Vec<Prefix>,
    /// The link to peers that are reached without the tunnel, where there may be such.
    pub(super) beneath: Option<Beneath>,
    /// Of an encrypted network: the only ways to peers.
    pub(super) ways: Option<Arc<Ways>>,
}

/// The link that this node's address is on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Beneath {
    pub(super) index: u32,
    pub(super) name: String,
    /// The addresses on it.
    pub(super) range: Prefix,
}

/// What one peer needs in the kernel, by parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Entry {
    /// Frames to this MAC go to that address of the underlay, or to that address behind a link that encrypts, and nowhere else.
    Forward { mac: Mac, to: IpAddr, by: Option<u32> },
    /// The peer's gateway has this MAC.
    Neighbour { gateway: IpAddr, mac: Mac },
    /// Its subnet is behind its gateway; what this node itself sends there comes from `source`.
    Route { subnet: Prefix, gateway: IpAddr, source: IpAddr },
    /// By this table, all goes to the gateway that stands for whom a connection came from.
    Return { table: u32, gateway: IpAddr },
    /// The same without the tunnel: behind the peer's own address, on a link of the underlay.
    Direct { subnet: Prefix, via: IpAddr, link: u32, source: IpAddr },
}

impl Links {
    /// What a node that holds `slot` has, on an underlay of that MTU; `None` where the network has no such slot.
    pub(super) fn new(
        network: &Network,
        slot: Slot,
        (local, port): (IpAddr, u16),
        (underlay_mtu, beneath): (u32, Option<&Beneath>),
    ) -> Option<Self> {
        let subnets = Some(network.subnets(slot)).filter(|subnets| !subnets.is_empty())?;
        let is_encrypted = network.is_encrypted();
        let usual =
            || mtu(local, underlay_mtu).saturating_sub(if is_encrypted { encryption(local) } else { 0 });
        let mtu = network.mtu.map_or_else(usual, |mtu| u32::from(mtu.get()));
        let beneath = beneath.filter(|_| network.transport == Transport::Direct).cloned();
        // Until it is said what they are, there are none.
        let ways = is_encrypted.then(Arc::default);
        let port = if is_encrypted { encrypted_port(port) } else { port };
        Some(Self { vni: network.vni, local, port, mac: mac(slot), mtu, subnets, beneath, ways })
    }

    /// The same with these ways to peers, where the network is encrypted.
    pub(super) fn with_ways(self, ways: Option<&Arc<Ways>>) -> Self {
        let ways = self.ways.map(|none| ways.map_or(none, Arc::clone));
        Self { ways, ..self }
    }

    /// The address that its tunnel is bound to: none where packets go by links that encrypt, which have one each.
    pub(super) fn end(&self) -> Option<IpAddr> {
        self.ways.is_none().then_some(self.local)
    }

    /// The network's bridge, which containers are attached to.
    pub(super) fn bridge(&self) -> String {
        bridge(self.vni)
    }

    /// Its VXLAN device.
    pub(super) fn vxlan(&self) -> String {
        vxlan(self.vni)
    }

    /// The addresses of the bridge.
    pub(super) fn bridge_addresses(&self) -> BTreeSet<(IpAddr, u8)> {
        let has_v6 = self.subnets.iter().any(|subnet| !subnet.is_ipv4());
        self.gateways().chain(has_v6.then_some(LINK_LOCAL)).collect()
    }

    /// Those of the VXLAN device: a link without an address cannot let in what comes from elsewhere, where all links check sources.
    pub(super) fn vxlan_addresses(&self) -> BTreeSet<(IpAddr, u8)> {
        let gateways = self.gateways().filter(|(gateway, _)| gateway.is_ipv4());
        gateways.map(|(gateway, _)| (gateway, 32)).collect()
    }

    /// The gateways of containers here, each with the length of its subnet.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
        self.subnets.iter().filter_map(|subnet| Some((gateway(*subnet)?, subnet.length())))
    }

    /// What the network needs here whoever its peers are: what answers to clients elsewhere go back by.
    pub(super) fn own_entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let is_spoken = |gateway: &IpAddr| self.subnets.iter().any(|own| own.is_ipv4() == gateway.is_ipv4());
        returns::GATEWAYS.into_iter().filter(is_spoken).flat_map(|gateway| {
            let table = returns::table(self.vni);
            [Entry::Neighbour { gateway, mac: mac(Slot(0)) }, Entry::Return { table, gateway }]
        })
    }

    /// What a peer needs here. A peer that the underlay's family does not reach needs nothing.
    pub(super) fn entries(&self, network: &Network, slot: Slot, peer: &Subnet) -> Vec<Entry> {
        if peer.address.is_ipv4() != self.local.is_ipv4() {
            return Vec::new();
        }
        let (to, by) = match &self.ways {
            None => (peer.address, None),
            Some(ways) => match ways.get(&(peer.node.clone(), peer.address)) {
                Some(way) => (IpAddr::V6(way.to), Some(way.link)),
                None => return Vec::new(),
            },
        };
        let beneath = self.beneath.as_ref().filter(|beneath| is_direct(network, Some(beneath.range), peer));
        let (mut entries, mut by_tunnel) = (Vec::new(), false);
        for subnet in network.subnets(slot) {
            let source = self.gateways().find(|(own, _)| own.is_ipv4() == subnet.is_ipv4());
            let (Some(gateway), Some((source, _))) = (gateway(subnet), source) else { continue };
            match beneath {
                // What is of the other family than the underlay has no next hop there.
                Some(Beneath { index, .. }) if subnet.is_ipv4() == peer.address.is_ipv4() => {
                    entries.push(Entry::Direct { subnet, via: peer.address, link: *index, source });
                }
                _ => {
                    by_tunnel = true;
                    entries.push(Entry::Neighbour { gateway, mac: peer.mac });
                    entries.push(Entry::Route { subnet, gateway, source });
                }
            }
        }
        if by_tunnel {
            entries.insert(0, Entry::Forward { mac: peer.mac, to, by });
        }
        entries
    }
}

/// What is to be done so that there is what is wanted: first what to add or to replace, in the order in which it works, then
/// what to remove.
pub(super) fn difference(wanted: &BTreeSet<Entry>, there: &BTreeSet<Entry>) -> (Vec<Entry>, Vec<Entry>) {
    let add: Vec<Entry> = wanted.difference(there).copied().collect();
    let kept: BTreeSet<Place> = wanted.iter().map(Entry::place).collect();
    // What stands in the place of something wanted is replaced by it.
    let remove = there.difference(wanted).filter(|entry| !kept.contains(&entry.place())).copied();
    // Routes go first, and with them what leads to the rest.
    let mut remove: Vec<Entry> = remove.collect();
    remove.reverse();
    (add, remove)
}

/// Where an entry stands: of two with the same place, the kernel has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Forward(Mac),
    Neighbour(IpAddr),
    Route(Prefix),
    Return(u32, bool),
}

impl Entry {
    pub(super) fn place(&self) -> Place {
        match self {
            Self::Forward { mac, .. } => Place::Forward(*mac),
            Self::Neighbour { gateway, .. } => Place::Neighbour(*gateway),
            // The kernel has one route to a subnet, whatever link it leads to.
            Self::Route { subnet, .. } | Self::Direct { subnet, .. } => Place::Route(*subnet),
            Self::Return { table, gateway } => Place::Return(*table, gateway.is_ipv4()),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward { mac, to, .. } => write!(f, "the forwarding entry of {mac} to {to}"),
            Self::Neighbour { gateway, mac } => write!(f, "the neighbour {gateway} at {mac}"),
            Self::Route { subnet, gateway, .. } => write!(f, "the route to {subnet} by {gateway}"),
            Self::Return { table, gateway } => write!(f, "the route of table {table} by {gateway}"),
            Self::Direct { subnet, via, .. } => {
                write!(f, "the route to {subnet} by {via}, without a tunnel,")
            }
        }
    }
}

/// Do this node, whose address is on a link with that range, and a peer reach each other without a tunnel? Both of them see the
/// same records and so say the same: a packet that comes by a way on which none would be sent is dropped.
pub(super) fn is_direct(network: &Network, own: Option<Prefix>, peer: &Subnet) -> bool {
    network.transport == Transport::Direct
        && own.is_some_and(|own| peer.link == Some(own) && own.contains(peer.address))
}

/// The first address of a subnet that a host can have.
pub(super) fn gateway(subnet: Prefix) -> Option<IpAddr> {
    subnet.nth(1)
}

/// The largest packet that passes through the tunnel whole.
fn mtu(underlay: IpAddr, underlay_mtu: u32) -> u32 {
    underlay_mtu.saturating_sub(overhead(underlay))
}

/// The UDP port of encrypted networks' tunnels: the next but one, since the next is for probes. Nobody but the links that encrypt sees it.
pub(super) fn encrypted_port(tunnels: u16) -> u16 {
    tunnels.checked_add(2).unwrap_or(tunnels - 2)
}

/// What encryption adds to a tunnel's packet: inside, a header of IPv6 instead of the underlay's; outside, what `seal` says.
pub(super) fn encryption(underlay: IpAddr) -> u32 {
    seal(underlay) + IPV6_HEADER - if underlay.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

/// What encryption adds to a packet of a link that encrypts: the underlay's header, UDP's, and WireGuard's header and check value. ESP
/// adds less.
pub(super) fn seal(underlay: IpAddr) -> u32 {
    8 + 32 + if underlay.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

/// What a tunnel inside of a link that encrypts adds to a packet of its network.
pub(super) const INSIDE: u32 = ENCAPSULATION + IPV6_HEADER;

/// What a tunnel adds to a packet of its network, on an underlay of this address's family.
pub(super) fn overhead(underlay: IpAddr) -> u32 {
    ENCAPSULATION + if underlay.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nerve::model::{Cipher, NodeName};

    use super::super::ways::Way;
    use super::*;
    use proptest::prelude::*;

    fn network() -> Network {
        let json = serde_json::json!({
            "vni": 4096,
            "pools": [{"cidr": "10.42.0.0/16", "subnet_length": 24}, {"cidr": "fd42::/48", "subnet_length": 64}],
        });
        serde_json::from_value(json).unwrap()
    }

    fn subnet(slot: u32, address: &str) -> Subnet {
        let node = NodeName::new(&format!("n{slot}")).unwrap();
        Subnet::new(node, address.parse().unwrap(), mac(Slot(slot)))
    }

    fn links() -> Links {
        Links::new(&network(), Slot(3), ("192.0.2.1".parse().unwrap(), 4789), (1500, None)).unwrap()
    }

    #[test]
    fn links_follow_from_the_slot_and_the_network_beneath() {
        let of_a = links();
        assert_eq!(
            (of_a.bridge(), of_a.vxlan(), of_a.mtu),
            ("plxb4096".to_owned(), "plxv4096".to_owned(), 1450)
        );
        let gateways: Vec<String> =
            of_a.gateways().map(|(address, length)| format!("{address}/{length}")).collect();
        assert_eq!(gateways, ["10.42.3.1/24", "fd42:0:0:3::1/64"]);
        let over_v6 =
            Links::new(&network(), Slot(3), ("2001:db8::1".parse().unwrap(), 4789), (1500, None)).unwrap();
        assert_eq!(over_v6.mtu, 1430);
        let beyond = Links::new(&network(), Slot(256), ("192.0.2.1".parse().unwrap(), 4789), (1500, None));
        assert_eq!(beyond, None);
        // The longest names that there can be are names of links.
        assert!(vxlan(Vni::MAX).len() <= 15);
    }

    #[test]
    fn an_encrypted_network_reaches_peers_by_their_ways_alone() {
        let network = Network { transport: Transport::Encrypted, ..network() };
        let beneath = Beneath { index: 2, name: "eth0".to_owned(), range: "192.0.2.0/24".parse().unwrap() };
        let new = |address: &str| {
            let node = (address.parse().unwrap(), 4789);
            Links::new(&network, Slot(3), node, (1500, Some(&beneath))).unwrap()
        };
        let links = new("192.0.2.1");
        assert_eq!((links.port, links.mtu, links.end(), &links.beneath), (4791, 1370, None, &None));
        assert_eq!(new("2001:db8::1").mtu, 1350);
        let peer = subnet(7, "192.0.2.2");
        assert!(links.entries(&network, Slot(7), &peer).is_empty());
        let way = Way { cipher: Cipher::Esp, since: 0, link: 9, to: "fd00::7".parse().unwrap() };
        let ways = Arc::new(Ways::from([((peer.node.clone(), peer.address), way)]));
        let links = links.with_ways(Some(&ways));
        let entries = links.entries(&network, Slot(7), &peer);
        assert_eq!(entries[0], Entry::Forward { mac: peer.mac, to: "fd00::7".parse().unwrap(), by: Some(9) });
        assert_eq!(entries.len(), 5);
        assert!(links.entries(&network, Slot(8), &subnet(8, "192.0.2.3")).is_empty());
        // What is not encrypted has no use for them.
        assert_eq!(self::links().with_ways(Some(&ways)), self::links());
    }

    #[test]
    fn a_peer_is_a_forwarding_entry_and_a_neighbour_and_a_route_of_each_family() {
        let (of_a, peer) = (links(), subnet(7, "192.0.2.2"));
        let entries: Vec<String> =
            of_a.entries(&network(), Slot(7), &peer).iter().map(ToString::to_string).collect();
        let mac = peer.mac;
        assert_eq!(
            entries,
            [
                format!("the forwarding entry of {mac} to 192.0.2.2"),
                format!("the neighbour 10.42.7.1 at {mac}"),
                "the route to 10.42.7.0/24 by 10.42.7.1".to_owned(),
                format!("the neighbour fd42:0:0:7::1 at {mac}"),
                "the route to fd42:0:0:7::/64 by fd42:0:0:7::1".to_owned(),
            ]
        );
        assert!(of_a.entries(&network(), Slot(7), &subnet(7, "2001:db8::2")).is_empty());
    }

    /// As `links`, of a network without tunnels on one link.
    fn direct() -> (Network, Links) {
        let network = Network { transport: Transport::Direct, ..network() };
        let beneath = Beneath { index: 2, name: "eth0".to_owned(), range: "192.0.2.0/24".parse().unwrap() };
        let links =
            Links::new(&network, Slot(3), ("192.0.2.1".parse().unwrap(), 4789), (1500, Some(&beneath)));
        (network, links.unwrap())
    }

    #[test]
    fn a_peer_on_the_same_link_needs_no_tunnel_for_the_family_of_the_underlay() {
        let (network, of_a) = direct();
        let shown = |peer: &Subnet| -> Vec<String> {
            of_a.entries(&network, Slot(7), peer).iter().map(ToString::to_string).collect()
        };
        let peer = Subnet { link: Some("192.0.2.0/24".parse().unwrap()), ..subnet(7, "192.0.2.2") };
        let mac = peer.mac;
        assert_eq!(
            shown(&peer),
            [
                format!("the forwarding entry of {mac} to 192.0.2.2"),
                "the route to 10.42.7.0/24 by 192.0.2.2, without a tunnel,".to_owned(),
                format!("the neighbour fd42:0:0:7::1 at {mac}"),
                "the route to fd42:0:0:7::/64 by fd42:0:0:7::1".to_owned(),
            ]
        );
        // Behind a router, on a link of another range, or with an agent that knows nothing of it.
        for link in [None, Some("192.0.2.2"), Some("192.0.2.0/25"), Some("198.51.100.0/24")] {
            let other = Subnet { link: link.map(|link| link.parse().unwrap()), ..peer.clone() };
            assert_eq!(shown(&other).len(), 5, "{link:?}");
        }
        // Only where the network says so.
        assert_eq!(links().entries(&self::network(), Slot(7), &peer).len(), 5);
    }

    #[test]
    fn a_route_by_the_tunnel_is_replaced_by_one_without_and_not_removed_first() {
        let (network, of_a) = direct();
        let far = subnet(7, "192.0.2.2");
        let near = Subnet { link: Some("192.0.2.0/24".parse().unwrap()), ..far.clone() };
        let entries = |peer: &Subnet| -> BTreeSet<Entry> {
            of_a.entries(&network, Slot(7), peer).into_iter().collect()
        };
        let (add, remove) = difference(&entries(&near), &entries(&far));
        assert!(matches!(add[..], [Entry::Direct { .. }]), "{add:?}");
        assert!(matches!(remove[..], [Entry::Neighbour { .. }]), "{remove:?}");
    }

    #[test]
    fn a_peer_that_moves_is_replaced_and_not_removed_first() {
        let of_a = links();
        let entries =
            |address: &str| of_a.entries(&network(), Slot(7), &subnet(7, address)).into_iter().collect();
        let (add, remove) = difference(&entries("192.0.2.3"), &entries("192.0.2.2"));
        assert!(matches!(add[..], [Entry::Forward { .. }]) && remove.is_empty(), "{add:?} {remove:?}");
    }

    #[test]
    fn answers_to_clients_elsewhere_have_a_gateway_of_each_family() {
        let entries: Vec<String> = links().own_entries().map(|entry| entry.to_string()).collect();
        assert_eq!(
            entries,
            [
                "the neighbour 169.254.82.82 at 02:50:4c:00:00:00",
                "the route of table 1375735808 by 169.254.82.82",
                "the neighbour fe80::5252 at 02:50:4c:00:00:00",
                "the route of table 1375735808 by fe80::5252",
            ]
        );
    }

    #[test]
    fn the_mac_of_a_node_says_its_slot() {
        assert_eq!(mac(Slot(0x01_02_03)).to_string(), "02:50:4c:01:02:03");
        assert_eq!(mac(Slot(0)).0[0] & 0b11, 0b10, "of one device, and given by nobody");
    }

    proptest! {
        /// Whatever is there: afterwards there is what is wanted, and nothing is there without what it needs in between.
        #[test]
        fn the_difference_makes_what_is_there_what_is_wanted(
            wanted in proptest::collection::btree_set((0..20_u32, 1..4_u8), 0..20),
            there in proptest::collection::btree_set((0..20_u32, 1..4_u8), 0..20),
        ) {
            let (network, of_a) = (network(), links());
            let entries = |peers: &BTreeSet<(u32, u8)>| {
                // Of two addresses that a peer was seen at, the last one counts.
                let peers: BTreeMap<u32, u8> = peers.iter().copied().collect();
                let entries = peers.iter().flat_map(|(slot, host)| {
                    let peer = subnet(*slot, &format!("192.0.2.{host}"));
                    of_a.entries(&network, Slot(*slot), &peer)
                });
                entries.collect::<BTreeSet<Entry>>()
            };
            let (wanted, there) = (entries(&wanted), entries(&there));
            let (add, remove) = difference(&wanted, &there);
            // As the kernel does it: what is added takes the place of what stands there.
            let mut kernel: BTreeMap<Place, Entry> = there.iter().map(|entry| (entry.place(), *entry)).collect();
            for entry in &remove {
                prop_assert!(kernel.remove(&entry.place()).is_some());
                if let Entry::Neighbour { gateway, .. } = entry {
                    let needs_it = |other: &Entry| matches!(other, Entry::Route { gateway: by, .. } if by == gateway);
                    prop_assert!(!kernel.values().any(needs_it), "a route leads to nobody");
                }
            }
            for entry in &add {
                if let Entry::Route { gateway, .. } = entry {
                    prop_assert!(kernel.contains_key(&Place::Neighbour(*gateway)), "a route before its gateway");
                }
                kernel.insert(entry.place(), *entry);
            }
            prop_assert_eq!(kernel.into_values().collect::<BTreeSet<_>>(), wanted);
        }
    }
}
