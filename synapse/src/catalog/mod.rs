//! The catalog: this node's live copy of every service, endpoint, node and overlay network.
//!
//! Data: one immutable [`Service`] snapshot a service, one [`Node`] record a node, one [`NetworkView`] a network, whose
//! subnets change one by one.
//! Update: one [`Writer`] applies batches of [`Change`]s, and each [`Layer`] says what another watcher has found; a batch costs the work of the services it names, whatever the
//! number of services, and publishes each of them once.
//! Beside them stand the rules about who may talk to whom, all of them as one.
//! Interface: [`Catalog`] is a cheap handle whose reads take no lock; [`Subscription`] tells which services (or nodes, or
//! networks) have changed, coalesced, so a slow consumer costs no memory beyond one name a service.

mod endpoint;
mod freshness;
mod layers;
mod names;
mod network;
mod service;
mod subscription;
mod writer;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use nerve::model::{NetworkName, Node, NodeName, RuleSet, ServiceName};

pub use endpoint::{Endpoint, Reason};
pub use freshness::Freshness;
pub use layers::{Rank, WatchedPort};
pub(crate) use names::Names;
pub use network::{NetworkChange, NetworkChanges, NetworkUpdate, NetworkView, Subnets};
pub use service::Service;
pub use subscription::{NodeChanges, RuleChanges, ServiceChanges, Subscription};
pub use writer::{Change, Layer, Layers, Writer};

use network::Networks;
use subscription::Subscribers;

#[derive(Debug)]
struct Inner {
    services: papaya::HashMap<ServiceName, Arc<Service>>,
    nodes: papaya::HashMap<NodeName, Arc<Node>>,
    /// Counted after each.
    node_changes: AtomicU64,
    /// Counted after each of a service or a node, once the subscribers know.
    changes: AtomicU64,
    /// Claims on virtual addresses, also of services that are no more.
    vips: papaya::HashMap<IpAddr, ServiceName>,
    /// Kept with each change, so that a metric need not count a hundred thousand.
    endpoints: AtomicUsize,
    freshness: ArcSwap<Freshness>,
    subscribers: Subscribers<ServiceChanges>,
    node_subscribers: Subscribers<NodeChanges>,
    networks: Networks,
    rules: ArcSwap<RuleSet>,
    /// Is there anything that the rules forbid? Asked for each connection.
    forbidding: AtomicBool,
    rule_subscribers: Subscribers<RuleChanges>,
}

/// Read handle of the catalog. Clones share it.
#[derive(Debug, Clone)]
pub struct Catalog(Arc<Inner>);

impl Catalog {
    /// An empty catalog and the one handle that may change it.
    #[must_use]
    pub fn new() -> (Self, Writer) {
        let inner = Arc::new(Inner {
            services: papaya::HashMap::new(),
            nodes: papaya::HashMap::new(),
            node_changes: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            vips: papaya::HashMap::new(),
            endpoints: AtomicUsize::new(0),
            freshness: ArcSwap::from_pointee(Freshness::Awaiting),
            subscribers: Subscribers::default(),
            node_subscribers: Subscribers::default(),
            networks: Networks::default(),
            rules: ArcSwap::default(),
            forbidding: AtomicBool::new(false),
            rule_subscribers: Subscribers::default(),
        });
        (Self(Arc::clone(&inner)), Writer::new(inner))
    }

    /// The service of this name as it is now.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<Arc<Service>> {
        self.0.services.pin().get(name).cloned()
    }

    /// Every service, in the order of their names.
    #[must_use]
    pub fn services(&self) -> Vec<Arc<Service>> {
        let mut services: Vec<_> = self.0.services.pin().values().cloned().collect();
        services.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        services
    }

    /// How many services there are.
    #[must_use]
    pub fn service_count(&self) -> usize {
        self.0.services.len()
    }

    /// How many endpoints all services have together.
    #[must_use]
    pub fn endpoint_count(&self) -> usize {
        self.0.endpoints.load(Ordering::Relaxed)
    }

    /// How many nodes there are.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.0.nodes.len()
    }

    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.0.nodes.pin().get(name).cloned()
    }

    /// Every node, in the order of their names.
    #[must_use]
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        let mut nodes: Vec<_> = self.0.nodes.pin().values().cloned().collect();
        nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    /// How often a node came, went or was another than before: the same number, the same nodes.
    #[must_use]
    pub fn node_changes(&self) -> u64 {
        self.0.node_changes.load(Ordering::Acquire)
    }

    /// How often a service or a node came, went or was another than before: the same number, the same services and nodes. Whoever
    /// reads another number finds in its subscriptions what has changed until then.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Acquire)
    }

    /// Every virtual address that a service has or had, in no order: one may be claimed for a service that is gone.
    #[must_use]
    pub fn vips(&self) -> Vec<(IpAddr, ServiceName)> {
        self.0.vips.pin().iter().map(|(address, service)| (*address, service.clone())).collect()
    }

    /// The service that a virtual address is claimed for.
    #[must_use]
    pub fn vip(&self, address: IpAddr) -> Option<ServiceName> {
        self.0.vips.pin().get(&address).cloned()
    }

    /// How far what is read here can be trusted to be current.
    #[must_use]
    pub fn freshness(&self) -> Arc<Freshness> {
        self.0.freshness.load_full()
    }

    /// A subscription to changes. It begins with every service that is there, so that its first report is the whole.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        // Registered before the names are read: a service that appears in between is reported twice, never missed.
        let subscription = self.0.subscribers.add();
        for name in self.0.services.pin().keys() {
            subscription.mark(|names| names.extend([name.clone()]));
        }
        subscription
    }

    /// A subscription to changes of nodes. It begins with every node that is there.
    #[must_use]
    pub fn subscribe_nodes(&self) -> Subscription<NodeChanges> {
        let subscription = self.0.node_subscribers.add();
        subscription.mark(|names| names.extend(self.0.nodes.pin().keys().cloned()));
        subscription
    }

    /// The overlay network of this name.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<Arc<NetworkView>> {
        self.0.networks.get(name)
    }

    /// Every overlay network, in the order of their names.
    #[must_use]
    pub fn networks(&self) -> Vec<Arc<NetworkView>> {
        self.0.networks.all()
    }

    /// How many overlay networks there are.
    #[must_use]
    pub fn network_count(&self) -> usize {
        self.0.networks.len()
    }

    /// How many subnets of all networks are held.
    #[must_use]
    pub fn subnet_count(&self) -> usize {
        self.0.networks.held()
    }

    /// A subscription to changes of overlay networks. It begins with every network that is there and all its subnets.
    #[must_use]
    pub fn subscribe_networks(&self) -> Subscription<NetworkChanges> {
        self.0.networks.subscribe()
    }

    /// The rules about who may talk to whom.
    #[must_use]
    pub fn rules(&self) -> Arc<RuleSet> {
        self.0.rules.load_full()
    }

    /// Is there any connection that the rules forbid?
    #[must_use]
    pub fn forbids_anything(&self) -> bool {
        self.0.forbidding.load(Ordering::Acquire)
    }

    /// A subscription to changes of the rules. It begins as if they had changed.
    #[must_use]
    pub fn subscribe_rules(&self) -> Subscription<RuleChanges> {
        let subscription = self.0.rule_subscribers.add();
        subscription.mark(|changed| *changed = true);
        subscription
    }

    /// The subnets of every network, of those that are not known as well, in no order.
    pub(crate) fn subnets(&self) -> Vec<(NetworkName, Subnets)> {
        self.0.networks.subnets()
    }

    /// The subnets of a network, whether it is known or not.
    pub(crate) fn subnets_of(&self, network: &NetworkName) -> Option<Subnets> {
        self.0.networks.subnets_of(network.as_str())
    }
}
