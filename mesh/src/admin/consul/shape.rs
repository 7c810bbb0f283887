//! From the catalog to Consul's words: nodes, instances, checks.
//!
//! What is said of an instance's health is of its own record alone, so that whoever waits for its service hears of each change of it.
//! Each check of it is known to its node only; here it has one, which is as well as the worst of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nerve::model::{Instance, Node, NodeName, Region, Zone};
use synapse::catalog::{Endpoint, Service};

use super::super::Handles;
use super::changes::{Changes, Topic};
use super::question::Question;
use super::translate::consul_id;
use super::{DATACENTER, status};
use crate::api::{
    ConsulAddress, ConsulCatalogService, ConsulHealthCheck, ConsulHealthEntry, ConsulInstance, ConsulNode,
    ConsulWeights,
};

/// The catalog as it is now, with its indexes.
#[derive(Clone, Copy)]
pub(super) struct Shapes<'a> {
    pub(super) handles: &'a Handles,
    pub(super) changes: &'a Changes,
}

/// From where somebody asks.
struct Near {
    node: String,
    region: Option<Region>,
    zone: Option<Zone>,
}

impl Near {
    fn to(node: &Node) -> Self {
        Self { node: node.name.to_string(), region: node.region.clone(), zone: node.zone.clone() }
    }

    /// The lower the nearer.
    fn distance(&self, node: &NodeName, region: Option<&Region>, zone: Option<&Zone>) -> u8 {
        let is_in_region = region == self.region.as_ref();
        let is_in_zone = is_in_region && zone.is_some() && zone == self.zone.as_ref();
        match () {
            () if node.as_str() == self.node => 0,
            () if is_in_zone => 1,
            () if is_in_region && region.is_some() => 2,
            () => 3,
        }
    }
}

impl Shapes<'_> {
    /// The endpoints of a service that are asked for, the nearest first.
    pub(super) fn chosen<'s>(
        &self,
        service: &'s Service,
        question: &Question,
        tags: &[String],
    ) -> Vec<&'s Endpoint> {
        let has = |instance: &Instance, tag: &String| {
            instance.tags.iter().any(|known| known.as_str().eq_ignore_ascii_case(tag))
        };
        let wanted = |endpoint: &&Endpoint| {
            tags.iter().all(|tag| has(&endpoint.instance, tag))
                && (question.node_meta.is_empty() || has_meta(&self.node_of(endpoint), question))
        };
        let mut chosen: Vec<&Endpoint> = service.endpoints.iter().filter(wanted).collect();
        if let Some(near) = self.near(question) {
            chosen.sort_by_key(|endpoint| {
                let at = &endpoint.instance;
                near.distance(&at.node, at.region.as_ref(), at.zone.as_ref())
            });
        }
        chosen
    }

    /// Every node: those with an agent, and those that only watchers name.
    fn all_nodes(&self) -> Vec<(Node, bool)> {
        let catalog = &self.handles.catalog;
        let mut nodes: BTreeMap<NodeName, (Node, bool)> =
            catalog.nodes().iter().map(|node| (node.name.clone(), (Node::clone(node), true))).collect();
        for service in catalog.services() {
            for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.watcher.is_some()) {
                let stranger = || (stranger(&endpoint.instance), false);
                nodes.entry(endpoint.instance.node.clone()).or_insert_with(stranger);
            }
        }
        nodes.into_values().collect()
    }

    /// The nodes that are asked for, the nearest first, and whether they have an agent.
    pub(super) fn nodes(&self, question: &Question) -> Vec<(Node, bool)> {
        let mut nodes = self.all_nodes();
        nodes.retain(|(node, _)| question.node_meta.is_empty() || has_meta(&self.node(node), question));
        if let Some(near) = self.near(question) {
            nodes
                .sort_by_key(|(node, _)| near.distance(&node.name, node.region.as_ref(), node.zone.as_ref()));
        }
        nodes
    }

    /// The node of this name, and whether it has an agent.
    pub(super) fn find_node(&self, name: &str) -> Option<(Node, bool)> {
        match self.handles.catalog.node(name) {
            Some(node) => Some((Node::clone(&node), true)),
            None => self.all_nodes().into_iter().find(|(node, _)| node.name.as_str() == name),
        }
    }

    /// Those of the services that have instances on a node, with these.
    pub(super) fn on_node(&self, node: &str, mut each: impl FnMut(&Service, &Endpoint)) {
        for service in self.handles.catalog.services() {
            let here = service.endpoints.iter().filter(|endpoint| endpoint.instance.node.as_str() == node);
            here.for_each(|endpoint| each(&service, endpoint));
        }
    }

    fn near(&self, question: &Question) -> Option<Near> {
        match question.near.as_deref()? {
            "_agent" => Some(Near::to(&self.handles.node)),
            name => Some(Near::to(&*self.handles.catalog.node(name)?)),
        }
    }

    pub(super) fn node(&self, node: &Node) -> ConsulNode {
        let region = node.region.as_ref().map(|region| ("region", region.to_string()));
        let zone = node.zone.as_ref().map(|zone| ("zone", zone.to_string()));
        let version = Some(("version", node.version.clone())).filter(|(_, version)| !version.is_empty());
        ConsulNode {
            id: "",
            node: node.name.to_string(),
            address: node.address.to_string(),
            datacenter: DATACENTER,
            tagged_addresses: tagged(node.address, |address| address.to_string()),
            meta: region.into_iter().chain(zone).chain(version).collect(),
            create_index: self.changes.first,
            modify_index: self.changes.index(&Topic::Node(node.name.to_string())),
        }
    }

    /// Where an endpoint runs: as the catalog has it, or as far as the endpoint tells.
    fn node_of(&self, endpoint: &Endpoint) -> ConsulNode {
        match self.handles.catalog.node(endpoint.instance.node.as_str()) {
            Some(node) => self.node(&node),
            None => self.node(&stranger(&endpoint.instance)),
        }
    }

    pub(super) fn instance(&self, endpoint: &Endpoint, index: u64) -> ConsulInstance {
        let instance = &endpoint.instance;
        let port = instance.port.map_or(0, std::num::NonZeroU16::get);
        ConsulInstance {
            kind: "",
            id: id(instance),
            service: instance.service.to_string(),
            tags: tags(instance),
            address: instance.address.to_string(),
            tagged_addresses: tagged(instance.address, |address| ConsulAddress {
                address: address.to_string(),
                port,
            }),
            meta: instance.labels.clone(),
            port,
            socket_path: instance.socket.as_ref().map(ToString::to_string),
            weights: weights(instance),
            enable_tag_override: false,
            create_index: self.changes.first,
            modify_index: index,
        }
    }

    pub(super) fn catalog_service(&self, endpoint: &Endpoint, index: u64) -> ConsulCatalogService {
        let node = self.node_of(endpoint);
        let instance = self.instance(endpoint, index);
        ConsulCatalogService {
            id: node.id,
            node: node.node,
            address: node.address,
            datacenter: node.datacenter,
            tagged_addresses: node.tagged_addresses,
            node_meta: node.meta,
            service_kind: instance.kind,
            service_id: instance.id,
            service_name: instance.service,
            service_tags: instance.tags,
            service_address: instance.address,
            service_tagged_addresses: instance.tagged_addresses,
            service_meta: instance.meta,
            service_port: instance.port,
            service_weights: instance.weights,
            service_enable_tag_override: instance.enable_tag_override,
            create_index: instance.create_index,
            modify_index: instance.modify_index,
        }
    }

    pub(super) fn entry(&self, endpoint: &Endpoint, index: u64) -> ConsulHealthEntry {
        let mut checks = Vec::new();
        if let Some(node) = self.handles.catalog.node(endpoint.instance.node.as_str()) {
            checks.push(self.alive(&node));
        }
        checks.extend(self.checks(endpoint, index));
        ConsulHealthEntry { node: self.node_of(endpoint), service: self.instance(endpoint, index), checks }
    }

    /// What is to be said of an endpoint's health.
    pub(super) fn checks(&self, endpoint: &Endpoint, index: u64) -> Vec<ConsulHealthCheck> {
        let instance = &endpoint.instance;
        let id = id(instance);
        let notes = match &endpoint.watcher {
            Some(watcher) => format!("found by the watcher {watcher}; nobody checks it here"),
            None if endpoint.unconfirmed => "the store does not confirm it at the moment".to_owned(),
            None => String::new(),
        };
        let health = ConsulHealthCheck {
            node: instance.node.to_string(),
            check_id: format!("service:{id}"),
            name: format!("Service '{}' check", instance.service),
            status: status(instance.health),
            notes,
            output: instance.health_reason.clone(),
            service_id: id.clone(),
            service_name: instance.service.to_string(),
            service_tags: tags(instance),
            kind: "",
            definition: BTreeMap::new(),
            create_index: self.changes.first,
            modify_index: index,
        };
        let maintenance = instance.draining.then(|| ConsulHealthCheck {
            check_id: format!("_service_maintenance:{id}"),
            name: "Service Maintenance Mode".to_owned(),
            status: "critical",
            notes: String::new(),
            output: "it is drained".to_owned(),
            kind: "maintenance",
            ..health.clone()
        });
        std::iter::once(health).chain(maintenance).collect()
    }

    /// What is to be said of a node's own health, if it has an agent.
    pub(super) fn node_checks(&self, node: &Node) -> Vec<ConsulHealthCheck> {
        let alive = self.alive(node);
        let maintenance = node.draining.then(|| ConsulHealthCheck {
            check_id: "_node_maintenance".to_owned(),
            name: "Node Maintenance Mode".to_owned(),
            status: "critical",
            output: "the node is drained".to_owned(),
            kind: "maintenance",
            ..alive.clone()
        });
        std::iter::once(alive).chain(maintenance).collect()
    }

    /// That its agent lives: its record would be gone otherwise.
    fn alive(&self, node: &Node) -> ConsulHealthCheck {
        ConsulHealthCheck {
            node: node.name.to_string(),
            check_id: "serfHealth".to_owned(),
            name: "Serf Health Status".to_owned(),
            status: "passing",
            notes: String::new(),
            output: "Agent alive and reachable".to_owned(),
            service_id: String::new(),
            service_name: String::new(),
            service_tags: Vec::new(),
            kind: "",
            definition: BTreeMap::new(),
            create_index: self.changes.first,
            modify_index: self.changes.index(&Topic::Node(node.name.to_string())),
        }
    }

    /// The index of a service.
    pub(super) fn index_of(&self, service: &Service) -> u64 {
        self.changes.index(&Topic::Service(service.name.to_string()))
    }
}

/// What is known of a node that has no agent.
fn stranger(instance: &Instance) -> Node {
    let (name, region, zone) = (instance.node.clone(), instance.region.clone(), instance.zone.clone());
    let (address, signer_port, tunnel_port) = (instance.address, None, None);
    Node { name, address, region, zone, signer_port, tunnel_port, version: String::new(), draining: false }
}

fn has_meta(node: &ConsulNode, question: &Question) -> bool {
    question.node_meta.iter().all(|(key, value)| node.meta.get(key.as_str()) == Some(value))
}

fn id(instance: &Instance) -> String {
    consul_id(&instance.id, &instance.node).to_owned()
}

fn tags(instance: &Instance) -> Vec<String> {
    instance.tags.iter().map(ToString::to_string).collect()
}

/// The tags of several.
pub(super) fn all_tags(endpoints: &[&Endpoint]) -> BTreeSet<String> {
    endpoints.iter().flat_map(|endpoint| tags(&endpoint.instance)).collect()
}

fn weights(instance: &Instance) -> ConsulWeights {
    let passing = instance.weight.0.get();
    ConsulWeights { passing, warning: passing }
}

/// An address by what it is for; here it is for all of it.
fn tagged<T>(address: IpAddr, value: impl Fn(IpAddr) -> T) -> BTreeMap<&'static str, T> {
    let (near, far) = if address.is_ipv4() { ("lan_ipv4", "wan_ipv4") } else { ("lan_ipv6", "wan_ipv6") };
    ["lan", near, "wan", far].into_iter().map(|name| (name, value(address))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_node_is_nearer_than_the_same_zone_and_that_than_the_region_and_that_than_the_rest() {
        let node = |name: &str, region: Option<&str>, zone: Option<&str>| {
            let at = serde_json::json!({"name": name, "address": "192.0.2.1", "region": region, "zone": zone, "version": "0"});
            serde_json::from_value::<Node>(at).unwrap()
        };
        let distance =
            |from: &Node, to: &Node| Near::to(from).distance(&to.name, to.region.as_ref(), to.zone.as_ref());
        let near = node("a", Some("eu"), Some("1"));
        for (to, expected) in [
            (node("a", None, None), 0),
            (node("b", Some("eu"), Some("1")), 1),
            (node("b", Some("eu"), Some("2")), 2),
            (node("b", Some("eu"), None), 2),
            (node("b", Some("us"), Some("1")), 3),
            (node("b", None, None), 3),
        ] {
            assert_eq!(distance(&near, &to), expected, "{to:?}");
        }
        let (zoned, nowhere) = (node("a", None, Some("1")), node("a", None, None));
        assert_eq!(distance(&zoned, &node("b", None, Some("1"))), 1);
        assert_eq!(distance(&nowhere, &node("b", None, None)), 3, "two that stand nowhere are not together");
    }

    #[test]
    fn addresses_are_tagged_by_their_family() {
        let names = |address: &str| tagged(address.parse().unwrap(), |_| ()).into_keys().collect::<Vec<_>>();
        assert_eq!(names("192.0.2.1"), ["lan", "lan_ipv4", "wan", "wan_ipv4"]);
        assert_eq!(names("2001:db8::1"), ["lan", "lan_ipv6", "wan", "wan_ipv6"]);
    }
}
