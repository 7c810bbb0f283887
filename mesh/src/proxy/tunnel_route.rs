//! What all streams that arrive by one tunnel port share on one thread: who may go where, and what counts them.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use nerve::model::{Address, NodeName};

use super::Config;
use super::load::Load;
use super::route::{ListenerId, OpenConnections};
use super::tunnel_refusal::Refusal;

/// What another node asks for: that a client of its is connected to an endpoint here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelCall<'a> {
    /// Who asks, as its certificate says.
    pub node: &'a NodeName,
    /// For which service. What this is was said by the other node, and need not be a service's name.
    pub service: &'a str,
    /// The endpoint's address, as the other node knows it.
    pub target: SocketAddr,
    /// The client's, as the other node says; a client of a unix socket has none.
    pub client: Option<SocketAddr>,
    /// The service that the client is an instance of, as the other node says, where it knows; it need not be a service's name either.
    pub client_service: Option<&'a str>,
}

/// Says where what arrives by a tunnel may go. Asked by data-plane threads for each stream: it must not block.
pub trait TunnelTargets: fmt::Debug + Send + Sync {
    /// Where to connect to: an endpoint of this node, of the service that is asked for.
    ///
    /// # Errors
    /// Why not.
    fn target(&self, call: &TunnelCall<'_>) -> Result<Address, Refusal>;
}

/// Where a tunnel port's streams go.
#[derive(Debug)]
pub(super) struct TunnelRoute {
    pub(super) listener: ListenerId,
    pub(super) open: Arc<OpenConnections>,
    pub(super) targets: Arc<dyn TunnelTargets>,
    pub(super) config: Arc<Config>,
    /// The thread's.
    pub(super) load: Arc<Load>,
}

/// The route of one stream, which counts as an open connection until this is dropped.
#[derive(Debug)]
pub(super) struct OpenTunnelRoute(Arc<TunnelRoute>);

impl OpenTunnelRoute {
    pub(super) fn new(route: &Arc<TunnelRoute>) -> Self {
        route.open.add();
        route.load.add_connection();
        Self(Arc::clone(route))
    }
}

impl Deref for OpenTunnelRoute {
    type Target = TunnelRoute;

    fn deref(&self) -> &TunnelRoute {
        &self.0
    }
}

impl Drop for OpenTunnelRoute {
    fn drop(&mut self) {
        self.open.sub();
        self.load.sub_connection();
    }
}
