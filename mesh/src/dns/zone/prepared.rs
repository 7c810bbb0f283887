//! What a service's answers are made of, put together once a change instead of once a query.
//!
//! Made when it is asked for first, of the snapshot that the catalog has at that moment; so an answer is never older than the
//! catalog, and a change costs the services that somebody asks for.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::Name;
use nerve::model::ServiceName;
use synapse::catalog::Service;

use super::{Zone, none_serves, pick};

/// The answers' parts, in an order of no meaning: any run of them is as good as any other.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::dns) struct Prepared {
    /// Of the service.
    generation: u64,
    /// Of the nodes, whose names are in `targets`.
    nodes: u64,
    pub(in crate::dns) v4: Box<[[u8; 4]]>,
    pub(in crate::dns) v6: Box<[[u8; 16]]>,
    pub(in crate::dns) targets: Box<[PreparedTarget]>,
    /// The hosts of the targets: their names, as octets, and their addresses.
    pub(in crate::dns) hosts: Box<[(Box<[u8]>, IpAddr)]>,
    /// Nobody serves, which there is more to be said about.
    pub(in crate::dns) is_out: bool,
}

/// Where a client is to connect.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::dns) struct PreparedTarget {
    pub(in crate::dns) weight: u16,
    pub(in crate::dns) port: u16,
    /// Among the hosts.
    pub(in crate::dns) host: usize,
}

/// What is prepared, by the services' names.
pub(super) type Shelf = papaya::HashMap<ServiceName, Arc<Prepared>>;

impl Zone {
    /// What the answers of a service are made of.
    pub(in crate::dns) fn prepared(&self, service: &Service) -> Arc<Prepared> {
        let nodes = self.catalog.node_changes();
        let shelf = self.shelf.pin();
        if let Some(prepared) = shelf.get(&service.name)
            && prepared.generation == service.generation
            && prepared.nodes == nodes
        {
            return Arc::clone(prepared);
        }
        let prepared = Arc::new(self.prepare(service, nodes));
        shelf.insert(service.name.clone(), Arc::clone(&prepared));
        prepared
    }

    /// Lets go of what was prepared for services that are gone.
    pub(in crate::dns) fn tidy(&self) {
        let shelf = self.shelf.pin();
        if shelf.len() > self.catalog.service_count() {
            shelf.retain(|name, _| self.catalog.service(name.as_str()).is_some());
        }
    }

    fn prepare(&self, service: &Service, nodes: u64) -> Prepared {
        let (mut v4, mut v6, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        let (mut targets, mut named) = (Vec::new(), HashSet::new());
        let (mut hosts, mut places) = (Vec::new(), HashMap::<Box<[u8]>, usize>::new());
        for endpoint in pick::wanted(&service.endpoints, &mut rand::rng()) {
            let instance = &endpoint.instance;
            let address = instance.address.to_canonical();
            if instance.has_ports() && seen.insert(address) {
                match address {
                    IpAddr::V4(ip) => v4.push(ip.octets()),
                    IpAddr::V6(ip) => v6.push(ip.octets()),
                }
            }
            let Some(target) = pick::target(endpoint, None) else { continue };
            if !named.insert((target.address, target.port)) {
                continue;
            }
            let name = octets(&self.target(&target));
            let host = *places.entry(name.clone()).or_insert_with(|| {
                hosts.push((name, target.address));
                hosts.len() - 1
            });
            targets.push(PreparedTarget { weight: target.weight, port: target.port, host });
        }
        Prepared {
            generation: service.generation,
            nodes,
            v4: v4.into(),
            v6: v6.into(),
            targets: targets.into(),
            hosts: hosts.into(),
            is_out: none_serves(service).is_some(),
        }
    }
}

/// A name as it stands in a message, uncompressed.
pub(in crate::dns) fn octets(name: &Name) -> Box<[u8]> {
    // A label has at most 63 octets.
    let labels = name.iter().flat_map(|label| {
        std::iter::once(u8::try_from(label.len()).unwrap_or(0)).chain(label.iter().copied())
    });
    labels.chain([0]).collect()
}
