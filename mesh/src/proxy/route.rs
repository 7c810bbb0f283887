//! What all connections of one listener on one thread share.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use prometheus::Histogram;

use super::access::AccessTable;
use super::load::Load;
use super::metrics::Tally;
use super::peer::Peer;
use super::transparent::Steering;
use super::tunnel_table::TunnelTable;
use super::{Config, TrustedProxy};
use crate::balance::Balancer;

/// Where a listener's connections go, and what counts them.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) listener: ListenerId,
    pub(super) open: Arc<OpenConnections>,
    pub(super) balancer: Arc<Balancer>,
    pub(super) config: Arc<Config>,
    pub(super) tally: Arc<Tally>,
    pub(super) connect_time: Histogram,
    /// Who is believed when it says in a PROXY protocol header whom it speaks for.
    pub(super) trusted_proxies: Arc<[TrustedProxy]>,
    /// Which endpoints can be shown the client's address.
    pub(super) steering: Arc<Steering>,
    /// Who may come in.
    pub(super) access: Arc<AccessTable>,
    /// Which endpoints are reached by tunnels.
    pub(super) tunnels: Arc<TunnelTable>,
    /// Clients come by a unix socket.
    pub(super) is_unix: bool,
    /// The thread's.
    pub(super) load: Arc<Load>,
}

/// The route of one connection, which counts as open from when a thread is chosen for it until this is dropped.
#[derive(Debug)]
pub(super) struct OpenRoute(Arc<Route>);

impl OpenRoute {
    pub(super) fn new(route: &Arc<Route>) -> Self {
        route.open.add();
        route.load.add_connection();
        Self(Arc::clone(route))
    }
}

impl Deref for OpenRoute {
    type Target = Route;

    fn deref(&self) -> &Route {
        &self.0
    }
}

impl Drop for OpenRoute {
    fn drop(&mut self) {
        self.open.sub();
        self.load.sub_connection();
    }
}

impl Route {
    /// Must this client begin with a PROXY protocol header?
    pub(super) fn is_trusted_proxy(&self, peer: Peer) -> bool {
        self.trusted_proxies.iter().any(|trusted| trusted.is(peer))
    }
}

/// Which listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListenerId(u64);

impl ListenerId {
    /// The number must not have been given to another one.
    pub(super) fn new(number: u64) -> Self {
        Self(number)
    }

    /// One of `count` places: those after one another get different ones.
    pub(super) fn place(self, count: usize) -> usize {
        usize::try_from(self.0).unwrap_or_default() % count.max(1)
    }
}

/// What one thread has open of one listener.
#[derive(Debug, Default)]
pub(super) struct OpenConnections {
    count: AtomicU32,
    /// It accepts no more.
    stopped: AtomicBool,
}

impl OpenConnections {
    pub(super) fn add(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sub(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub(super) fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}
