//! The endpoints of one balancer: replaced whole on a change, with what is known of those that stay.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use nerve::model::{InstanceId, PortName};
use synapse::catalog::{Reason, Service};

use super::endpoint::{Endpoint, Excluded};

/// What is true of a pool at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// Every endpoint that the catalog has, in the order of their ids: what is known of one that is kept out for a while
    /// must be known still when it returns.
    pub(super) known: Arc<[Arc<Endpoint>]>,
    /// Those that may be picked.
    pub(super) serving: Box<[Arc<Endpoint>]>,
    pub(super) excluded: BTreeMap<Excluded, usize>,
}

/// One pointer to the snapshot: readers take no lock.
#[derive(Debug)]
pub(super) struct Pool(ArcSwap<Snapshot>);

impl Default for Pool {
    fn default() -> Self {
        Self(ArcSwap::from_pointee(Snapshot {
            known: Arc::new([]),
            serving: Box::default(),
            excluded: BTreeMap::new(),
        }))
    }
}

impl Pool {
    pub(super) fn load(&self) -> Guard<Arc<Snapshot>> {
        self.0.load()
    }

    /// Costs the endpoints of this service.
    pub(super) fn update(&self, service: Option<&Service>, target: Option<&PortName>) {
        let old = self.0.load_full();
        let before: HashMap<(&InstanceId, SocketAddr), &Arc<Endpoint>> =
            old.known.iter().map(|endpoint| ((endpoint.id(), endpoint.address()), endpoint)).collect();
        let (mut known, mut serving, mut excluded) = (Vec::new(), Vec::new(), BTreeMap::new());
        for endpoint in service.map_or(&[][..], |service| &service.endpoints) {
            let instance = &endpoint.instance;
            let address = match target {
                None => instance.socket_addr(),
                Some(port) => match instance.named_socket_addr(port) {
                    Some(address) => address,
                    None => {
                        *excluded.entry(Excluded::NoSuchPort).or_default() += 1;
                        continue;
                    }
                },
            };
            let held = before.get(&(&instance.id, address)).map_or_else(
                || Arc::new(Endpoint::new(instance.id.clone(), instance.node.clone(), address)),
                |held| Arc::clone(held),
            );
            held.set_gone(endpoint.excluded() == Some(Reason::Critical));
            match endpoint.excluded() {
                None => serving.push(Arc::clone(&held)),
                Some(reason) => *excluded.entry(Excluded::ByCatalog(reason)).or_default() += 1,
            }
            known.push(held);
        }
        for endpoint in old.known.iter().filter(|old| !known.iter().any(|new| Arc::ptr_eq(old, new))) {
            endpoint.set_gone(true);
        }
        self.0.store(Arc::new(Snapshot { known: known.into(), serving: serving.into(), excluded }));
    }
}
