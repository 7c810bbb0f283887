//! Steering what endpoints answer to clients back to the balancer's sockets, for services with `client_address=transparent`.
//!
//! Such a socket has the client's address, so the endpoint's answers are addressed to the client and would leave this node, or
//! never arrive. While a service asks for it and has an endpoint here, one task keeps in the kernel what turns them round: a
//! table of packet filter rules that mark them (`ruleset`), and for the mark a routing rule and a route that make every address
//! this host's own (`netlink`). It also judges for each endpoint whether its answers come by here at all (`plan`), and tells the
//! data plane ([`Steering`]), which asks no further.
//!
//! Answers of containers are known by the socket that they are for (`socket` of nft): no state but the socket. Answers of
//! processes of this host are on their way out when they can be marked, where nothing is looked up among sockets; for them, and
//! only while there are such endpoints, the rules use the connection tracking of the kernel, which then tracks every connection of
//! the host. Nobody else's rules, routes or bits of marks are ever touched.

mod keeper;
mod metrics;
mod netlink;
mod nft;
mod plan;
mod ruleset;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nerve::model::{ClientAddress, Instance, NodeName};
use nerve::tasks::Tasks;
use synapse::catalog::{Catalog, Service};

pub use metrics::Metrics;

use crate::proxy::{Plain, Steering};

/// What answers are told by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node: only its endpoints can be shown a client's address.
    pub node: NodeName,
    /// Where other nodes reach it.
    pub address: IpAddr,
    /// A bit of the marks of packets, sockets and tracked connections that nobody else uses; the next higher one is used too.
    pub mark: u32,
    /// A routing table that nobody else uses.
    pub table: u32,
}

/// How it stands, for readers. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    config: Arc<Config>,
    steering: Arc<Steering>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    problem: Mutex<Option<String>>,
    /// The kernel has something of ours, or may have.
    applied: AtomicBool,
}

/// Starts the task.
#[must_use]
pub fn start(
    config: Config,
    catalog: Catalog,
    steering: Arc<Steering>,
    metrics: Metrics,
    tasks: &Tasks,
) -> Handle {
    let handle = Handle { config: Arc::new(config), steering, shared: Arc::default() };
    keeper::start(handle.clone(), catalog, metrics, tasks);
    handle
}

impl Handle {
    /// What fails, a sentence.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why an endpoint of a service that asks for the client's address sees this node's, whoever the client; `None` where it sees
    /// the client's, or nobody asked.
    #[must_use]
    pub fn plain(&self, service: &Service, instance: &Instance) -> Option<String> {
        if !asks(service) {
            return None;
        }
        let ways = self.steering.ways();
        let plain = match ways.endpoints.get(&instance.address) {
            _ if instance.node != self.config.node => Plain::Elsewhere,
            _ if ways.off => Plain::Off,
            Some(Ok(_)) => return None,
            Some(Err(plain)) => *plain,
            None => Plain::Off,
        };
        Some(words(plain).to_owned())
    }

    /// Takes everything of ours out of the kernel. Call it after the task was stopped and no connection is left, and not when
    /// another agent takes over.
    pub async fn withdraw(&self) {
        if self.shared.applied.swap(false, Ordering::SeqCst)
            && let Err(error) = keeper::clear().await
        {
            tracing::warn!(%error, "what steers answers to clients' addresses stays behind; the next agent takes it over");
        }
    }
}

fn asks(service: &Service) -> bool {
    service.settings.client_address == Some(ClientAddress::Transparent)
}

fn words(plain: Plain) -> &'static str {
    match plain {
        Plain::Off => "answers to clients' addresses are not steered here, see plexus status",
        Plain::Elsewhere => "its answers do not pass through this node",
        Plain::SourceCheck => "net.ipv4.conf.*.src_valid_mark = 1 on its interface would drop its answers",
        Plain::Family | Plain::Scope | Plain::Neighbour => "this client's address cannot be shown to it",
    }
}
