//! A cluster: nodes, their store, their agents, up and ready.

use std::sync::Arc;
use std::time::Duration;

use crate::netns::{Fabric, Family, Namespace};
use crate::node::{Node, Settings, Shared};
use crate::program::{backend_program, plexus_program};
use crate::report;
use crate::server::etcd::Etcd;
use crate::server::store::{Make, Store};
use crate::server::zookeeper::ZooKeeper;
use crate::world::World;

/// Nodes `a`, `b`, `c`, …, and their store on machines of its own.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Shared>,
    servers: Store,
    fabric: Fabric,
    settings: Settings,
    // Last: it removes what the others run in.
    world: World,
}

/// How a cluster is to be.
#[derive(Debug, Clone)]
pub struct Builder {
    nodes: usize,
    make: Make,
    settings: Settings,
    store: Option<String>,
    start_agents: bool,
    routed: Vec<String>,
    family: Family,
}

impl Builder {
    /// With this node behind a router instead of on the others' link.
    #[must_use]
    pub fn behind_router(mut self, node: &str) -> Self {
        self.routed.push(node.to_owned());
        self
    }

    /// With IPv6 addresses only, the nodes' as well as the store's.
    #[must_use]
    pub fn ipv6(mut self) -> Self {
        self.family = Family::V6;
        self
    }

    /// With so many etcd servers instead of one.
    #[must_use]
    pub fn etcd_members(mut self, count: usize) -> Self {
        self.make = Make::Etcd(count);
        self
    }

    /// With this make of store instead of etcd.
    #[must_use]
    pub fn on(mut self, make: Make) -> Self {
        self.make = make;
        self
    }

    /// With other settings than the defaults. The store's URL is filled in.
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// With this store instead of its servers.
    #[must_use]
    pub fn store(mut self, url: &str) -> Self {
        self.store = Some(url.to_owned());
        self
    }

    /// With agents that the test starts itself.
    #[must_use]
    pub fn without_agents(mut self) -> Self {
        self.start_agents = false;
        self
    }

    /// Brings it up.
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    #[must_use]
    pub fn start(self) -> Cluster {
        // Built before anything else: it takes long, and a world should not wait for it.
        let _ = (plexus_program(), backend_program());
        let Self { nodes, make, mut settings, store, start_agents, routed, family } = self;
        let world = World::new();
        let fabric = Fabric::of(&world, family);
        let names = ('a'..='z').take(nodes).map(String::from);
        let machines: Vec<_> = names.map(|name| (fabric.machine(&name), name)).collect();
        let servers = Store::start(&world, &fabric, make);
        routed.iter().for_each(|node| fabric.route(node));
        settings.store = store.unwrap_or_else(|| servers.url());
        let nodes = machines
            .into_iter()
            .map(|(machine, name)| Arc::new(Node::new(&world, &name, machine, &settings)));
        let cluster = Cluster { nodes: nodes.collect(), servers, fabric, settings, world };
        if start_agents {
            cluster.nodes.iter().for_each(|node| node.start_agent());
            cluster.nodes.iter().for_each(|node| node.wait_ready(Duration::from_secs(20)));
            cluster.wait_all_known();
        }
        cluster
    }
}

impl Cluster {
    /// So many nodes with agents that are ready and know each other, and one etcd server.
    #[track_caller]
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self::of(nodes).start()
    }

    /// The same, to be changed before it starts.
    #[must_use]
    pub fn of(nodes: usize) -> Builder {
        Builder {
            nodes,
            make: Make::Etcd(1),
            settings: Settings::default(),
            store: None,
            start_agents: true,
            routed: Vec::new(),
            family: Family::default(),
        }
    }

    /// Its nodes: `let [a, b, c] = cluster.nodes();`
    ///
    /// # Panics
    /// There are more or fewer.
    #[track_caller]
    #[must_use]
    pub fn nodes<const N: usize>(&self) -> [&Node; N] {
        let nodes: Vec<&Node> = self.nodes.iter().map(AsRef::as_ref).collect();
        nodes.try_into().unwrap_or_else(|nodes: Vec<_>| panic!("there are {} nodes", nodes.len()))
    }

    /// All of its nodes.
    pub fn all(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().map(AsRef::as_ref)
    }

    /// Its store, of whatever make.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.servers
    }

    /// Its store, which is etcd.
    ///
    /// # Panics
    /// It is not.
    #[must_use]
    pub fn etcd(&self) -> &Etcd {
        match &self.servers {
            Store::Etcd(etcd) => etcd,
            Store::ZooKeeper(_) => panic!("this cluster's store is ZooKeeper"),
        }
    }

    /// Its store, which is ZooKeeper.
    ///
    /// # Panics
    /// It is not.
    #[must_use]
    pub fn zookeeper(&self) -> &ZooKeeper {
        match &self.servers {
            Store::ZooKeeper(zookeeper) => zookeeper,
            Store::Etcd(_) => panic!("this cluster's store is etcd"),
        }
    }

    /// The settings that its nodes were given.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The world that it stands in.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// A machine on the switch that is no node: somebody who only asks. `name` is new.
    #[must_use]
    pub fn machine(&self, name: &str) -> Namespace {
        self.fabric.machine(name)
    }

    /// The switch's own namespace: what is done there is done on the way between nodes.
    #[must_use]
    pub fn switch(&self) -> Namespace {
        self.fabric.switch()
    }

    /// Takes a node's link down: as [`Cluster::cut`], but the node's interface knows that it has no carrier.
    pub fn link_down(&self, node: &Node) {
        self.fabric.link_down(node.name());
    }

    /// Takes it up again.
    pub fn link_up(&self, node: &Node) {
        self.fabric.link_up(node.name());
    }

    /// Pulls a node's cable.
    pub fn cut(&self, node: &Node) {
        self.fabric.cut(node.name());
    }

    /// Plugs it in again.
    pub fn heal(&self, node: &Node) {
        self.fabric.heal(node.name());
    }

    /// Waits until every node gives traffic to exactly these instances of a service.
    #[track_caller]
    pub fn wait_serving(&self, service: &str, ids: &[&str]) {
        let mut expected: Vec<&str> = ids.to_vec();
        expected.sort_unstable();
        for node in self.all() {
            crate::eventually!(
                Duration::from_secs(10),
                (node.name(), node.serving(service)),
                |(_, ids)| *ids == expected
            );
        }
    }

    /// Publishes a port by the first node and waits until it is open on every node.
    #[track_caller]
    pub fn publish(&self, service: &str, port: u16) {
        let first = self.all().next().expect("a cluster has nodes");
        let _ = first.plexus(["publish", service, &port.to_string()]).ok();
        for node in self.all() {
            crate::eventually!(
                Duration::from_secs(5),
                (node.name(), node.can_connect(node.at(port))),
                |(_, open)| *open
            );
        }
    }

    /// Pulls the cables of all of the store's servers: they run, and nobody reaches them.
    pub fn cut_store(&self) {
        self.servers.machines().into_iter().for_each(|machine| self.fabric.cut(machine));
    }

    /// Plugs them in again.
    pub fn heal_store(&self) {
        self.servers.machines().into_iter().for_each(|machine| self.fabric.heal(machine));
    }

    fn wait_all_known(&self) {
        let expected: Vec<&str> = self.all().map(Node::name).collect();
        for node in self.all() {
            crate::eventually!(
                Duration::from_secs(10),
                (node.name(), node.known_nodes()),
                |(_, names)| *names == expected
            );
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            report::print(&self.nodes, &self.servers);
        }
    }
}
