//! Endpoints on overlay networks: those of other nodes answer a client by the node that it came by, where these nodes say so.

use std::net::IpAddr;
use std::sync::Arc;

use nerve::model::{NodeName, Prefix};
use synapse::catalog::{Catalog, NetworkView};

use crate::proxy::Way;

/// The networks as far as the answers of endpoints depend on them.
#[derive(Debug, Clone, Default)]
pub(super) struct Networks {
    views: Vec<Arc<NetworkView>>,
    way: Way,
}

impl Networks {
    /// As the catalog has them, seen by this node. `sockets`: what arrives by tunnels passes where sockets are looked for.
    pub(super) fn of(catalog: &Catalog, node: &NodeName, sockets: bool) -> Self {
        let views = catalog.networks();
        let ranges = views.iter().flat_map(|view| &view.network.pools).map(|pool| pool.cidr());
        // What a container sends to another one goes there by itself, not by whom it was asked by; but for those of this node, who
        // are the same where it is asked first whether a socket has the address.
        let own = views.iter().filter(|_| sockets).flat_map(|view| own(view, node));
        let way = Way { neighbours: ranges.collect(), but: own.collect() };
        Self { views, way }
    }

    /// Has it an address of a network?
    pub(super) fn contain(&self, endpoint: IpAddr) -> bool {
        self.way.neighbours.iter().any(|range| range.contains(endpoint))
    }

    /// The way of an endpoint whose node leads its answers back to this one.
    pub(super) fn way(&self, endpoint: IpAddr) -> Option<Way> {
        let holder = self.views.iter().find_map(|view| view.subnets.get(view.network.slot_of(endpoint)?))?;
        // What that node itself asks, it is answered there.
        let itself = holder.own.iter().chain([&holder.address]).copied().map(Prefix::from);
        let way = || Way {
            neighbours: self.way.neighbours.iter().copied().chain(itself).collect(),
            ..self.way.clone()
        };
        holder.returns.then(way)
    }
}

fn own(view: &NetworkView, node: &NodeName) -> Vec<Prefix> {
    let slots = view.subnets.all().into_iter().filter(|(_, subnet)| subnet.node == *node);
    slots.flat_map(|(slot, _)| view.network.subnets(slot)).collect()
}
