//! Ingress: which ports this node listens on, for which service.
//!
//! Desired are the published ports of every service in the catalog and the localhost ports of the configuration; actual
//! are the open listeners. One task compares the two for the services that changed, and for those that could not be
//! opened again on a slow tick. Two services that ask for one port: whoever has it keeps it, else the first by name.

mod controller;
mod desired;
mod handover;
mod metrics;
mod status;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nerve::model::{PortName, ServiceName};

pub use controller::{Handle, start};
pub use metrics::Metrics;
pub use status::{ListenerState, ListenerStatus};

/// A port of this host alone that leads to a service, as SmartStack's users have them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LocalPort {
    /// Where it leads.
    pub service: ServiceName,
    /// Where to listen; loopback unless said.
    pub listen: SocketAddr,
    /// The named port of the instances; their main port unless said.
    pub target: Option<PortName>,
}

/// What this node listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The addresses that published ports are opened on. Empty: all of this host, IPv6 included where there is IPv6.
    pub listen: Vec<IpAddr>,
    /// Localhost ports.
    pub localhost: Vec<LocalPort>,
    /// How long connections of a port that is closed may go on.
    pub drain: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: Vec::new(), localhost: Vec::new(), drain: Duration::from_secs(30) }
    }
}
