//! Programs in the kernel that send packets between containers of different nodes on, at once where they come in (Linux 5.10).
//!
//! They stand before the packet filter's short way ([`fast_path`](super::fast_path)), which has what they leave, and everything where there
//! are none. They stay while no agent runs, with what they knew last; the next one puts its own in their place.

mod classifiers;
mod code;
mod path;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use nerve::model::{Mac, Prefix, Vni};

use super::netlink::Netlink;
use crate::sys::bpf::Classifier;
use classifiers::There;
pub(in crate::overlay) use path::{Range, Shape};
use path::{container_value, inward, key, link_of, outward, peer_value};
use table::Table;

/// So many subnets of peers a network's map has; what goes to others is left to the packet filter.
const MOST_PEERS: u32 = 1 << 14;
/// So many addresses of containers.
const MOST_CONTAINERS: u32 = 1 << 12;

/// The networks that have programs.
#[derive(Debug, Default)]
pub(super) struct Programs {
    of: BTreeMap<Vni, Installed>,
    /// Where ours are, by the index of the link, and which.
    at: BTreeMap<u32, u32>,
    /// All that is there was looked at once.
    are_known: bool,
}

/// What a network's programs are to do.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) shape: Shape,
    /// The MACs of peers behind the tunnel, by their subnets.
    pub(super) peers: BTreeMap<Prefix, Mac>,
    /// The containers here whose packets may pass so, by the index of their links.
    pub(super) containers: BTreeMap<u32, Container>,
}

/// A container here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) mac: Mac,
    pub(super) addresses: Vec<IpAddr>,
}

/// A network's programs, and what they read.
#[derive(Debug)]
struct Installed {
    shape: Shape,
    outward: Program,
    inward: Program,
    peers: Table<{ path::PEER }>,
    containers: Table<{ path::CONTAINER }>,
}

#[derive(Debug)]
struct Program {
    loaded: Classifier,
    id: u32,
}

impl Programs {
    /// Somebody may have changed what is there.
    pub(super) fn doubt(&mut self) {
        self.are_known = false;
    }

    /// Makes them those of these networks, and removes ours from the other ones of `links`, which are all that can have one. `inward`:
    /// they see what arrives by tunnels as well. Tells how many containers they see the packets of.
    ///
    /// # Errors
    /// The kernel takes none, or not all of it.
    pub(super) async fn ensure(
        &mut self,
        netlink: &Netlink,
        mut wanted: BTreeMap<Vni, Wanted>,
        inward: bool,
        links: &BTreeSet<u32>,
    ) -> io::Result<usize> {
        let control = netlink.traffic_control().await?;
        let of = |link: &u32| control.get(link).copied().unwrap_or_default();
        let mut places = BTreeMap::<u32, (RawFd, u32)>::new();
        for wanted in wanted.values_mut() {
            // What somebody shapes or polices, he is to see.
            wanted.containers.retain(|link, _| !of(link).is_others);
        }
        wanted.retain(|_, wanted| !wanted.containers.is_empty());
        self.of
            .retain(|vni, installed| wanted.get(vni).is_some_and(|wanted| wanted.shape == installed.shape));
        for (vni, wanted) in &wanted {
            if !self.of.contains_key(vni) {
                self.of.insert(*vni, Installed::load(wanted.shape.clone())?);
            }
        }
        for (vni, installed) in &mut self.of {
            let Some(wanted) = wanted.get(vni) else { continue };
            installed.ensure(wanted)?;
            places.extend(wanted.containers.keys().map(|link| (*link, installed.outward.place())));
            if inward && !of(&installed.shape.tunnel).is_others {
                places.insert(installed.shape.tunnel, installed.inward.place());
            }
        }
        self.at.retain(|link, _| links.contains(link));
        for link in links.iter().filter(|link| !places.contains_key(link)) {
            if self.at.contains_key(link) || !self.are_known && of(link).has_place {
                netlink.remove_classifier(*link).await?;
                self.at.remove(link);
            }
        }
        for (link, (program, id)) in places {
            if self.are_known && of(&link).has_place && self.at.get(&link) == Some(&id) {
                continue;
            }
            self.at.remove(&link);
            if of(&link).has_place && place(netlink, link, (program, id)).await? {
                self.at.insert(link, id);
            }
        }
        self.are_known = true;
        let seen = |wanted: &Wanted| {
            let is_seen = |link: &&u32| self.at.contains_key(link);
            let all = wanted.containers.keys();
            if is_seen(&&wanted.shape.tunnel) { all.count() } else { all.filter(is_seen).count() }
        };
        Ok(wanted.values().map(seen).sum())
    }

    /// The MACs of a network's peers behind the tunnel have changed; `None`: there is none behind it any more.
    pub(super) fn change_peers(
        &mut self,
        vni: Vni,
        changes: &BTreeMap<Prefix, Option<Mac>>,
    ) -> io::Result<()> {
        let Some(installed) = self.of.get_mut(&vni) else { return Ok(()) };
        let change = |(subnet, mac): (&Prefix, &Option<Mac>)| {
            installed.peers.change(key(subnet.network()), mac.map(peer_value))
        };
        changes.iter().try_for_each(change)
    }

    /// A container's link is gone: its addresses may be another one's soon.
    pub(super) fn forget(&mut self, link: u32) -> io::Result<()> {
        self.at.remove(&link);
        let mut of_all = self.of.values_mut();
        of_all.try_for_each(|installed| installed.containers.retain(|_, value| link_of(value) != link))
    }
}

/// Puts a program at the place that a link has for it, where nobody else has one. Tells whether it is there.
async fn place(netlink: &Netlink, link: u32, (program, id): (RawFd, u32)) -> io::Result<bool> {
    match netlink.classifier(link).await? {
        There { ours, others: true } => {
            if ours.is_some() {
                netlink.remove_classifier(link).await?;
            }
            return Ok(false);
        }
        There { ours, .. } if ours == Some(id) => {}
        There { .. } => netlink.set_classifier(link, program).await?,
    }
    Ok(true)
}

impl Installed {
    fn load(shape: Shape) -> io::Result<Self> {
        let (peers, containers) = (Table::new(MOST_PEERS)?, Table::new(MOST_CONTAINERS)?);
        let load = |instructions: io::Result<Vec<_>>| {
            let loaded = Classifier::load(&instructions?)?;
            Ok::<_, io::Error>(Program { id: loaded.id()?, loaded })
        };
        let outward = load(outward(&shape, peers.map.number()))?;
        let inward = load(inward(&shape, containers.map.number()))?;
        Ok(Self { shape, outward, inward, peers, containers })
    }

    fn ensure(&mut self, wanted: &Wanted) -> io::Result<()> {
        let peers = wanted.peers.iter();
        self.peers.set(peers.map(|(subnet, mac)| (key(subnet.network()), peer_value(*mac))).collect())?;
        let addresses = wanted.containers.iter().flat_map(|(link, container)| {
            let value = container_value(container.mac, *link);
            container.addresses.iter().map(move |address| (key(*address), value))
        });
        self.containers.set(addresses.collect())
    }
}

impl Program {
    /// What netlink and what the kernel call it by.
    fn place(&self) -> (RawFd, u32) {
        (self.loaded.number(), self.id)
    }
}
