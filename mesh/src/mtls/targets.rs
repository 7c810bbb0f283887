//! Where what arrives by tunnels may go: to this node's own instances, as the service that was asked for has them.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use nerve::model::{Address, Instance, NodeName, ServiceName};

use crate::proxy::{Refusal, TunnelCall, TunnelTargets};

/// The addresses of this node's instances, by service. Read by data-plane threads without a lock.
#[derive(Debug, Default)]
pub(super) struct Targets(ArcSwap<Here>);

/// By service.
pub(super) type Here = HashMap<ServiceName, BTreeSet<SocketAddr>>;

impl Targets {
    pub(super) fn set(&self, here: Here) {
        self.0.store(Arc::new(here));
    }
}

impl TunnelTargets for Targets {
    fn target(&self, call: &TunnelCall<'_>) -> Result<Address, Refusal> {
        let here = self.0.load();
        let is_here = here.get(call.service).is_some_and(|addresses| addresses.contains(&call.target));
        is_here.then_some(Address::Ip(call.target)).ok_or(Refusal::NotHere)
    }
}

/// Where an instance is reached by its address: its main port, and those that have names.
pub(super) fn addresses(instance: &Instance) -> impl Iterator<Item = SocketAddr> {
    let ports = instance.port.into_iter().chain(instance.ports.values().copied());
    ports.map(|port| SocketAddr::new(instance.address, port.get()))
}

/// Those of a node's instances among some.
pub(super) fn of_node<'a>(
    node: &NodeName,
    instances: impl IntoIterator<Item = &'a Instance>,
) -> BTreeSet<SocketAddr> {
    instances.into_iter().filter(|instance| instance.node == *node).flat_map(addresses).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(node: &str, port: u16) -> Instance {
        let json = serde_json::json!({
            "service": "web", "id": format!("web-{port}"), "node": node, "address": "192.0.2.1", "port": port,
            "ports": {"admin": port + 1}, "health": "passing",
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_what_is_here_of_that_service_is_a_target() {
        let (own, other) = (instance("a", 80), instance("b", 90));
        let node = NodeName::new("a").unwrap();
        let targets = Targets::default();
        targets.set(HashMap::from([(own.service.clone(), of_node(&node, [&own, &other]))]));
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
