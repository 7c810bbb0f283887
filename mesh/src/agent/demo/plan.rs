//! What the demo consists of: nodes, instances, and each node's configuration, as text that a user could have written.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use nerve::model::{InstanceId, NameError, NodeName, ServiceName};

use super::backend::Backend;
use super::network::{Network, NodePlace};
use crate::netns::Namespace;

/// The published port of `web`, where it is free.
const PUBLISHED: u16 = 8080;
/// Instance, its service, the index of its node where there are several. Node c runs no instance of `web`.
const INSTANCES: [(&str, &str, usize); 5] =
    [("web-1", "web", 0), ("web-2", "web", 0), ("web-3", "web", 1), ("api-1", "api", 1), ("api-2", "api", 2)];
const NODES: [&str; 3] = ["a", "b", "c"];
/// The ranges of the overlay network, which nobody outside of the nodes' namespaces sees.
const OVERLAY: [&str; 2] = ["10.42.0.0/16", "fd00:42::/48"];

/// One node of the demo.
#[derive(Debug, Clone)]
pub(super) struct PlannedNode {
    pub(super) name: NodeName,
    pub(super) address: IpAddr,
    pub(super) admin: SocketAddr,
    pub(super) dns: SocketAddr,
    pub(super) namespace: Option<Namespace>,
    pub(super) backends: Vec<Backend>,
}

/// The whole demo.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) nodes: Vec<PlannedNode>,
    pub(super) published: NonZeroU16,
    /// Instances are containers on an overlay network.
    pub(super) has_containers: bool,
}

impl Plan {
    /// A node a namespace. Containers have one each besides; what `Backend::listen` says of them is their port.
    pub(super) fn in_network(network: &Network, has_containers: bool) -> Result<Self, NameError> {
        let place = |(index, place): (usize, &NodePlace)| {
            let address = IpAddr::V4(place.address);
            let backends = INSTANCES
                .iter()
                .zip(8001..)
                .filter(|((.., node), _)| *node == index)
                .map(|((instance, service, _), port)| backend(instance, service, &place.name, address, port))
                .collect::<Result<_, _>>()?;
            Ok(PlannedNode {
                name: place.name.clone(),
                address,
                admin: SocketAddr::new(address, 7070),
                dns: SocketAddr::new(address, 53),
                namespace: Some(place.namespace.clone()),
                backends,
            })
        };
        let nodes = network.nodes.iter().enumerate().map(place).collect::<Result<_, _>>()?;
        Ok(Self { nodes, published: at_least_one(PUBLISHED), has_containers })
    }

    /// One node on loopback, on ports that are free now.
    pub(super) fn on_loopback() -> Result<Self, NameError> {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let name = NodeName::new(NODES[0])?;
        let mut ports = FreePorts::default();
        let published = at_least_one(ports.take(PUBLISHED));
        let (admin, dns) = (ports.take(7070), ports.take(5300));
        let backends = INSTANCES
            .iter()
            .zip(8001..)
            .map(|((instance, service, _), port)| {
                backend(instance, service, &name, address, ports.take(port))
            })
            .collect::<Result<_, _>>()?;
        let node = PlannedNode {
            name,
            address,
            admin: SocketAddr::new(address, admin),
            dns: SocketAddr::new(address, dns),
            namespace: None,
            backends,
        };
        Ok(Self { nodes: vec![node], published, has_containers: false })
    }

    /// The names of the nodes that a network is to be made for.
    pub(super) fn node_names() -> Result<Vec<NodeName>, NameError> {
        NODES.iter().map(|name| NodeName::new(name)).collect()
    }
}

impl Plan {
    /// A node's `plexus.toml`.
    pub(super) fn configuration(&self, node: &PlannedNode, state_dir: &Path) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write_configuration(node, &mut text, state_dir);
        text
    }

    fn write_configuration(
        &self,
        node: &PlannedNode,
        out: &mut String,
        state_dir: &Path,
    ) -> std::fmt::Result {
        writeln!(out, "state_dir = {:?}", node.state_dir(state_dir).to_string_lossy())?;
        writeln!(out, "services_dir = {:?}\n", node.services_dir(state_dir).to_string_lossy())?;
        writeln!(out, "[node]\nname = \"{}\"\naddress = \"{}\"\n", node.name, node.address)?;
        writeln!(out, "[store]\nurl = \"embedded\"\n")?;
        // Whoever reaches the nodes' own networks plays with the demo.
        writeln!(out, "[admin]\nlisten = [\"{}\"]\nnetwork_role = \"operate\"\n", node.admin)?;
        writeln!(out, "[dns]\nlisten = [\"{}\"]\n", node.dns)?;
        writeln!(out, "[ingress]\nlisten = [\"{}\"]\n", node.address)?;
        if self.has_containers {
            writeln!(out, "[overlay]\nenabled = true\ndefault = {OVERLAY:?}\n")?;
        }
        // A demo leaves at once: nobody is cut off but who plays with it.
        writeln!(out, "[drain]\nnotice = \"100ms\"\ndeadline = \"1s\"")
    }
}

impl PlannedNode {
    fn state_dir(&self, state_dir: &Path) -> PathBuf {
        state_dir.join(self.name.as_str())
    }

    /// Where its agent looks for definitions of services.
    pub(super) fn services_dir(&self, state_dir: &Path) -> PathBuf {
        self.state_dir(state_dir).join("services.d")
    }
}

/// An instance's file in `services.d`.
pub(super) fn definition(backend: &Backend) -> String {
    let Backend { service, instance, listen, .. } = backend;
    format!(
        "[[service]]\nname = \"{service}\"\nid = \"{instance}\"\naddress = \"{}\"\nport = {}\n\
         check = [{{ http = \"/healthz\", interval = \"500ms\", timeout = \"400ms\", rise = 1, fall = 2 }}]\n",
        listen.ip(),
        listen.port()
    )
}

fn backend(
    instance: &str,
    service: &str,
    node: &NodeName,
    address: IpAddr,
    port: u16,
) -> Result<Backend, NameError> {
    Ok(Backend {
        service: ServiceName::new(service)?,
        instance: InstanceId::new(instance)?,
        node: node.clone(),
        listen: SocketAddr::new(address, port),
    })
}

fn at_least_one(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).unwrap_or(NonZeroU16::MIN)
}

/// Hands out ports of loopback that nobody listens on, each once. Holding the listeners until the end keeps the kernel
/// from giving one port out twice.
#[derive(Debug, Default)]
struct FreePorts(Vec<TcpListener>);

impl FreePorts {
    /// `wished` if it is free, else any.
    fn take(&mut self, wished: u16) -> u16 {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, wished))
            .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .and_then(|listener| listener.local_addr().map(|address| (listener, address.port())));
        match bound {
            Ok((listener, port)) => {
                self.0.push(listener);
                port
            }
            // The agent will say what is wrong with it when it binds it.
            Err(_) => wished,
        }
    }
}
