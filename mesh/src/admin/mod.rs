//! The admin interface: what the agent knows and does, over HTTP.
//!
//! `/healthz`, `/readyz` and `/metrics` are what orchestrators and Prometheus expect; `/v1/plexus/…` is JSON for the
//! command line ([`crate::api`] has the types). It reads the handles of every room and changes only what a user asks
//! for: published ports, overlay networks, instances of this node, drains. Everything that fails on the node is told by `/v1/plexus/status`.
//!
//! Who may do what there is [`access`]'s to say: unless told otherwise, who comes over loopback or the unix socket everything, and who
//! comes from elsewhere nothing without a token. Only the agent imports this room.

mod access;
mod attachments;
mod bound;
mod checks;
mod consul;
mod dns;
mod doctor;
mod guard;
mod identity;
mod local;
mod metrics;
mod mtls;
mod names;
mod networks;
mod read;
mod refusal;
mod routes;
mod rules;
mod server;
mod settings;
mod socket;
mod upstreams;
mod watchers;
mod who_may;
mod write;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use nerve::model::{Instance, InstanceId, Node, ServiceName};
use nerve::store::Store;
use synapse::catalog::{Catalog, Service};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::api::{
    DnsInfo, Finding, Problem, Resolution, TookOver, TopList, UpstreamInfo, WatcherInfo, WhyBalance,
    WhyListener, WhyPick, WhyPlain,
};
use crate::identity::Handle as Identity;
use crate::readiness::Readiness;
use crate::routes::Route;
use crate::rules::Rules as WhoMay;

pub use access::{Access, Digest, DigestError, Role, RoleError, Rules, Token};
pub use attachments::{Attacher, NotAttached};
pub use bound::Bound;
pub use metrics::Metrics;
pub use socket::{SocketConfig, SocketHandle};

/// Where the admin interface listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// TCP addresses.
    pub listen: Vec<SocketAddr>,
    /// A unix socket.
    pub socket: Option<SocketConfig>,
    /// Who may do what.
    pub access: Access,
}

impl Default for Config {
    fn default() -> Self {
        let listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 7070))];
        Self { listen, socket: None, access: Access::default() }
    }
}

/// What the admin interface reads and asks.
#[derive(Clone)]
pub struct Handles {
    /// Who may do what.
    pub rules: Rules,
    /// This node, as it is registered.
    pub node: Arc<Node>,
    /// When the agent started.
    pub started: Instant,
    /// The agent that it took over from, if it did.
    pub took_over: Option<TookOver>,
    /// Where the agent is in its life: `starting`, `running`, `draining`, …
    pub phase: watch::Receiver<&'static str>,
    /// What is awaited.
    pub readiness: Readiness,
    /// This node's copy of everything.
    pub catalog: Catalog,
    /// What runs on this node; for registering and draining.
    pub registrar: nerve::registrar::Handle,
    /// For publishing, and for networks.
    pub store: Arc<dyn Store>,
    /// Every metric of the agent.
    pub registry: prometheus::Registry,
    /// What the data plane does for a service.
    pub traffic: Arc<dyn Traffic>,
    /// The virtual addresses of a service that lead to it on this node.
    pub virtual_addresses: VirtualAddresses,
    /// Where an endpoint sees this node's address although its service asks for the clients'.
    pub plain: Plain,
    /// Attaches containers to overlay networks.
    pub attacher: Arc<dyn Attacher>,
    /// The routes of this host, read when a network is created.
    pub host_routes: HostRoutes,
    /// Looks what is wrong on this node.
    pub examiner: Examiner,
    /// What DNS answers here; `None` where it does not run.
    pub resolver: Option<Arc<dyn Resolver>>,
    /// Where it does so.
    pub name_server: NameServer,
    /// Who this node is; `None` while the agent starts.
    pub identity: Option<Identity>,
    /// How it reaches others, and is reached; `None` while the agent starts.
    pub mtls: Option<crate::mtls::Handle>,
    /// What rules say of who may talk to whom.
    pub who_may: WhoMay,
    /// Where this node looks for services.
    pub watchers: WatcherStates,
    /// What only the agent knows to fail: a refused reload, a missing privilege.
    pub problems: Arc<dyn Fn() -> Vec<Problem> + Send + Sync>,
}

/// The virtual addresses of a service that count on this node, of those that are claimed for it.
pub type VirtualAddresses = Arc<dyn Fn(&Service) -> Vec<IpAddr> + Send + Sync>;

/// Where an endpoint of a service sees this node's address instead of the clients'.
pub type Plain = Arc<dyn Fn(&Service, &Instance) -> WhyPlain + Send + Sync>;

/// Where this node's name server answers, at this moment.
pub type NameServer = Arc<dyn Fn() -> DnsInfo + Send + Sync>;

/// How the watchers of this node stand, in the order in which they are believed.
pub type WatcherStates = Arc<dyn Fn() -> Vec<WatcherInfo> + Send + Sync>;

/// The routes of this host, as the kernel has them at this moment.
pub type HostRoutes = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Vec<Route>>> + Send + Sync>;

/// Looks at what overlay networks need, on this node and between it and the others.
pub type Examiner = Arc<dyn Fn() -> BoxFuture<'static, Vec<Finding>> + Send + Sync>;

/// The handles, as every answer gets them.
type Shared = axum::extract::State<Arc<Handles>>;

/// What this node's data plane does for a service: listeners, and connections to endpoints. The agent composes it of the
/// handles of ingress and balancer, so that this room knows neither's types.
pub trait Traffic: Send + Sync {
    /// What was sent from here to an endpoint, over all listeners.
    fn endpoint(&self, service: &ServiceName, endpoint: &InstanceId) -> Counts;

    /// How the balancer of a service stands, and what it makes of each endpoint; `None` where nothing here leads to it.
    fn balance(&self, service: &ServiceName) -> Option<(WhyBalance, HashMap<InstanceId, WhyPick>)>;

    /// What this node listens on, or should, for a service.
    fn listeners(&self, service: &ServiceName) -> Vec<WhyListener>;
}

/// Connections from this node to one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Open now.
    pub in_flight: u64,
    /// So far.
    pub connections: u64,
    /// Of these, those that could not be established.
    pub connect_failures: u64,
}

/// What this node's DNS answers. The agent composes it of the name server's zone.
pub trait Resolver: Send + Sync {
    /// The answer, and how it comes about.
    ///
    /// # Errors
    /// Why the question cannot be asked: what is no name, or no record type.
    fn explain(&self, name: &str, record_type: &str) -> Result<Resolution, String>;

    /// Whom other names are asked of, and how they do.
    fn upstreams(&self) -> Vec<UpstreamInfo>;

    /// What is asked most.
    fn top(&self) -> TopList;
}

impl fmt::Debug for Handles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handles").field("node", &self.node.name).finish_non_exhaustive()
    }
}

/// Why the admin interface cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be bound.
    #[error("the admin interface cannot listen on {address}: {source}; {}", bound::advice(.source))]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}
