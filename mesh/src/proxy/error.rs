//! What goes wrong with listeners and connections.

use std::fmt;
use std::io;
use std::net::SocketAddr;

/// A listener that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}/{transport}: {source}{}", crate::advice::on_bind(source, *address))]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// And for what.
    pub transport: Transport,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// Why a client's connection was dropped: the closed set behind `plexus_connections_dropped_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// No endpoint gets traffic.
    NoEndpoint,
    /// Every endpoint was tried and none accepted.
    ConnectFailed,
    /// The connect deadline passed before one accepted.
    ConnectDeadline,
    /// As many connections are open as are allowed.
    Limit,
    /// This process or host is out of descriptors or memory.
    OutOfDescriptors,
    /// Every port of this host's addresses is in use towards every endpoint.
    OutOfPorts,
    /// A limit of the service is reached, and nobody may wait, or too many do.
    AtLimit,
    /// It waited for a place for as long as it may.
    QueueTimeout,
    /// A rule forbids the client to talk to the service.
    Denied,
    /// A trusted proxy sent no PROXY protocol header, a malformed one, or none in time.
    ProxyHeader,
    /// Its endpoint died, and nothing was under way.
    EndpointDied,
    /// Nothing moved for the idle timeout.
    Idle,
    /// The drain's deadline passed.
    Drain,
    /// The client reset it.
    ClientReset,
    /// The endpoint reset it.
    EndpointReset,
    /// The node that its endpoint is on was revoked.
    NodeRevoked,
    /// A mistake in this program; the log has it.
    Panic,
}

impl Dropped {
    /// Every reason there is.
    pub const ALL: [Self; 17] = [
        Self::NoEndpoint,
        Self::ConnectFailed,
        Self::ConnectDeadline,
        Self::Limit,
        Self::OutOfDescriptors,
        Self::OutOfPorts,
        Self::AtLimit,
        Self::QueueTimeout,
        Self::Denied,
        Self::ProxyHeader,
        Self::EndpointDied,
        Self::Idle,
        Self::Drain,
        Self::ClientReset,
        Self::EndpointReset,
        Self::NodeRevoked,
        Self::Panic,
    ];

    /// The word for it, as in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectDeadline => "connect_deadline",
            Self::Limit => "limit",
            Self::OutOfDescriptors => "out_of_descriptors",
            Self::OutOfPorts => "out_of_ports",
            Self::AtLimit => "at_limit",
            Self::QueueTimeout => "queue_timeout",
            Self::Denied => "denied",
            Self::ProxyHeader => "proxy_header",
            Self::EndpointDied => "endpoint_died",
            Self::Idle => "idle",
            Self::Drain => "drain",
            Self::ClientReset => "client_reset",
            Self::EndpointReset => "endpoint_reset",
            Self::NodeRevoked => "node_revoked",
            Self::Panic => "panic",
        }
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}
