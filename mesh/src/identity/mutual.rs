//! What other rooms need to have nodes prove themselves on ports of their own.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::model::NodeName;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, Error, ServerConfig};
use tokio::sync::watch;

use super::Handle;
use super::certificate::Certified;
use super::spiffe::Subject;
use super::tls::{self, Believed, Peers, Shown, Standing};

/// Both ends of TLS between nodes: each shows its certificate and believes nodes of the same mesh alone.
#[derive(Clone)]
pub struct Mutual {
    /// Of whoever connects.
    pub client: ClientConfig,
    /// Of whoever is connected to.
    pub server: ServerConfig,
    standing: Arc<Standing>,
}

impl fmt::Debug for Mutual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutual").finish_non_exhaustive()
    }
}

impl Mutual {
    /// Whose certificate it is, if it is a node's that may be believed now: it holds, and was not revoked. Its signature was
    /// verified when it was shown, which may be a while ago: sessions are resumed.
    #[must_use]
    pub fn node_of(&self, certificate: &CertificateDer<'_>) -> Option<NodeName> {
        let certified = Certified::read(certificate).ok()?;
        let holds = certified.not_after > SystemTime::now();
        let is_ours = self.standing.trust_domain().as_ref() == Some(&certified.id.trust_domain);
        if !holds || !is_ours || self.standing.revoked().refuses(&certified) {
            return None;
        }
        match certified.id.subject {
            Subject::Node(node) => Some(node),
            Subject::Signer(_) | Subject::Service(_) => None,
        }
    }
}

impl Handle {
    /// Counts up whenever this node has another certificate, or believes others than before.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.standing.changes()
    }

    /// Has this node something to prove itself by, now or soon?
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// How long this node's certificate holds still; `None`: it has none that holds.
    #[must_use]
    pub fn holds_for(&self) -> Option<Duration> {
        self.state.certified()?.not_after.duration_since(SystemTime::now()).ok()
    }

    /// The nodes whose certificates are refused, and since when, in seconds since 1970.
    #[must_use]
    pub fn revoked(&self) -> Vec<(NodeName, u64)> {
        let revoked = self.standing.revoked();
        revoked.nodes().map(|(node, since)| (node.clone(), since.at)).collect()
    }

    /// How this node proves itself on a port where `protocol` is spoken (ALPN, RFC 7301). What is shown and who is believed stays
    /// true by itself; sessions are those of this value.
    ///
    /// # Errors
    /// TLS cannot be had at all.
    pub fn mutual(&self, protocol: &[u8]) -> Result<Mutual, Error> {
        let believed = || {
            Arc::new(Believed {
                standing: Arc::clone(&self.standing),
                peers: Peers::Nodes,
                may_be_nobody: false,
            })
        };
        let shown = || Arc::new(Shown(Arc::clone(&self.standing)));
        Ok(Mutual {
            client: tls::client(believed(), Some(shown()), protocol)?,
            server: tls::server(believed(), shown(), protocol)?,
            standing: Arc::clone(&self.standing),
        })
    }
}
