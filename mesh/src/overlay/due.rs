//! What is to be compared with the kernel, when, and why (pure).
//!
//! Everything that the keeper looks after has parts, each of which is compared by itself. What happened makes the parts due that it is
//! about and no others; on a slow tick all of them are. So nothing depends on having been told of everything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nerve::model::NetworkName;
use tokio::time::Instant;

use super::events::Event;
use super::here::Here;
use super::names::{bridge, vxlan};
use super::netlink::{Link, LinkKind, is_ours};
use super::sealed::is_sealed;
use super::veth::LINK as CONTAINER;

/// A part, in the order in which those that are due at once are compared: what comes later follows from what comes before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The addresses of this host, and the link beneath the networks.
    Host,
    /// The links that encrypt, and the ways to peers by them.
    Sealed,
    /// The links and entries of one network.
    Network(NetworkName),
    /// What others' packet filters let pass.
    Others,
    /// What the packet filter lets pass, and then to which networks containers can be attached.
    Filter,
    /// What leads answers back to clients elsewhere.
    Returns,
    /// The short way of packets between containers.
    FastPath,
    /// What is there of networks that are no more.
    Obsolete,
}

/// Why a part is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The agent has begun to look after it.
    Start,
    /// It is a while since.
    Tick,
    /// The kernel tells more than could be read.
    Overrun,
    /// The kernel tells that something of it went or was changed.
    Kernel,
    /// The catalog, or this node's share of a network, has changed.
    Catalog,
    /// A part that it follows from was compared.
    Follows,
    /// It failed a moment ago.
    Failed,
}

impl Part {
    /// The word for it in metrics.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Sealed => "sealed",
            Self::Network(_) => "network",
            Self::Others => "others",
            Self::Filter => "filter",
            Self::Returns => "returns",
            Self::FastPath => "fast_path",
            Self::Obsolete => "obsolete",
        }
    }
}

impl Reason {
    /// The word for it in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Tick => "tick",
            Self::Overrun => "overrun",
            Self::Kernel => "kernel",
            Self::Catalog => "catalog",
            Self::Follows => "follows",
            Self::Failed => "failed",
        }
    }

    /// May the kernel have something else than what was set last?
    pub(super) fn is_doubt(self) -> bool {
        !matches!(self, Self::Catalog | Self::Follows)
    }
}

/// What is due, and from when on.
#[derive(Debug, Default)]
pub(super) struct Due(BTreeMap<Part, Instant>);

impl Due {
    /// A part is due from that moment on, or was before. Tells whether it was not.
    pub(super) fn add(&mut self, part: Part, at: Instant) -> bool {
        let known = self.0.get(&part).copied();
        self.0.insert(part, known.map_or(at, |known| known.min(at)));
        known.is_none()
    }

    /// When the next one is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }

    /// The first of those that are due by now.
    pub(super) fn take(&mut self, now: Instant) -> Option<Part> {
        let part = self.0.iter().find(|(_, at)| **at <= now)?.0.clone();
        self.0.remove(&part);
        Some(part)
    }
}

/// What an event is about. Most are about nothing: what others do with what is theirs, and what we have done ourselves, after which
/// everything is as it is wanted.
///
/// `own`: the addresses of this host that are known.
pub(super) fn concerned(
    event: &Event,
    here: &BTreeMap<NetworkName, Here>,
    own: &BTreeSet<IpAddr>,
) -> BTreeSet<Part> {
    let networks = |is_it: &dyn Fn(&Here) -> bool| -> BTreeSet<Part> {
        let found = here.iter().filter(|(_, here)| is_it(here));
        found.map(|(name, _)| Part::Network(name.clone())).collect()
    };
    match event {
        // That is another matter: of everything.
        Event::Overrun => BTreeSet::new(),
        Event::Gone { link, place } => networks(&|here| {
            (here.indexes.vxlan == *link || beneath(here) == Some(*link)) && here.entries.at(*place).is_some()
        }),
        Event::Link { index, name, now } => {
            let mut parts = networks(&|here| is_harmed(here, *index, name, now.as_ref()));
            if here.values().any(|here| beneath(here) == Some(*index)) {
                parts.insert(Part::Host);
            }
            let is_known = here.values().any(|here| is_of(here, *index) || names_of(here).contains(name));
            if now.is_some() && is_ours(name) && !is_known {
                parts.insert(Part::Obsolete);
            }
            if is_sealed(name) && now.as_ref().is_none_or(|now| !now.is_up) {
                parts.insert(Part::Sealed);
            }
            if name.starts_with(CONTAINER) {
                parts.insert(Part::FastPath);
            }
            parts
        }
        Event::Address { link, address, came, outside } => {
            let is_of_network = here.values().any(|here| is_of(here, *link));
            let mut parts = networks(&|here| !came && wants_address(here, *link, *address));
            if !is_of_network && *outside && !(*came && own.contains(&address.0)) {
                parts.insert(Part::Host);
            }
            parts
        }
        Event::Rule { from } => {
            let is_wanted = here.values().any(|here| bridge(here.links.vni) == *from);
            is_wanted.then_some(Part::Returns).into_iter().collect()
        }
        Event::Control if here.is_empty() => BTreeSet::new(),
        Event::Control => [Part::FastPath].into(),
    }
}

/// The link on which its packets pass without a tunnel.
fn beneath(here: &Here) -> Option<u32> {
    here.links.beneath.as_ref().map(|beneath| beneath.index)
}

fn is_of(here: &Here, index: u32) -> bool {
    [here.indexes.bridge, here.indexes.vxlan].contains(&index)
}

fn names_of(here: &Here) -> [String; 2] {
    [bridge(here.links.vni), vxlan(here.links.vni)]
}

/// Is a link, as it is now, not what it is to be in this network?
fn is_harmed(here: &Here, index: u32, name: &str, now: Option<&Link>) -> bool {
    if beneath(here) == Some(index) {
        // With its state, routes go that nothing is told of.
        return true;
    }
    let Some(now) = now else { return is_of(here, index) };
    let is_right = |wanted: u32, name_wanted: &str, kind: &LinkKind| {
        index == wanted && name == name_wanted && now.kind == *kind && now.is_set_as(&here.links)
    };
    let ([bridge, vxlan], tunnel) = (names_of(here), LinkKind::of_vxlan(&here.links));
    let is_about = is_of(here, index) || name == bridge || name == vxlan;
    is_about
        && !is_right(here.indexes.bridge, &bridge, &LinkKind::Bridge)
        && !is_right(here.indexes.vxlan, &vxlan, &tunnel)
}

/// Does it need an address of a link, or what goes with it: of the link beneath, routes that nothing is told of?
fn wants_address(here: &Here, link: u32, address: (IpAddr, u8)) -> bool {
    beneath(here) == Some(link)
        || here.indexes.bridge == link && here.links.bridge_addresses().contains(&address)
        || here.indexes.vxlan == link && here.links.vxlan_addresses().contains(&address)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::time::Duration;

    use nerve::model::{Mac, Network, NodeName, Slot, Subnet};
    use proptest::prelude::*;

    use super::super::here::Entries;
    use super::super::netlink::Indexes;
    use super::super::plan::{Beneath, Entry, Links, Place, difference};
    use super::*;

    const OWN: Slot = Slot(3);
    const ETH0: u32 = 2;

    fn network(vni: u32, direct: bool) -> Arc<Network> {
        let json = serde_json::json!({
            "vni": vni, "direct": direct,
            "pools": [{"cidr": format!("10.{}.0.0/16", vni % 256), "subnet_length": 24}, {"cidr": "fd42::/48", "subnet_length": 64}],
        });
        Arc::new(serde_json::from_value(json).unwrap())
    }

    /// A node's part of a network without peers; its links have the indexes `at` and the next one.
    fn here(network: &Arc<Network>, at: u32) -> Here {
        let beneath =
            Beneath { index: ETH0, name: "eth0".to_owned(), range: "192.0.2.0/24".parse().unwrap() };
        let node = ("192.0.2.1".parse().unwrap(), 4789);
        let links = Links::new(network, OWN, node, (1500, Some(&beneath))).unwrap();
        let mut entries = Entries::default();
        entries.change(OWN, links.own_entries().collect());
        let indexes = Indexes { bridge: at, vxlan: at + 1 };
        Here { slot: OWN, network: Arc::clone(network), links, indexes, entries }
    }

    /// `blue` with links 10 and 11, `near` without tunnels with links 20 and 21.
    fn both() -> BTreeMap<NetworkName, Here> {
        let named = |name: &str, here: Here| (NetworkName::new(name).unwrap(), here);
        [named("blue", here(&network(7, false), 10)), named("near", here(&network(8, true), 20))].into()
    }

    fn peer(host: u8, mac: u8) -> Subnet {
        let node = NodeName::new(&format!("n{host}")).unwrap();
        Subnet::new(node, format!("192.0.2.{host}").parse().unwrap(), Mac([2, 0, 0, 0, 0, mac]))
    }

    fn entries_of(here: &Here, slot: u32, peer: &Subnet) -> Vec<Entry> {
        here.links.entries(&here.network, Slot(slot), peer)
    }

    fn blue() -> Part {
        Part::Network(NetworkName::new("blue").unwrap())
    }

    fn near() -> Part {
        Part::Network(NetworkName::new("near").unwrap())
    }

    fn about(event: &Event, here: &BTreeMap<NetworkName, Here>) -> Vec<Part> {
        concerned(event, here, &BTreeSet::from(["198.51.100.9".parse().unwrap()])).into_iter().collect()
    }

    #[test]
    fn an_entry_that_went_concerns_the_network_that_wants_it_and_no_other() {
        let mut here = both();
        let blue_here = here.values_mut().next().unwrap();
        let entries = entries_of(blue_here, 5, &peer(5, 5));
        blue_here.entries.change(Slot(5), entries.clone());
        let own: Vec<Entry> = blue_here.links.own_entries().collect();
        for entry in entries.iter().chain(&own) {
            let gone = |link| Event::Gone { link, place: entry.place() };
            assert_eq!(about(&gone(11), &here), [blue()], "{entry}");
            assert_eq!(about(&gone(30), &here), [], "{entry} on a link of somebody else");
        }
        // As after the peer went, and what was its was removed.
        here.values_mut().next().unwrap().entries.change(Slot(5), Vec::new());
        for entry in entries {
            assert_eq!(about(&Event::Gone { link: 11, place: entry.place() }, &here), [], "{entry}");
        }
    }

    #[test]
    fn a_route_without_a_tunnel_is_looked_for_on_the_link_beneath() {
        let mut here = both();
        let near_here = here.values_mut().last().unwrap();
        let peer = Subnet { link: Some("192.0.2.0/24".parse().unwrap()), ..peer(5, 5) };
        let entries = entries_of(near_here, 5, &peer);
        near_here.entries.change(Slot(5), entries);
        let place = Place::Route("10.8.5.0/24".parse().unwrap());
        assert_eq!(about(&Event::Gone { link: ETH0, place }, &here), [near()]);
    }

    #[test]
    fn a_link_concerns_its_network_when_it_is_not_as_it_is_to_be() {
        let here = both();
        let links = &here.values().next().unwrap().links;
        let right = Link {
            index: 11,
            is_up: true,
            mtu: links.mtu,
            mac: Some(links.mac),
            kind: LinkKind::of_vxlan(links),
        };
        let told = |index, name: &str, now: Option<Link>| {
            about(&Event::Link { index, name: name.to_owned(), now }, &here)
        };
        assert_eq!(told(11, "plxv7", Some(right.clone())), [], "what we have made ourselves");
        assert_eq!(told(11, "plxv7", None), [blue()]);
        assert_eq!(told(11, "plxv7", Some(Link { is_up: false, ..right.clone() })), [blue()]);
        assert_eq!(told(11, "plxv7", Some(Link { mtu: 1280, ..right.clone() })), [blue()]);
        assert_eq!(told(11, "other", Some(right.clone())), [blue()], "renamed");
        assert_eq!(
            told(12, "plxv7", Some(Link { index: 12, ..right.clone() })),
            [blue()],
            "its name is another's"
        );
        assert_eq!(told(9, "plxv7", None), [], "the one before");
        let other = Link { kind: LinkKind::Other, ..right };
        assert_eq!(told(40, "plxe00000000001", Some(other.clone())), [Part::FastPath], "a container's");
        assert_eq!(told(40, "plxe00000000001", None), [Part::FastPath]);
        assert_eq!(told(41, "plxb77", Some(other.clone())), [Part::Obsolete]);
        assert_eq!(told(41, "plxb77", None), []);
        assert_eq!(told(50, "plxw0", Some(other.clone())), []);
        assert_eq!(told(50, "plxw0", Some(Link { is_up: false, ..other.clone() })), [Part::Sealed]);
        assert_eq!(told(50, "plxw0", None), [Part::Sealed]);
        assert_eq!(told(ETH0, "eth0", Some(other)), [Part::Host, near()]);
    }

    #[test]
    fn addresses_are_of_a_network_or_of_the_host() {
        let here = both();
        let told = |link, address: &str, length, came| {
            let address = (address.parse().unwrap(), length);
            about(
                &Event::Address { link, address, came, outside: !address.0.to_string().starts_with("fe80") },
                &here,
            )
        };
        assert_eq!(told(10, "10.7.3.1", 24, false), [blue()]);
        assert_eq!(told(11, "10.7.3.1", 32, false), [blue()]);
        assert_eq!(told(10, "fe80::1", 64, false), [blue()]);
        assert_eq!(told(10, "10.7.3.1", 24, true), [], "what we have given it ourselves");
        assert_eq!(told(10, "10.7.3.9", 24, false), [], "what was never to be there");
        assert_eq!(told(ETH0, "192.0.2.1", 24, true), [Part::Host]);
        assert_eq!(told(ETH0, "192.0.2.1", 24, false), [Part::Host, near()]);
        assert_eq!(told(30, "198.51.100.7", 24, true), [Part::Host]);
        assert_eq!(told(30, "198.51.100.9", 24, true), [], "it is known, and renewed");
        assert_eq!(told(30, "198.51.100.9", 24, false), [Part::Host]);
        assert_eq!(told(30, "fe80::9", 64, true), []);
    }

    #[test]
    fn a_rule_that_went_is_missed_where_its_network_is() {
        let told = |from: &str| about(&Event::Rule { from: from.to_owned() }, &both());
        assert_eq!(told("plxb7"), [Part::Returns]);
        assert_eq!(told("plxb99"), []);
    }

    #[tokio::test(start_paused = true)]
    async fn parts_are_due_once_in_their_order_and_not_before_their_time() {
        let (mut due, now) = (Due::default(), Instant::now());
        let later = now + Duration::from_secs(2);
        assert!(due.add(Part::Filter, now) && due.add(blue(), later) && due.add(Part::Host, now));
        assert!(!due.add(Part::Filter, later), "it is due already, and stays so");
        assert_eq!(due.next(), Some(now));
        assert_eq!(
            [due.take(now), due.take(now), due.take(now)],
            [Some(Part::Host), Some(Part::Filter), None]
        );
        assert!(!due.add(blue(), now), "the earlier time counts");
        assert_eq!((due.take(now), due.next()), (Some(blue()), None));
    }

    #[derive(Debug, Clone)]
    enum Happens {
        /// A peer came, changed (its address, its MAC), or went.
        Peer(u32, Option<(u8, u8)>),
        /// Somebody takes an entry away.
        Harm(usize),
        /// The next event is read.
        Read,
        /// There were too many events.
        Overrun,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        let peer = proptest::option::weighted(0.7, (5..9_u8, 0..4_u8));
        prop_oneof![
            4 => (4..10_u32, peer).prop_map(|(slot, peer)| Happens::Peer(slot, peer)),
            2 => (0..40_usize).prop_map(Happens::Harm),
            3 => Just(Happens::Read),
            1 => Just(Happens::Overrun),
        ]
    }

    /// A kernel with what we know of it.
    struct Node {
        kernel: BTreeMap<Place, Entry>,
        events: VecDeque<Event>,
        here: BTreeMap<NetworkName, Here>,
    }

    impl Node {
        fn blue(&mut self) -> &mut Here {
            self.here.values_mut().next().unwrap()
        }

        fn remove(&mut self, place: Place) {
            if self.kernel.remove(&place).is_some() {
                self.events.push_back(Event::Gone { link: 11, place });
            }
        }

        fn apply(&mut self, wanted: &BTreeSet<Entry>, there: &BTreeSet<Entry>) {
            let (add, remove) = difference(wanted, there);
            remove.iter().for_each(|entry| self.remove(entry.place()));
            self.kernel.extend(add.iter().map(|entry| (entry.place(), *entry)));
        }

        fn compare(&mut self) {
            let (wanted, there) = (self.blue().entries.all(), self.kernel.values().copied().collect());
            self.apply(&wanted, &there);
        }

        fn read(&mut self) {
            let Some(event) = self.events.pop_front() else { return };
            if about(&event, &self.here).contains(&blue()) {
                self.compare();
            }
        }
    }

    proptest! {
        /// However changes of peers, harm and events follow each other, and however late these are read: in the end there is what
        /// a comparison of everything with the records would make.
        #[test]
        fn what_is_done_piece_by_piece_ends_as_if_everything_was_compared(all in proptest::collection::vec(happens(), 0..60)) {
            let mut node = Node { kernel: BTreeMap::new(), events: VecDeque::new(), here: both() };
            let mut records = BTreeMap::new();
            node.compare();
            for what in all {
                match what {
                    Happens::Peer(slot, record) => {
                        let record = record.map(|(host, mac)| peer(host, mac));
                        let after = record.as_ref().map(|peer| entries_of(node.blue(), slot, peer));
                        let step = node.blue().entries.change(Slot(slot), after.unwrap_or_default());
                        node.apply(&step.wanted, &step.there);
                        records.insert(slot, record);
                    }
                    Happens::Harm(nth) => {
                        let place = node.kernel.keys().nth(nth).copied();
                        place.into_iter().for_each(|place| node.remove(place));
                    }
                    Happens::Read => node.read(),
                    Happens::Overrun => {
                        node.events.clear();
                        node.compare();
                    }
                }
            }
            while !node.events.is_empty() {
                node.read();
            }
            let mut anew = here(&network(7, false), 10);
            for (slot, peer) in records.iter().filter_map(|(slot, peer)| Some((slot, peer.as_ref()?))) {
                let entries = entries_of(&anew, *slot, peer);
                anew.entries.change(Slot(*slot), entries);
            }
            prop_assert_eq!(node.kernel.values().copied().collect::<BTreeSet<_>>(), anew.entries.all());
            prop_assert_eq!(&node.blue().entries, &anew.entries);
        }
    }
}
