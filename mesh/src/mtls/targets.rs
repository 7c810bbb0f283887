//! Where what arrives by tunnels may go: to this node's own instances, as the service that was asked for has them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use nerve::model::{Address, Instance, NodeName, ServiceName};

use crate::proxy::{Refusal, TunnelCall, TunnelTargets};
use crate::rules::Rules;

/// This node's instances by their addresses, and who may be connected to them. Read by data-plane threads without a lock.
#[derive(Debug)]
pub(super) struct Targets {
    here: ArcSwap<Here>,
    rules: Rules,
}

/// By service and address.
pub(super) type Here = HashMap<ServiceName, BTreeMap<SocketAddr, Arc<Instance>>>;

impl Targets {
    pub(super) fn new(rules: Rules) -> Self {
        Self { here: ArcSwap::default(), rules }
    }

    pub(super) fn set(&self, here: Here) {
        self.here.store(Arc::new(here));
    }
}

impl TunnelTargets for Targets {
    fn target(&self, call: &TunnelCall<'_>) -> Result<Address, Refusal> {
        let here = self.here.load();
        let instances = here.get(call.service).ok_or(Refusal::NotHere)?;
        let instance = instances.get(&call.target).ok_or(Refusal::NotHere)?;
        match self.rules.of_stream(call, instance).is_denied() {
            true => Err(Refusal::Denied),
            false => Ok(Address::Ip(call.target)),
        }
    }
}

/// Where a node's instances are reached by their addresses: by their main ports, and by those that have names.
pub(super) fn of_node(
    node: &NodeName,
    instances: impl IntoIterator<Item = Arc<Instance>>,
) -> BTreeMap<SocketAddr, Arc<Instance>> {
    let own = instances.into_iter().filter(|instance| instance.node == *node);
    own.flat_map(|instance| {
        let ports: Vec<_> = instance.port.into_iter().chain(instance.ports.values().copied()).collect();
        let at = instance.address;
        ports.into_iter().map(move |port| (SocketAddr::new(at, port.get()), Arc::clone(&instance)))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(node: &str, port: u16) -> Arc<Instance> {
        let json = serde_json::json!({
            "service": "web", "id": format!("web-{port}"), "node": node, "address": "192.0.2.1", "port": port,
            "ports": {"admin": port + 1}, "health": "passing",
        });
        Arc::new(serde_json::from_value(json).unwrap())
    }

    #[test]
    fn only_what_is_here_of_that_service_is_a_target() {
        let (own, other) = (instance("a", 80), instance("b", 90));
        let node = NodeName::new("a").unwrap();
        let rules = Rules::new(synapse::catalog::Catalog::new().0, crate::rules::Metrics::new().unwrap());
        let targets = Targets::new(rules);
        targets.set(HashMap::from([(own.service.clone(), of_node(&node, [Arc::clone(&own), other]))]));
        let asked = |service: &str, target: &str| {
            let call = TunnelCall {
                node: &node,
                service,
                target: target.parse().unwrap(),
                client: None,
                client_service: None,
            };
            targets.target(&call).map(|address| address.to_string())
        };
        assert_eq!(asked("web", "192.0.2.1:80"), Ok("192.0.2.1:80".to_owned()));
        assert_eq!(asked("web", "192.0.2.1:81"), Ok("192.0.2.1:81".to_owned()));
        for (service, target) in [("web", "192.0.2.1:90"), ("db", "192.0.2.1:80"), ("web", "127.0.0.1:80")] {
            assert_eq!(asked(service, target), Err(Refusal::NotHere), "{service} {target}");
        }
        assert_eq!(asked("no name of a service", "192.0.2.1:80"), Err(Refusal::NotHere));
    }
}
