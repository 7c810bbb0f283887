//! What a listener of ingress is up to, for `plexus why` and the API.

use std::fmt;
use std::net::SocketAddr;

use nerve::model::{Address, PortName, Protocol, ServiceName};

use super::desired::{Holder, Port, Refused};

/// Why there is a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenerKind {
    /// A published port.
    Published,
    /// A localhost port or unix socket of the configuration.
    Localhost,
    /// A port of a virtual address.
    Virtual,
}

impl fmt::Display for ListenerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Published => "published",
            Self::Localhost => "localhost",
            Self::Virtual => "virtual",
        })
    }
}

/// How it stands with a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerState {
    /// It accepts; so many connections are open.
    Open {
        /// Client connections.
        connections: u32,
    },
    /// Somebody else serves it here, who is to: an instance of the service itself, or Docker for one. It is opened when that one lets
    /// it go.
    Held {
        /// Who, and how that is known.
        by: String,
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
    /// The port of the instances that it leads to, by name or number; their main port where there is none.
    pub target: Option<PortName>,
    /// It leads to instances of this node only.
    pub local: bool,
    /// Where it listens, or is to.
    pub address: Address,
    /// Its transport.
    pub protocol: Protocol,
    /// Why it is there.
    pub kind: ListenerKind,
    /// How it stands.
    pub state: ListenerState,
}

/// The status of what another service stands in the way of.
pub(super) fn conflict(port: Port, refused: &Refused) -> ListenerStatus {
    let Port { protocol, port } = port;
    let Refused { address, wanted, holder } = refused;
    let withdraw = |of: &Holder| match &of.watcher {
        None => format!("`plexus unpublish {} {port}/{protocol}`", of.service),
        Some(watcher) => format!("another port of {} at the place of the watcher {watcher}", of.service),
    };
    let (ours, theirs) = (withdraw(wanted), withdraw(holder));
    ListenerStatus {
        service: wanted.service.clone(),
        target: wanted.target.clone(),
        local: wanted.local,
        address: SocketAddr::new(*address, port.get()).into(),
        protocol,
        kind: ListenerKind::Published,
        state: ListenerState::Failed {
            error: format!(
                "port {port}/{protocol} is published by {} too, which has it; {theirs} or {ours}",
                holder.service
            ),
        },
    }
}
