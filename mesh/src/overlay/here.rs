//! A network on this node, as it was set up in the kernel (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nerve::model::{Mac, Network, NetworkName, Prefix, Slot};
use synapse::catalog::NetworkView;

use super::firewall::{Direct, Zone};
use super::netlink::Indexes;
use super::plan::{Entry, Links, Place};

/// What this node has of it.
pub(super) struct Here {
    pub(super) slot: Slot,
    pub(super) network: Arc<Network>,
    pub(super) links: Links,
    pub(super) indexes: Indexes,
    pub(super) entries: Entries,
}

impl Here {
    /// Where packets of peers come without a tunnel, and from which subnets.
    pub(super) fn direct(&self) -> Option<Direct> {
        let subnet = |entry: Entry| match entry {
            Entry::Direct { subnet, .. } => Some(subnet),
            _ => None,
        };
        let sources = self.entries.all().into_iter().filter_map(subnet).collect();
        self.links.beneath.as_ref().map(|beneath| Direct { link: beneath.name.clone(), sources })
    }

    /// So many nodes can be reached.
    pub(super) fn peers(&self) -> usize {
        self.entries.of.keys().filter(|slot| **slot != self.slot).count()
    }
}

/// The networks of a node, as the packet filter knows them.
pub(super) fn zones(here: &BTreeMap<NetworkName, Here>) -> BTreeSet<Zone> {
    // What an encrypted network said to one that is not would be in the clear.
    let is_alike = |one: &Here, other: &&Here| one.network.is_encrypted() == other.network.is_encrypted();
    let zone = |one: &Here| Zone {
        vni: one.network.vni,
        ranges: one.network.pools.iter().map(|pool| pool.cidr()).collect(),
        reaches: {
            let reached = one.network.reaches.iter().filter_map(|name| here.get(name));
            reached.filter(|other| is_alike(one, other)).map(|other| other.network.vni).collect()
        },
        direct: one.direct(),
    };
    here.values().map(zone).collect()
}

/// The MACs of the nodes that subnets are behind, by the tunnel.
pub(super) fn behind_tunnel(entries: &BTreeSet<Entry>) -> BTreeMap<Prefix, Mac> {
    let macs: BTreeMap<IpAddr, Mac> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Neighbour { gateway, mac } => Some((*gateway, *mac)),
            _ => None,
        })
        .collect();
    let subnet = |entry: &Entry| match entry {
        Entry::Route { subnet, gateway, .. } => Some((*subnet, *macs.get(gateway)?)),
        _ => None,
    };
    entries.iter().filter_map(subnet).collect()
}

/// The entries of a network, by whose slot they are for: those of peers, and those that are there whoever the peers are.
///
/// Of several in one place the kernel has one: that of the first of their slots. So what stands there follows from the records alone,
/// and not from which of them came first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Entries {
    of: BTreeMap<Slot, Vec<Entry>>,
    places: BTreeMap<(Place, Slot), Entry>,
}

/// What a change takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// What is to stand in the places that it is about.
    pub(super) wanted: BTreeSet<Entry>,
    /// What stands there.
    pub(super) there: BTreeSet<Entry>,
    /// What the slot had, to go back to where it fails.
    pub(super) before: Vec<Entry>,
}

impl Entries {
    /// What holders of slots need here, and what this node itself needs.
    pub(super) fn new(links: &Links, view: &NetworkView, own: Slot) -> Self {
        let mut entries = Self::default();
        for (slot, peer) in view.subnets.all().into_iter().filter(|(slot, _)| *slot != own) {
            entries.put(slot, links.entries(&view.network, slot, &peer));
        }
        entries.put(own, links.own_entries().collect());
        entries
    }

    /// All that the kernel is to have.
    pub(super) fn all(&self) -> BTreeSet<Entry> {
        let mut last = None;
        let firsts = self.places.iter().filter(|((place, _), _)| last.replace(*place) != Some(*place));
        firsts.map(|(_, entry)| *entry).collect()
    }

    /// What is to stand in a place.
    pub(super) fn at(&self, place: Place) -> Option<Entry> {
        let of_all = (place, Slot(0))..=(place, Slot(u32::MAX));
        self.places.range(of_all).next().map(|(_, entry)| *entry)
    }

    /// A slot's entries are these from now on.
    pub(super) fn change(&mut self, slot: Slot, after: Vec<Entry>) -> Step {
        let before = self.of.get(&slot).cloned().unwrap_or_default();
        let places: BTreeSet<Place> = before.iter().chain(&after).map(Entry::place).collect();
        let standing = |entries: &Self| places.iter().filter_map(|place| entries.at(*place)).collect();
        let there = standing(self);
        self.put(slot, after);
        Step { wanted: standing(self), there, before }
    }

    fn put(&mut self, slot: Slot, entries: Vec<Entry>) {
        for entry in self.of.remove(&slot).unwrap_or_default() {
            self.places.remove(&(entry.place(), slot));
        }
        self.places.extend(entries.iter().map(|entry| ((entry.place(), slot), *entry)));
        if !entries.is_empty() {
            self.of.insert(slot, entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(mac: u8, host: u8) -> Entry {
        Entry::Forward { mac: Mac([2, 0, 0, 0, 0, mac]), to: IpAddr::from([192, 0, 2, host]), by: None }
    }

    #[test]
    fn a_subnet_is_behind_the_tunnel_where_its_gateway_is_a_neighbour_there() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let subnet = |n: u8| format!("10.42.{n}.0/24").parse::<Prefix>().unwrap();
        let (source, mac) = (address("10.42.1.1"), Mac([2, 0, 0, 0, 0, 7]));
        let entries = BTreeSet::from([
            Entry::Neighbour { gateway: address("10.42.7.1"), mac },
            Entry::Route { subnet: subnet(7), gateway: address("10.42.7.1"), source },
            Entry::Route { subnet: subnet(8), gateway: address("10.42.8.1"), source },
            Entry::Direct { subnet: subnet(9), via: address("192.0.2.9"), link: 2, source },
            forward(9, 9),
        ]);
        assert_eq!(behind_tunnel(&entries), [(subnet(7), mac)].into());
    }

    #[test]
    fn a_change_is_about_the_places_of_one_slot() {
        let mut entries = Entries::default();
        entries.change(Slot(1), vec![forward(1, 1)]);
        let step = entries.change(Slot(2), vec![forward(2, 2)]);
        assert_eq!((step.there.len(), step.wanted), (0, [forward(2, 2)].into()));
        let step = entries.change(Slot(2), vec![forward(2, 3)]);
        assert_eq!((step.there, step.wanted), ([forward(2, 2)].into(), [forward(2, 3)].into()));
        assert_eq!(step.before, [forward(2, 2)]);
        let step = entries.change(Slot(2), Vec::new());
        assert_eq!((step.there, step.wanted.len()), ([forward(2, 3)].into(), 0));
        assert_eq!(entries.all(), [forward(1, 1)].into());
    }

    #[test]
    fn what_two_slots_need_stays_until_neither_does() {
        let mut entries = Entries::default();
        for slot in [2, 1] {
            entries.change(Slot(slot), vec![forward(7, 7)]);
        }
        let step = entries.change(Slot(1), Vec::new());
        assert_eq!(step.there, step.wanted, "nothing is to be done");
        let step = entries.change(Slot(2), Vec::new());
        assert!(step.there.len() == 1 && step.wanted.is_empty());
    }

    #[test]
    fn of_two_in_one_place_the_first_slot_has_it_whoever_came_first() {
        let (mut one, mut other) = (Entries::default(), Entries::default());
        for slot in [1, 2] {
            one.change(Slot(slot), vec![forward(7, u8::try_from(slot).unwrap())]);
            other.change(Slot(3 - slot), vec![forward(7, u8::try_from(3 - slot).unwrap())]);
        }
        assert_eq!(one, other);
        assert_eq!(one.all(), [forward(7, 1)].into());
        let step = one.change(Slot(1), Vec::new());
        assert_eq!((step.there, step.wanted), ([forward(7, 1)].into(), [forward(7, 2)].into()));
    }
}
