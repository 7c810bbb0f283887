//! The endpoints of one balancer: replaced whole on a change, with what is known of those that stay.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use nerve::model::{InstanceId, PortName};
use synapse::catalog::{self, Service};

use super::endpoint::{Endpoint, Excluded};

/// What is true of a pool at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// In the order of their ids.
    pub(super) serving: Arc<[Arc<Endpoint>]>,
    pub(super) excluded: BTreeMap<Excluded, usize>,
}

/// One pointer to the snapshot: readers take no lock.
#[derive(Debug)]
pub(super) struct Pool(ArcSwap<Snapshot>);

impl Default for Pool {
    fn default() -> Self {
        Self(ArcSwap::from_pointee(Snapshot { serving: Arc::new([]), excluded: BTreeMap::new() }))
    }
}

impl Pool {
    pub(super) fn load(&self) -> Guard<Arc<Snapshot>> {
        self.0.load()
    }

    /// Costs the endpoints of this service.
    pub(super) fn update(&self, service: Option<&Service>, target: Option<&PortName>) {
        let old = self.0.load_full();
        let known: HashMap<(&InstanceId, SocketAddr), &Arc<Endpoint>> =
            old.serving.iter().map(|endpoint| ((endpoint.id(), endpoint.address()), endpoint)).collect();
        let mut serving = Vec::new();
        let mut excluded = BTreeMap::new();
        for endpoint in service.map_or(&[][..], |service| &service.endpoints) {
            match judge(endpoint, target) {
                Ok(address) => {
                    let instance = &endpoint.instance;
                    serving.push(known.get(&(&instance.id, address)).map_or_else(
                        || Arc::new(Endpoint::new(instance.id.clone(), instance.node.clone(), address)),
                        |known| Arc::clone(known),
                    ));
                }
                Err(reason) => *excluded.entry(reason).or_default() += 1,
            }
        }
        self.0.store(Arc::new(Snapshot { serving: serving.into(), excluded }));
    }
}

fn judge(endpoint: &catalog::Endpoint, target: Option<&PortName>) -> Result<SocketAddr, Excluded> {
    if let Some(reason) = endpoint.excluded() {
        return Err(Excluded::ByCatalog(reason));
    }
    match target {
        None => Ok(endpoint.instance.socket_addr()),
        Some(port) => endpoint.instance.named_socket_addr(port).ok_or(Excluded::NoSuchPort),
    }
}
