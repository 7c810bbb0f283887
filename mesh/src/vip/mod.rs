//! Virtual addresses: each service gets one, and every node takes the whole range for its own.
//!
//! Two tasks. One keeps the claims (`vips/<ip>` in the store): a service without an address gets one, an address whose
//! service has been gone for long is freed; the store decides every race by compare-and-swap. The other keeps the
//! routes: `local <range> dev lo`, so that a packet to any address of the range ends on the node that it meets first.
//! Who listens on the addresses is ingress's business, who answers with them DNS's; both are told which ranges this node
//! [can use](Handle::usable). Without `CAP_NET_ADMIN` no range can be used here, that is said, and the rest of the agent
//! does not notice.

mod choice;
mod claims;
mod keeper;
mod metrics;
mod netlink;
mod plan;
mod routes;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nerve::model::{NodeName, Prefix};
use nerve::store::Store;
use nerve::tasks::Tasks;
use synapse::catalog::Catalog;
use tokio::sync::watch;

pub use metrics::Metrics;

/// Which addresses services get, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub node: NodeName,
    /// The ranges that addresses are taken from, IPv4 and IPv6; none: no virtual addresses.
    pub ranges: Vec<Prefix>,
    /// How long the address of a service that is gone stays its own.
    pub release_after: Duration,
}

/// Virtual addresses as this node has them. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    ranges: Arc<[Prefix]>,
    usable: watch::Receiver<Usable>,
    /// It was looked which they are.
    judged: Arc<watch::Sender<bool>>,
    problems: Arc<Problems>,
}

/// The ranges that are local on this node now.
pub type Usable = Arc<[Prefix]>;

/// What fails, in words: the routes' part and the claims'.
#[derive(Debug, Default)]
struct Problems {
    routes: Mutex<Vec<String>>,
    claims: Mutex<Vec<String>>,
}

/// Virtual addresses that nobody keeps yet: what asks which are usable can be made before the store is open.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    handle: Handle,
    tell: watch::Sender<Usable>,
}

impl Prepared {
    /// No address is usable yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let (tell, usable) = watch::channel(Usable::from([]));
        let ranges = config.ranges.clone().into();
        let judged = Arc::new(watch::Sender::new(config.ranges.is_empty()));
        let handle = Handle { ranges, usable, judged, problems: Arc::default() };
        Self { config, handle, tell }
    }

    /// For whoever asks.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Starts both tasks; none where no range is configured.
    #[must_use]
    pub fn start(self, catalog: Catalog, store: Arc<dyn Store>, metrics: Metrics, tasks: &Tasks) -> Handle {
        let Self { config, handle, tell } = self;
        if !config.ranges.is_empty() {
            routes::start(&config, tell, handle.clone(), metrics.clone(), tasks);
            keeper::start(config, catalog, store, handle.clone(), metrics, tasks);
        }
        handle
    }
}

impl Handle {
    /// The ranges that are local here, now and whenever that changes.
    #[must_use]
    pub fn usable(&self) -> watch::Receiver<Usable> {
        self.usable.clone()
    }

    /// Completes when it is known which ranges are local here; at once where none is configured. Cancel-safe.
    pub async fn judged(&self) {
        // The sender lives in `self`, so the channel cannot close while this waits.
        let _ = self.judged.subscribe().wait_for(|judged| *judged).await;
    }

    /// Do packets to this address end here?
    #[must_use]
    pub fn is_usable(&self, address: IpAddr) -> bool {
        self.usable.borrow().iter().any(|range| range.contains(address))
    }

    /// The addresses of a service that count on this node, of those that are claimed for it: the first of each family.
    pub fn effective<'a>(&'a self, claimed: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + 'a {
        let first = |v4: bool| {
            claimed.iter().copied().find(move |address| address.is_ipv4() == v4 && self.is_usable(*address))
        };
        [first(true), first(false)].into_iter().flatten()
    }

    /// What fails, a sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let list = |part: &Mutex<Vec<String>>| part.lock().unwrap_or_else(PoisonError::into_inner).clone();
        [list(&self.problems.routes), list(&self.problems.claims)].concat()
    }

    /// Takes the routes away that this agent made: the node is no way to the services any more. Call it after the tasks
    /// were stopped, and not when another agent takes over.
    pub async fn withdraw(&self) {
        if !self.ranges.is_empty()
            && let Err(error) = netlink::remove_all().await
        {
            tracing::warn!(%error, "the routes of virtual addresses stay behind; the next agent takes them over");
        }
    }
}

impl Problems {
    fn set(part: &Mutex<Vec<String>>, problems: Vec<String>) {
        let mut known = part.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            tracing::error!("{problem}");
        }
        *known = problems;
    }
}
