//! Who the clients of this node are, by their addresses (pure).
//!
//! An instance that has an address of its own is known by it: nobody else can have a connection from there. Whoever comes from
//! an address of the host itself may be any of its processes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use nerve::model::ServiceName;
use nerve::source::{Client, Snapshot};

use super::index::{Index, Labelled};

/// What a client is.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) service: ServiceName,
    pub(super) labels: Labelled,
}

/// What has one address: the services that it is, and the labels of each.
type Services<'a> = BTreeMap<&'a ServiceName, Vec<&'a BTreeMap<String, String>>>;

/// What the clients of this node are, by their addresses, in the order of their services.
#[derive(Debug, Default)]
pub(super) struct Clients(HashMap<IpAddr, Vec<Identity>>);

impl Clients {
    /// Those that run here, but for those that have no address of their own.
    pub(super) fn new(index: &Index, snapshots: &[Arc<Snapshot>], host: &[IpAddr]) -> Self {
        let host: HashSet<IpAddr> = host.iter().map(IpAddr::to_canonical).collect();
        let is_own =
            |address: IpAddr| !address.is_loopback() && !address.is_unspecified() && !host.contains(&address);
        let mut known: HashMap<IpAddr, Services<'_>> = HashMap::new();
        let mut note = |address: IpAddr, service, labels| {
            let address = address.to_canonical();
            if is_own(address) {
                known.entry(address).or_default().entry(service).or_default().push(labels);
            }
        };
        for snapshot in snapshots {
            for Client { services, addresses, labels } in &snapshot.clients {
                let pairs =
                    addresses.iter().flat_map(|address| services.iter().map(move |one| (*address, one)));
                pairs.for_each(|(address, service)| note(address, service, labels));
            }
            for located in &snapshot.definitions {
                let definition = &located.definition;
                note(definition.address, &definition.key.service, &definition.labels);
            }
        }
        let clients = known.into_iter().map(|(address, services)| {
            let identities = services.into_iter().map(|(service, labels)| Identity {
                service: service.clone(),
                labels: index.labelled(labels.iter().copied()),
            });
            (address, identities.collect())
        });
        Self(clients.collect())
    }

    /// What the client at an address is; nothing where nobody knows.
    pub(super) fn at(&self, address: IpAddr) -> &[Identity] {
        self.0.get(&address.to_canonical()).map_or(&[], Vec::as_slice)
    }
}
