//! What encrypts, and whom packets can be sent to by it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nerve::model::{NetworkName, NodeKey, NodeName, Pool};
use synapse::catalog::{Freshness, NetworkView};

use super::{Keeper, send_if_new};
use crate::nft;
use crate::overlay::due::{Part, Reason};
use crate::overlay::netlink::Netlink;
use crate::overlay::sealed::{Compared, Peer, Terms, Zone, Zones};
use crate::overlay::{names, plan};

impl Keeper {
    /// Does a change of this network concern what encrypts?
    pub(super) fn concerns_sealed(&self, name: &NetworkName, record: bool) -> bool {
        let view = self.catalog.network(name.as_str());
        let is_encrypted = view.is_some_and(|view| view.network.is_encrypted());
        is_encrypted
            || self.here.get(name).is_some_and(|here| here.network.is_encrypted())
            || record && self.sealed.ways().is_some()
    }

    /// Makes what encrypts what encrypted networks need, whether this node has a part of them yet or not.
    pub(super) async fn seal(
        &mut self,
        netlink: &Netlink,
        rules: &mut Option<nft::Events>,
    ) -> io::Result<()> {
        let views: Vec<Arc<NetworkView>> =
            self.catalog.networks().into_iter().filter(|view| view.network.is_encrypted()).collect();
        // As long as a network that is no more has links, what keeps its packets from leaving in the clear stays.
        let is_left = self.has_left(netlink).await?;
        if views.is_empty() {
            // While the store does not say what there is, nothing is obsolete.
            let is_needed = is_left || self.here.values().any(|here| here.network.is_encrypted());
            if !is_needed && *self.catalog.freshness() == Freshness::Live {
                self.sealed.clear(netlink, rules).await?;
                send_if_new(&self.tell.keys, None);
                send_if_new(&self.tell.ways, Arc::default());
            }
            return Ok(());
        }
        // It is compared again once this host is known.
        let Some(host) = &self.host else { return Ok(()) };
        let address = self.config.address;
        let largest = views.iter().filter_map(|view| view.network.mtu).map(|mtu| u32::from(mtu.get())).max();
        let usual = host.underlay.mtu.saturating_sub(plan::seal(address));
        let terms = Terms {
            address,
            port: self.config.encryption_port,
            tunnels: plan::encrypted_port(self.config.port),
            lifetime: self.config.key_lifetime,
            mtu: usual.max(largest.map_or(0, |mtu| mtu + plan::INSIDE)),
        };
        let zones: BTreeSet<Zone> = views
            .iter()
            .map(|view| (view.network.vni, view.network.pools.iter().map(Pool::cidr).collect()))
            .collect();
        let zones = Zones { wanted: zones, is_left };
        let peers = peers(&views, address);
        let Compared { keys, is_changed, again } =
            self.sealed.ensure(netlink, rules, &terms, zones, &peers).await?;
        if is_changed {
            for view in &views {
                self.expect(Part::Network(view.name.clone()), Reason::Follows, Duration::ZERO);
            }
            if let Some(ways) = self.sealed.ways() {
                send_if_new(&self.tell.ways, Arc::clone(ways));
            }
        }
        // Whoever is told of a key can be received with it.
        send_if_new(&self.tell.keys, Some(keys));
        self.expect(Part::Sealed, Reason::Follows, again);
        Ok(())
    }
}

impl Keeper {
    /// Are there links of networks that are no more?
    async fn has_left(&self, netlink: &Netlink) -> io::Result<bool> {
        let networks = self.catalog.networks();
        let names =
            |view: &Arc<NetworkView>| [names::bridge(view.network.vni), names::vxlan(view.network.vni)];
        let known: BTreeSet<String> = networks.iter().flat_map(names).collect();
        Ok(netlink.links().await?.keys().any(|name| !known.contains(name)))
    }
}

/// The other nodes of these networks, each with the keys that it has in any of their records.
fn peers(views: &[Arc<NetworkView>], own: IpAddr) -> Vec<Peer> {
    let mut peers = BTreeMap::<(NodeName, IpAddr), BTreeSet<(u64, NodeKey)>>::new();
    for (_, subnet) in views.iter().flat_map(|view| view.subnets.all()) {
        if subnet.address != own && subnet.address.is_ipv4() == own.is_ipv4() {
            let keys = subnet.keys.iter().map(|key| (key.since, key.clone()));
            peers.entry((subnet.node.clone(), subnet.address)).or_default().extend(keys);
        }
    }
    let peer = |((node, address), keys): (_, BTreeSet<(u64, NodeKey)>)| Peer {
        node,
        address,
        keys: keys.into_iter().map(|(_, key)| key).collect(),
    };
    peers.into_iter().map(peer).collect()
}
