//! What the demo consists of: nodes, instances, and each node's configuration, as text that a user could have written.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::path::Path;

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
}

impl Plan {
    /// A node a namespace.
    pub(super) fn in_network(network: &Network) -> Result<Self, NameError> {
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
        Ok(Self { nodes, published: at_least_one(PUBLISHED) })
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
        Ok(Self { nodes: vec![node], published })
    }

    /// The names of the nodes that a network is to be made for.
    pub(super) fn node_names() -> Result<Vec<NodeName>, NameError> {
        NODES.iter().map(|name| NodeName::new(name)).collect()
    }
}

impl PlannedNode {
    /// The node's `plexus.toml`.
    pub(super) fn configuration(&self, state_dir: &Path) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write_configuration(&mut text, state_dir);
        text
    }

    fn write_configuration(&self, out: &mut String, state_dir: &Path) -> std::fmt::Result {
        writeln!(out, "state_dir = {:?}\n", state_dir.join(self.name.as_str()).to_string_lossy())?;
        writeln!(out, "[node]\nname = \"{}\"\naddress = \"{}\"\n", self.name, self.address)?;
        writeln!(out, "[store]\nurl = \"embedded\"\n")?;
        writeln!(out, "[admin]\nlisten = [\"{}\"]\n", self.admin)?;
        writeln!(out, "[dns]\nlisten = [\"{}\"]\n", self.dns)?;
        writeln!(out, "[ingress]\nlisten = [\"{}\"]\n", self.address)?;
        // A demo leaves at once: nobody is cut off but who plays with it.
        writeln!(out, "[drain]\nnotice = \"100ms\"\ndeadline = \"1s\"")?;
        for backend in &self.backends {
            writeln!(out, "\n[[service]]\nname = \"{}\"\nid = \"{}\"", backend.service, backend.instance)?;
            writeln!(out, "port = {}", backend.listen.port())?;
            writeln!(
                out,
                "check = [{{ http = \"/healthz\", interval = \"500ms\", timeout = \"400ms\", rise = 1, fall = 2 }}]"
            )?;
        }
        Ok(())
    }
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
