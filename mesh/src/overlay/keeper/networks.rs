//! This host, networks on it, and what is there of networks that are no more.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nerve::model::{Mac, NetworkName, Pool, Prefix, Slot, Transport};
use synapse::catalog::{Freshness, NetworkView};
use tokio::time::Instant;

use super::{ASK, Host, Keeper, LEAST_MTU, place, send_if_new};
use crate::overlay::due::{Part, Reason};
use crate::overlay::here::{Entries, Here, Step, behind_tunnel};
use crate::overlay::netlink::Netlink;
use crate::overlay::plan::{self, Entry, Links, difference};
use crate::overlay::underlay::Underlay;
use crate::overlay::{Config, FastPath, Metrics, names, sysctl};

impl Keeper {
    pub(super) async fn look_at_host(&mut self, netlink: &Netlink) -> io::Result<()> {
        let underlay = self.underlay(netlink).await?;
        let mut own = netlink.own_addresses(&self.links()).await?;
        own.remove(&self.config.address);
        let known = self.host.replace(Host { underlay: underlay.clone(), own: own.clone() });
        if known.as_ref().is_none_or(|known| known.underlay != underlay) {
            let held: Vec<NetworkName> = self.held.borrow().keys().cloned().collect();
            self.expect(Part::Sealed, Reason::Follows, Duration::ZERO);
            for name in held {
                self.expect(Part::Network(name), Reason::Follows, Duration::ZERO);
            }
        }
        if known.is_none_or(|known| known.own != own) {
            self.expect(Part::Returns, Reason::Follows, Duration::ZERO);
        }
        Ok(())
    }

    /// Those of networks here.
    fn links(&self) -> BTreeSet<u32> {
        self.here.values().flat_map(|here| [here.indexes.bridge, here.indexes.vxlan]).collect()
    }

    /// The network beneath, with what packets to every peer may have.
    async fn underlay(&mut self, netlink: &Netlink) -> io::Result<Underlay> {
        let address = self.config.address;
        let underlay = netlink.underlay(address).await?;
        let range = underlay.beneath.as_ref().map(|beneath| beneath.range);
        send_if_new(&self.tell.link, range);
        if self.asked.is_none_or(|asked| asked.elapsed() >= ASK) {
            self.asked = Some(Instant::now());
            let held = self.held.borrow().clone();
            let views = held.keys().filter_map(|name| self.catalog.network(name.as_str()));
            let peers = views.flat_map(|view| view.subnets.all()).map(|(_, peer)| peer.address);
            let known = netlink.narrowest(peers.filter(|peer| *peer != address).collect()).await?;
            let before = self.narrowest.map_or(underlay.mtu, |(mtu, _)| mtu);
            if let Some((mtu, peer)) = known.filter(|(mtu, _)| *mtu < before) {
                tracing::warn!(
                    %peer, mtu, before,
                    "the way to a node passes smaller packets than this node's link; networks whose MTU was not set have less from now \
                     on, until the agent is restarted"
                );
                self.narrowest = Some((mtu, peer));
            }
        }
        let least = LEAST_MTU + plan::overhead(address);
        let mtu = self.narrowest.map_or(underlay.mtu, |(mtu, _)| underlay.mtu.min(mtu.max(least)));
        Ok(Underlay { mtu, ..underlay })
    }

    /// Makes one network what it is to be on this node.
    pub(super) async fn compare_network(&mut self, netlink: &Netlink, name: &NetworkName) -> io::Result<()> {
        let slot = self.held.borrow().get(name).copied();
        let Some(slot) = slot else {
            if self.here.remove(name).is_some() {
                let _ = self.metrics.peers.remove_label_values(&[name.as_str()]);
                self.expect_following();
            }
            self.expect(Part::Obsolete, Reason::Follows, Duration::ZERO);
            return Ok(());
        };
        // Without a record, what is there stays. What this host is must be known; then all networks are compared.
        let Some((view, host)) = self.catalog.network(name.as_str()).zip(self.host.as_ref()) else {
            return Ok(());
        };
        if view.network.is_encrypted() && self.sealed.ways().is_none() {
            // Not before nothing can leave in the clear; then it is compared.
            self.expect(Part::Sealed, Reason::Follows, Duration::ZERO);
            return Ok(());
        }
        let here = self.ensure(netlink, &view, slot, &host.underlay).await?;
        count_peers(&self.metrics, name, &here);
        // What is told already is told as it is now; a network that is new, once packets pass.
        let now = place(&here, self.config.fast_path);
        self.tell.ready.send_if_modified(|ready| match ready.get_mut(name) {
            Some(known) if *known != now => {
                *known = now;
                true
            }
            _ => false,
        });
        let (vni, indexes) = (here.links.vni, here.indexes);
        let was = self.here.insert(name.clone(), here);
        if was.as_ref().is_some_and(|was| was.links.vni != vni) {
            self.expect(Part::Obsolete, Reason::Follows, Duration::ZERO);
        }
        if was.is_none_or(|was| was.indexes != indexes) {
            // The addresses of links that are new here are not the host's own.
            self.expect(Part::Host, Reason::Follows, Duration::ZERO);
        }
        self.expect_following();
        Ok(())
    }

    async fn ensure(
        &self,
        netlink: &Netlink,
        view: &NetworkView,
        slot: Slot,
        underlay: &Underlay,
    ) -> io::Result<Here> {
        let Config { address, port, .. } = &*self.config;
        let beneath = (underlay.mtu, underlay.beneath.as_ref());
        let links = Links::new(&view.network, slot, (*address, *port), beneath)
            .ok_or_else(|| io::Error::other(format!("it has no subnet {slot}")))?
            .with_ways(self.sealed.ways());
        let was = self.here.get(&view.name).filter(|here| here.links == links);
        let indexes = netlink.ensure_links(&links, self.config.fast_path == FastPath::Programs).await?;
        let entries = Entries::new(&links, view, slot);
        sysctl::accept_any_source(&links.vxlan())?;
        let wanted = entries.all();
        let mut there = netlink.entries(indexes.vxlan).await?;
        if view.network.transport == Transport::Direct {
            let is_of_network = |entry: &Entry| matches!(entry, Entry::Direct { subnet, .. } if view.network.pools.iter().any(|pool| pool.cidr().overlaps(subnet)));
            there.extend(netlink.direct_routes().await?.into_iter().filter(is_of_network));
        }
        apply(netlink, &self.metrics, indexes.vxlan, &wanted, &there).await?;
        if let Some(was) = was {
            let was_set = was.entries.all();
            let lost = was_set.intersection(&wanted).filter(|entry| !there.contains(entry)).count();
            if was.indexes != indexes || lost > 0 {
                self.metrics.repairs.inc();
                tracing::warn!(network = %view.name, entries = lost, "links or entries of the network were taken away by somebody else; they are put back");
            }
        }
        Ok(Here { slot, network: Arc::clone(&view.network), links, indexes, entries })
    }

    /// Removes the links of networks that this node has no part in any more.
    pub(super) async fn remove_obsolete(&self, netlink: &Netlink) -> io::Result<()> {
        let networks = self.catalog.networks();
        // While the store does not say what there is, nothing is obsolete.
        let are_known = self.held.borrow().keys().all(|name| networks.iter().any(|view| view.name == *name));
        if !are_known || *self.catalog.freshness() != Freshness::Live {
            return Ok(());
        }
        // Nor is what a network has that is there and that this node has no part of yet, as after a restart.
        let vnis = networks.iter().map(|view| view.network.vni);
        let names: BTreeSet<String> = vnis.flat_map(|vni| [names::bridge(vni), names::vxlan(vni)]).collect();
        for (name, link) in netlink.links().await? {
            if !names.contains(&name) {
                netlink.remove_link(link.index).await?;
                tracing::info!(link = name, "removed a link of a network that is no more");
            }
        }
        let awaited = networks.iter().filter(|view| !self.here.contains_key(&view.name));
        let awaited: Vec<Prefix> =
            awaited.flat_map(|view| view.network.pools.iter().map(Pool::cidr)).collect();
        let known: BTreeSet<Entry> = self.here.values().flat_map(|here| here.entries.all()).collect();
        for route in netlink.direct_routes().await?.difference(&known) {
            let is_awaited = |subnet: &Prefix| awaited.iter().any(|range| range.overlaps(subnet));
            if matches!(route, Entry::Direct { subnet, .. } if is_awaited(subnet)) {
                continue;
            }
            netlink.remove(0, &[*route]).await?;
            tracing::info!(%route, "removed what led to a peer of a network that is no more");
        }
        Ok(())
    }
}

/// Makes the entries of these slots what the catalog has of them. Tells what is behind the tunnel instead of what was.
pub(super) async fn follow_peers(
    netlink: &Netlink,
    metrics: &Metrics,
    here: &mut Here,
    view: &NetworkView,
    slots: BTreeSet<Slot>,
) -> io::Result<BTreeMap<Prefix, Option<Mac>>> {
    let mut changes = BTreeMap::new();
    // What this node says of itself changes nothing here.
    for slot in slots.into_iter().filter(|slot| *slot != here.slot).collect::<Vec<_>>() {
        let peer = view.subnets.get(slot);
        let after = peer.map_or_else(Vec::new, |peer| here.links.entries(&view.network, slot, &peer));
        let Step { wanted, there, before } = here.entries.change(slot, after);
        if let Err(error) = apply(netlink, metrics, here.indexes.vxlan, &wanted, &there).await {
            here.entries.change(slot, before);
            return Err(error);
        }
        changes.extend(behind_tunnel(&there).into_keys().map(|subnet| (subnet, None)));
        changes.extend(behind_tunnel(&wanted).into_iter().map(|(subnet, mac)| (subnet, Some(mac))));
    }
    Ok(changes)
}

/// Makes what is there what is wanted.
async fn apply(
    netlink: &Netlink,
    metrics: &Metrics,
    vxlan: u32,
    wanted: &BTreeSet<Entry>,
    there: &BTreeSet<Entry>,
) -> io::Result<()> {
    let (add, remove) = difference(wanted, there);
    // What leads to a peer goes before what its packets need.
    netlink.remove(vxlan, &remove).await?;
    netlink.add(vxlan, &add).await?;
    metrics.entries.with_label_values(&["set"]).inc_by(add.len() as u64);
    metrics.entries.with_label_values(&["removed"]).inc_by(remove.len() as u64);
    Ok(())
}

pub(super) fn count_peers(metrics: &Metrics, name: &NetworkName, here: &Here) {
    let count = i64::try_from(here.peers()).unwrap_or(i64::MAX);
    metrics.peers.with_label_values(&[name.as_str()]).set(count);
}
