//! What the runner tells its load generator, and what it is told back: JSON over arguments and pipes.

use std::net::SocketAddrV4;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a client does over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Connect, send a request, receive the response and the end, close.
    Close,
    /// Request and response on a connection that is kept.
    Keep,
    /// Request and response as datagrams.
    Datagram,
    /// Send without end.
    Up,
    /// Receive without end.
    Down,
    /// One request and response on each connection, then silence.
    Idle,
}

/// The order to a load generator.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// What it does.
    pub load: Load,
    /// Where; taken in turn.
    pub targets: Vec<SocketAddrV4>,
    /// At how many places at a time.
    pub concurrency: usize,
    /// Load that is not counted, before.
    pub warm_up: Duration,
    /// Load that is counted.
    pub window: Duration,
}

/// Operations that did not end as they should, by what went wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// No socket, or no connection.
    pub connect: u64,
    /// Reset, or another error of an open connection.
    pub broken: u64,
    /// Closed before the response was complete.
    pub closed: u64,
    /// What came is not what was to come.
    pub content: u64,
    /// No end within [`PATIENCE`](super::client::PATIENCE); for datagrams: lost.
    pub overdue: u64,
}

impl Errors {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.connect + self.broken + self.closed + self.content + self.overdue
    }

    /// Those that happened since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            connect: self.connect.saturating_sub(earlier.connect),
            broken: self.broken.saturating_sub(earlier.broken),
            closed: self.closed.saturating_sub(earlier.closed),
            content: self.content.saturating_sub(earlier.content),
            overdue: self.overdue.saturating_sub(earlier.overdue),
        }
    }

    /// These and others.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            connect: self.connect + other.connect,
            broken: self.broken + other.broken,
            closed: self.closed + other.closed,
            content: self.content + other.content,
            overdue: self.overdue + other.overdue,
        }
    }
}

/// What a load generator has seen in its window.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tally {
    /// How long the window was in the end.
    pub window: Duration,
    /// Operations that ended well: connections, exchanges; nothing for streams.
    pub operations: u64,
    /// Bytes of streams received.
    pub bytes: u64,
    /// What went wrong.
    pub errors: Errors,
    /// How long operations took, from beginning to end.
    pub latency: Latency,
    /// Connections that are open, where they are what is measured.
    pub open: u64,
}

/// Percentiles of a distribution, good to 1.6 %.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Half took no longer.
    pub p50: Duration,
    /// 99 of 100 took no longer.
    pub p99: Duration,
    /// 999 of 1000 took no longer.
    pub p999: Duration,
}

/// What a backend has seen since it was started.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Served {
    /// Requests answered.
    pub exchanges: u64,
    /// Bytes of streams received.
    pub bytes: u64,
    /// What went wrong.
    pub errors: Errors,
}
