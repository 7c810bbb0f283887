//! Moving connections: clients on a listener, endpoints behind a [`Balancer`](crate::balance::Balancer).
//!
//! The [`DataPlane`] owns a few threads. Each is one loop around one epoll instance, with its own `SO_REUSEPORT` socket for
//! every listener: a connection lives and dies on the thread that accepted it. Connections are small states in an arena,
//! pushed forward by events; there is no task, no lock and no allocation for one that goes its usual way. The control plane
//! opens and closes listeners by message and never waits in the path of a connection. Knows nothing of the catalog: what a
//! service is, its balancer says. `docs/performance.md` has the alternatives that were measured.

mod arena;
mod connection;
mod count;
mod error;
mod flow;
mod inbox;
mod io;
mod limit;
mod listening;
mod metrics;
mod pipe;
mod plane;
mod poll;
mod route;
mod side;
mod socket;
#[cfg(test)]
mod tests;
mod timers;
mod udp;
mod worker;

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

pub use error::{BindError, Dropped, Transport};
pub use metrics::Metrics;
pub use plane::{DataPlane, Listener, ListenerSpec, Sharing};
pub use udp::Lost;

/// How connections are moved; the same for every listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Data-plane threads; `None`: one a core.
    pub threads: Option<NonZeroUsize>,
    /// How long one attempt to connect to an endpoint may take.
    pub connect_timeout: Duration,
    /// How long all attempts for one client may take together.
    pub connect_deadline: Duration,
    /// Close a connection on which nothing moved for this long; `None`: never, a quiet database connection lives for days.
    pub idle_timeout: Option<Duration>,
    /// Open client connections over all listeners; `None`: what the file limit allows (two descriptors each).
    pub max_connections: Option<NonZeroU32>,
    /// What is different for datagrams.
    pub udp: UdpOptions,
}

/// How sessions of UDP are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpOptions {
    /// A session on which nothing moved for this long has ended.
    pub idle_timeout: Duration,
    /// Sessions over all listeners; each counts as a connection too. `None`: a quarter of the connections, as far as there are
    /// ports.
    pub max_sessions: Option<NonZeroU32>,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self { idle_timeout: Duration::from_secs(60), max_sessions: None }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            threads: None,
            connect_timeout: Duration::from_secs(1),
            connect_deadline: Duration::from_secs(5),
            idle_timeout: None,
            max_connections: None,
            udp: UdpOptions::default(),
        }
    }
}
