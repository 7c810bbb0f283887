//! DNS: the names of the mesh, answered from the catalog; other names, forwarded.
//!
//! [`zone`] is pure: a name and a type → records. [`server`] carries it over UDP and TCP with hickory-server; [`forward`]
//! relays other names upstream, with a cache and limits of its own, and never stands in the way of the mesh's names.
//! Nothing is kept between catalog and answer, so there is nothing to flush. hickory's types do not leave this room.

mod cache;
mod domain;
mod explain;
mod forward;
mod handler;
mod metrics;
mod server;
mod zone;

use std::net::SocketAddr;
use std::time::Duration;

use nerve::model::NodeName;

pub use domain::{Domain, DomainError};
pub use explain::Explanation;
pub use metrics::Metrics;
pub use server::{BindError, Bound, ListenState, Server};
pub use zone::Zone;

/// What the name server does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node: it is named as the zone's server.
    pub node: NodeName,
    /// Addresses, UDP and TCP each. Concrete ones: a reply leaves from the address that was asked.
    pub listen: Vec<SocketAddr>,
    /// The domain of the mesh.
    pub domain: Domain,
    /// How long an answer may be kept by whoever asked.
    pub ttl: Duration,
    /// Who is asked for other names; empty: the servers of `/etc/resolv.conf`.
    pub upstreams: Vec<SocketAddr>,
}
