//! Which nodes are reached by their tunnels, and what this node shows of itself there: said by the control plane, read by
//! connections without a lock.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use nerve::model::{MtlsMode, NodeName};
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

/// How a connection gets to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// By a socket of its own.
    Direct,
    /// The same, since its node takes no tunnels: it would be one else.
    InClear,
    /// By the tunnel to its node; where that cannot be had, directly if that may be.
    Tunnel { peer: Arc<TunnelPeer>, or_directly: bool },
    /// Only by a tunnel, and its node has none.
    Forbidden,
}

impl Way {
    /// May nothing be sent there but by a tunnel?
    pub(super) fn is_by_tunnel_alone(&self) -> bool {
        matches!(self, Self::Forbidden | Self::Tunnel { or_directly: false, .. })
    }
}

/// How the nodes of the mesh are reached.
#[derive(Debug, Clone, Default)]
pub struct Ways {
    /// What holds for services that say nothing else.
    mode: MtlsMode,
    /// This node, whose endpoints are reached directly.
    own: Option<NodeName>,
    /// The nodes that take tunnels.
    peers: HashMap<NodeName, Arc<TunnelPeer>>,
}

impl Ways {
    /// With those nodes that take tunnels.
    #[must_use]
    pub fn new(mode: MtlsMode, own: Option<NodeName>, peers: impl IntoIterator<Item = TunnelPeer>) -> Self {
        let peers = peers.into_iter().map(|peer| (peer.node.clone(), Arc::new(peer))).collect();
        Self { mode, own, peers }
    }
}

/// The table, between the control plane that writes it and the data plane that asks it.
#[derive(Debug, Default)]
pub struct TunnelTable {
    ways: ArcSwap<Ways>,
    credentials: ArcSwapOption<TunnelCredentials>,
}

impl TunnelTable {
    /// How nodes are reached by new connections.
    pub fn set_ways(&self, ways: Ways) {
        self.ways.store(Arc::new(ways));
    }

    /// What is shown in handshakes from now on. Without any, no tunnel can be made, from here or to here.
    pub fn set_credentials(&self, credentials: Option<TunnelCredentials>) {
        self.credentials.store(credentials.map(Arc::new));
    }

    /// How endpoints are reached that a node has registered, of a service that may have a word of its own. What no node has
    /// registered has no tunnel, and is nobody's in the mesh.
    pub(super) fn way(&self, registered_by: Option<&NodeName>, of_service: Option<MtlsMode>) -> Way {
        let ways = self.ways.load();
        let mode = of_service.unwrap_or(ways.mode);
        let (Some(node), MtlsMode::Permissive | MtlsMode::Strict) = (registered_by, mode) else {
            return Way::Direct;
        };
        if ways.own.as_ref() == Some(node) {
            return Way::Direct;
        }
        let or_directly = mode == MtlsMode::Permissive;
        match ways.peers.get(node) {
            Some(peer) => Way::Tunnel { peer: Arc::clone(peer), or_directly },
            None if or_directly => Way::InClear,
            None => Way::Forbidden,
        }
    }

    pub(super) fn credentials(&self) -> Option<Arc<TunnelCredentials>> {
        self.credentials.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_is_never_direct_and_off_always() {
        let name = |name: &str| NodeName::new(name).unwrap();
        let peer = Arc::new(TunnelPeer { node: name("b"), address: "192.0.2.2:7443".parse().unwrap() });
        let table = TunnelTable::default();
        let through = |or_directly| Way::Tunnel { peer: Arc::clone(&peer), or_directly };
        let way = |node: &str, of_service| table.way(Some(&name(node)), of_service);
        use MtlsMode::{Off, Permissive, Strict};
        assert_eq!((way("b", None), way("b", Some(Strict))), (Way::Direct, Way::Forbidden));
        for mode in [Off, Permissive, Strict] {
            table.set_ways(Ways::new(mode, Some(name("a")), [TunnelPeer::clone(&peer)]));
            assert_eq!(way("a", None), Way::Direct, "its own");
            assert_eq!(table.way(None, None), Way::Direct, "of no node");
            assert_eq!((way("b", Some(Off)), way("c", Some(Off))), (Way::Direct, Way::Direct));
            assert_eq!(
                (way("b", Some(Permissive)), way("c", Some(Permissive))),
                (through(true), Way::InClear)
            );
            assert_eq!((way("b", Some(Strict)), way("c", Some(Strict))), (through(false), Way::Forbidden));
            assert_eq!(way("b", None), way("b", Some(mode)), "{mode}");
        }
    }
}
