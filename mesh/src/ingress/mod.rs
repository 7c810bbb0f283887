//! Ingress: which ports this node listens on, for which service.
//!
//! Desired are the published ports of every service in the catalog, the ports of their virtual addresses where this node
//! has the range, and the localhost ports of the configuration; actual are the open listeners. One task compares the two
//! for the services that changed, and for those that could not be opened again on a slow tick. Two services that ask for
//! one port: whoever has it keeps it, else the first by name.

mod addresses;
mod controller;
mod desired;
mod handle;
mod handover;
mod metrics;
mod occupant;
mod slots;
mod status;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nerve::model::{Address, NodeName, PortName, ServiceName, UnixPath};

use crate::socket_file::Access;
pub use controller::{Means, VirtualRanges, start};
pub use handle::Handle;
pub use metrics::Metrics;
pub use status::{ListenerKind, ListenerState, ListenerStatus};

/// A port or a unix socket of this host alone that leads to a service, as SmartStack's users have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPort {
    /// Where it leads.
    pub service: ServiceName,
    /// Where to listen.
    pub listen: LocalListen,
    /// The port of the instances, by name or number; their main port unless said.
    pub target: Option<PortName>,
}

/// Where a [`LocalPort`] listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalListen {
    /// On an address; loopback unless said.
    Ip(SocketAddr),
    /// On a unix socket, for whoever has access.
    Unix(UnixPath, Access),
}

impl LocalPort {
    fn address(&self) -> Address {
        match &self.listen {
            LocalListen::Ip(address) => Address::Ip(*address),
            LocalListen::Unix(path, _) => Address::Unix(path.clone()),
        }
    }
}

/// What this node listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node: ports of mode `host` are opened where an instance is, and lead to it.
    pub node: NodeName,
    /// The addresses that published ports are opened on. Empty: all of this host, IPv6 included where there is IPv6.
    pub listen: Vec<IpAddr>,
    /// Localhost ports and unix sockets.
    pub localhost: Vec<LocalPort>,
    /// How long connections of a port that is closed may go on.
    pub drain: Duration,
}
