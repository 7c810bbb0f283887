//! Which nodes are reached by their tunnels, and what this node shows of itself there: said by the control plane, read by
//! connections without a lock.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use nerve::model::NodeName;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};

/// Whose certificate is it? Asked after each handshake, also after those that resume a session: there rustls verifies nothing
/// anew. So this looks at what may have changed since: whether it has expired, and whether it was revoked.
pub type Identify = Arc<dyn Fn(&CertificateDer<'_>) -> Option<NodeName> + Send + Sync>;

/// What this node shows to others in tunnels, and whom it believes.
#[derive(Clone)]
pub struct TunnelCredentials {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    identify: Identify,
}

impl TunnelCredentials {
    /// With configurations of rustls's that speak TLS 1.3 alone and verify both sides: the server's must ask for a certificate and
    /// refuse whoever has none. Both are copied, since keys are to be had of them afterwards; what they share (sessions, tickets)
    /// stays shared.
    #[must_use]
    pub fn new(client: &ClientConfig, server: &ServerConfig, identify: Identify) -> Self {
        let (mut client, mut server) = (client.clone(), server.clone());
        // Records are protected here, with the keys that the handshake has made.
        client.enable_secret_extraction = true;
        server.enable_secret_extraction = true;
        // Which node is connected to is nobody's business on the way.
        client.enable_sni = false;
        Self { client: Arc::new(client), server: Arc::new(server), identify }
    }

    pub(super) fn client(&self) -> &Arc<ClientConfig> {
        &self.client
    }

    pub(super) fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    pub(super) fn identify(&self, certificate: &CertificateDer<'_>) -> Option<NodeName> {
        (self.identify)(certificate)
    }
}

impl fmt::Debug for TunnelCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelCredentials").finish_non_exhaustive()
    }
}

/// A node that is reached by its tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TunnelPeer {
    /// Whose certificate must be shown there.
    pub node: NodeName,
    /// Where its tunnel port is.
    pub address: SocketAddr,
}

/// The table, between the control plane that writes it and the data plane that asks it.
#[derive(Debug, Default)]
pub struct TunnelTable {
    peers: ArcSwap<HashMap<NodeName, Arc<TunnelPeer>>>,
    credentials: ArcSwapOption<TunnelCredentials>,
}

impl TunnelTable {
    /// Connections to endpoints of these nodes go through their tunnels from now on, those to others directly. This node is none
    /// of them.
    pub fn set_peers(&self, peers: impl IntoIterator<Item = TunnelPeer>) {
        let peers = peers.into_iter().map(|peer| (peer.node.clone(), Arc::new(peer))).collect();
        self.peers.store(Arc::new(peers));
    }

    /// What is shown in handshakes from now on. Without any, no tunnel can be made, from here or to here.
    pub fn set_credentials(&self, credentials: Option<TunnelCredentials>) {
        self.credentials.store(credentials.map(Arc::new));
    }

    /// The tunnel that leads to a node's endpoints.
    pub(super) fn to(&self, node: &NodeName) -> Option<Arc<TunnelPeer>> {
        let peers = self.peers.load();
        if peers.is_empty() { None } else { peers.get(node).map(Arc::clone) }
    }

    pub(super) fn credentials(&self) -> Option<Arc<TunnelCredentials>> {
        self.credentials.load_full()
    }
}
