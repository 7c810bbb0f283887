//! Why a limit refuses a connection.

use std::fmt;

/// Why a connection, or an attempt to connect it elsewhere, is refused. Counted by this word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refused {
    /// The service has as many connections as it may have.
    ServiceConnections,
    /// More new connections a second than it may have.
    ConnectionsPerSecond,
    /// The client's address has as many connections as it may have.
    ClientConnections,
    /// The endpoints are at their limit, and so is the queue.
    QueueFull,
    /// It waited for a place as long as it may.
    QueueTimeout,
    /// The endpoints are at their limit, and nobody may wait.
    AtLimit,
    /// Its endpoint failed, and more attempts at others would be a storm.
    RetryBudget,
}

impl Refused {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::ServiceConnections,
        Self::ConnectionsPerSecond,
        Self::ClientConnections,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::AtLimit,
        Self::RetryBudget,
    ];

    /// The word for it, as in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServiceConnections => "service_connections",
            Self::ConnectionsPerSecond => "connections_per_second",
            Self::ClientConnections => "client_connections",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::AtLimit => "at_limit",
            Self::RetryBudget => "retry_budget",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
