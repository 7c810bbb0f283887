//! What a listener of ingress is up to, for `plexus why` and the API.

use std::net::SocketAddr;

use nerve::model::{PortName, Protocol, ServiceName};

/// How it stands with a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerState {
    /// It accepts; so many connections are open.
    Open {
        /// Client connections.
        connections: u32,
    },
    /// It could not be opened; it is tried again.
    Failed {
        /// What was tried, why it failed, what to do.
        error: String,
    },
}

/// A listener that is wanted on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerStatus {
    /// Where it leads.
    pub service: ServiceName,
    /// The named port of the instances that it leads to.
    pub target: Option<PortName>,
    /// Where it listens, or is to.
    pub address: SocketAddr,
    /// Its transport.
    pub protocol: Protocol,
    /// A localhost port of the configuration; otherwise a published port.
    pub localhost: bool,
    /// How it stands.
    pub state: ListenerState,
}
