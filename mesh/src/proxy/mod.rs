//! Moving connections: clients on a listener, endpoints behind a [`Balancer`](crate::balance::Balancer).
//!
//! The [`DataPlane`] owns a few threads. Each is one loop around one epoll instance, with its own `SO_REUSEPORT` socket for
//! every listener. A connection stays with one thread: the one that accepted it, or another one that has fewer. Connections are small states in an arena,
//! pushed forward by events; there is no task, no lock and no allocation for one that goes its usual way. The control plane
//! opens and closes listeners by message and never waits in the path of a connection. Knows nothing of the catalog: what a
//! service is, its balancer says. `docs/performance.md` says why.

mod acceptor;
mod access;
mod arena;
mod command;
mod connection;
mod count;
mod datagrams;
mod error;
mod flow;
mod inbox;
mod io;
mod limit;
mod listening;
mod load;
mod metrics;
mod peer;
mod pipe;
mod plane;
mod poll;
pub mod proxy_protocol;
mod route;
mod seat;
mod side;
mod socket;
#[cfg(test)]
mod tests;
mod timers;
mod transparent;
mod trusted;
mod tunnel;
mod tunnel_listener;
mod tunnel_metrics;
mod tunnel_refusal;
mod tunnel_route;
mod tunnel_table;
mod udp;
mod udp_metrics;
mod udp_route;
mod unix;
mod unix_listener;
mod worker;

use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

pub use access::{AccessRules, AccessTable};
pub use error::{BindError, Dropped, Transport};
pub use metrics::Metrics;
pub use plane::{DataPlane, Listener, ListenerSpec, Sharing};
pub use transparent::{Plain, Steering, Way, Ways};
pub use trusted::TrustedProxy;
pub use tunnel::header as tunnel_header;
pub use tunnel_listener::TunnelListenerSpec;
pub use tunnel_metrics::TunnelFailure;
pub use tunnel_refusal::Refusal;
pub use tunnel_route::{TunnelCall, TunnelTargets};
pub use tunnel_table::{Identify, TunnelCredentials, TunnelPeer, TunnelTable, Ways as TunnelWays};
pub use udp_metrics::Lost;
pub use unix_listener::{UnixListenError, UnixListenerSpec};

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
    /// Options of the sockets.
    pub tcp: TcpOptions,
    /// Proxies in front of this one: such a client must begin with a PROXY protocol header, and is believed.
    pub trusted_proxies: Arc<[TrustedProxy]>,
    /// The address that clients of unix sockets, which have none, are known by to limits, affinity and hash policies: together
    /// they are one client.
    pub unix_clients: IpAddr,
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

/// Options of the sockets of connections, on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpOptions {
    /// Probe a peer that has been silent for so long; a host that vanished is noticed so.
    pub keepalive: Duration,
    /// Time between probes that are not answered, of which the kernel makes `net.ipv4.tcp_keepalive_probes`.
    pub keepalive_interval: Duration,
    /// Give a connection up when what was sent is not acknowledged for so long (`TCP_USER_TIMEOUT`); `None`: what the
    /// kernel's retransmissions take, about a quarter of an hour.
    pub user_timeout: Option<Duration>,
    /// Accept a client only when it has said something (`TCP_DEFER_ACCEPT`). Not for protocols in which the server speaks first.
    pub defer_accept: bool,
    /// The kernel's buffer for what a socket is to send, in bytes; `None`: the kernel adapts it.
    pub send_buffer: Option<NonZeroU32>,
    /// The kernel's buffer for what a socket has received, in bytes; `None`: the kernel adapts it.
    pub receive_buffer: Option<NonZeroU32>,
    /// Further addresses of this host to connect from, when the ports of the one that the kernel chooses are used up: each gives
    /// some 28,000 more connections to one endpoint.
    pub source_addresses: Vec<IpAddr>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(15),
            user_timeout: None,
            defer_accept: false,
            send_buffer: None,
            receive_buffer: None,
            source_addresses: Vec::new(),
        }
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
            tcp: TcpOptions::default(),
            trusted_proxies: Arc::default(),
            unix_clients: Ipv4Addr::LOCALHOST.into(),
            udp: UdpOptions::default(),
        }
    }
}
