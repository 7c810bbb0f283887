//! Who this node is, and whom it believes.
//!
//! A node proves itself by a short-lived X.509-SVID ([`spiffe`], RFC 5280) whose key never leaves it. Nodes that have the authority's
//! key certify others: at first by a join token ([`token`]), then by the certificate that is to be renewed. The store lists where they
//! are, counts a token's uses and says whom nobody believes any more; it cannot make anybody believed.
//!
//! `authority` is the key and its certificate, `signer` what it answers, `join` how it is asked, `keeper` sees to it that there is always
//! a certificate that holds, `tls` has both sides of a connection prove themselves, `credentials` are what is on disk.

mod authority;
mod certificate;
mod credentials;
mod fingerprint;
mod follow;
mod join;
mod keeper;
mod metrics;
mod mutual;
mod private_file;
mod protocol;
mod revoked;
mod signer;
mod spiffe;
mod state;
#[cfg(test)]
mod tests;
mod tls;
mod token;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::enrolment;
use nerve::model::NodeName;
use nerve::store::Store;
use nerve::tasks::Tasks;
use tokio::net::TcpListener;

pub use authority::{Authority, AuthorityError};
pub use certificate::{CertificateError, Certified};
pub use fingerprint::Fingerprint;
pub use keeper::Signers;
pub use metrics::Metrics;
pub use mutual::Mutual;
pub use spiffe::{SpiffeError, SpiffeId, Subject, TrustDomain};
pub use token::{Grant, Terms, Token, TokenError};

use credentials::Credentials;
use keeper::{Keeper, Source};
use signer::{Desk, Signer};
use state::State;
use tls::Standing;

/// The port where nodes that sign are asked.
pub const SIGNER_PORT: u16 = 7444;
/// The longest that certificates hold.
pub const LONGEST_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// Where it is kept, in the state directory.
const DIRECTORY: &str = "identity";
/// How often what is over is removed from the store.
const TIDY: Duration = Duration::from_secs(3600);
/// The pause before an address that is taken is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// What this room is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeName,
    /// Where the agent keeps what it must know after a restart.
    pub state_dir: PathBuf,
    /// The authority's directory, where this node signs.
    pub authority: Option<PathBuf>,
    /// Where others are certified then.
    pub listen: Vec<SocketAddr>,
    /// For how long.
    pub life: Duration,
    /// What lets this node in.
    pub token: Option<Token>,
}

/// This node's identity. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    state: Arc<State>,
    standing: Arc<Standing>,
    signer: Option<Arc<Signer>>,
    store: Arc<dyn Store>,
    is_on: bool,
}

/// How it stands.
#[derive(Debug, Clone)]
pub struct Info {
    /// Who this node is, and until when; none: nobody yet.
    pub certified: Option<Certified>,
    /// The authorities that it believes.
    pub roots: Vec<Fingerprint>,
    /// Does it sign?
    pub signs: bool,
    /// Whose certificates are refused, and since when, in seconds since 1970.
    pub revoked: Vec<(NodeName, u64)>,
    /// What is wrong.
    pub problem: Option<String>,
}

/// Only a node that signs can do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node does not sign: ask one that has the authority's key (identity.authority)")]
pub struct SignsNot;

/// Begins to prove itself where there is an authority, a token, or what an earlier life has left.
///
/// # Errors
/// The authority is to be used and cannot be, or there is no place to keep a key.
pub fn start(
    config: Config,
    store: &Arc<dyn Store>,
    signers: Signers,
    metrics: &Metrics,
    tasks: &Tasks,
) -> Result<Handle, AuthorityError> {
    let Config { node, state_dir, authority, listen, life, token } = config;
    let directory = state_dir.join(DIRECTORY);
    let (state, standing) = (Arc::new(State::new(metrics.clone())), Arc::new(Standing::default()));
    recall(&directory, &node, &state, &standing);
    let signer = match authority {
        Some(directory) => {
            let authority = Authority::load(&directory)?;
            let (store, metrics) = (Arc::clone(store), metrics.clone());
            Some(Arc::new(Signer { authority, store, life, metrics }))
        }
        None => None,
    };
    let is_on = signer.is_some() || token.is_some() || state.certified().is_some();
    let handle = Handle { state, standing, signer, store: Arc::clone(store), is_on };
    if !is_on {
        return Ok(handle);
    }
    make_directory(&directory).map_err(|error| AuthorityError::File { path: directory.clone(), error })?;
    let desk = handle.open_desk(&node, listen, tasks)?;
    let source = match (&handle.signer, &desk) {
        (Some(signer), Some(desk)) => Source::Own { signer: Arc::clone(signer), desk: Arc::clone(desk) },
        _ => Source::Others { signers, token },
    };
    let (state, standing) = (Arc::clone(&handle.state), Arc::clone(&handle.standing));
    let kept = directory.clone();
    let keeper = Arc::new(Keeper { node, directory, source, standing, state });
    tasks.spawn_until_stopped("identity", move || {
        let keeper = Arc::clone(&keeper);
        async move { keeper.run().await }
    });
    let (store, metrics, standing) = (Arc::clone(store), metrics.clone(), Arc::clone(&handle.standing));
    tasks.spawn_until_stopped("identity revocations", move || {
        let (standing, desk) = (Arc::clone(&standing), desk.clone());
        follow::follow(Arc::clone(&store), kept.clone(), metrics.clone(), move |revoked| {
            standing.refuse(revoked.clone());
            if let Some(desk) = &desk {
                desk.refuse(revoked.clone());
            }
        })
    });
    Ok(handle)
}

/// What an earlier life of this node has left.
fn recall(directory: &std::path::Path, node: &NodeName, state: &State, standing: &Standing) {
    let credentials = match Credentials::load(directory) {
        Ok(Some(credentials)) => credentials,
        Ok(None) => return,
        Err(error) => return state.note(&format!("{}: {error}", directory.display())),
    };
    let Certified { id, not_after, .. } = &credentials.certified;
    if id.subject != Subject::Node(node.clone()) {
        return state
            .note(&format!("{} has the certificate of {id}, and this node is {node}", directory.display()));
    }
    if *not_after <= SystemTime::now() {
        let ended = humantime::format_rfc3339_seconds(*not_after);
        return state
            .note(&format!("the certificate of {id} ended at {ended}: this node has to be let in anew"));
    }
    match standing.take(&credentials) {
        Ok(()) => state.recalled(&credentials.certified, &credentials.roots),
        Err(error) => state.note(&format!("{}: {error}", directory.display())),
    }
}

fn make_directory(directory: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

impl Handle {
    /// What keeps this node from proving itself, or from signing.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let now = self.state.now();
        now.problem.or(now.deaf)
    }

    /// How it stands; `None` where nothing of it is used.
    #[must_use]
    pub fn info(&self) -> Option<Info> {
        let now = self.state.now();
        let revoked = self.standing.revoked();
        let mut revoked: Vec<_> = revoked.nodes().map(|(node, since)| (node.clone(), since.at)).collect();
        revoked.sort();
        self.is_on.then_some(Info {
            certified: now.certified,
            roots: now.roots,
            signs: self.signer.is_some(),
            revoked,
            problem: now.problem.or(now.deaf),
        })
    }

    /// Makes a token that lets nodes in.
    ///
    /// # Errors
    /// This node does not sign.
    pub fn make_token(&self, terms: Terms) -> Result<Token, SignsNot> {
        let authority = &self.signer.as_ref().ok_or(SignsNot)?.authority;
        Ok(authority.make_token(terms))
    }

    /// Has nobody believe a node any more, whatever certificate it has.
    ///
    /// # Errors
    /// The store does not take it.
    pub async fn revoke(&self, node: &NodeName) -> Result<(), enrolment::Error> {
        enrolment::revoke(&*self.store, node, LONGEST_LIFE).await.map(drop)
    }

    fn open_desk(
        &self,
        node: &NodeName,
        listen: Vec<SocketAddr>,
        tasks: &Tasks,
    ) -> Result<Option<Arc<Desk>>, AuthorityError> {
        let Some(signer) = &self.signer else { return Ok(None) };
        let desk = Desk::new(Arc::clone(signer), node.clone());
        let desk = Arc::new(desk.map_err(|error| AuthorityError::Unusable(error.to_string()))?);
        for address in listen {
            let (desk, state, owner) = (Arc::clone(&desk), Arc::clone(&self.state), tasks.clone());
            tasks.spawn_while_wanted("identity signer's socket", async move {
                let listener = loop {
                    match TcpListener::bind(address).await {
                        Ok(listener) => break listener,
                        Err(error) => {
                            let problem = format!("listening on {address} for nodes that join: {error}");
                            state.note_deaf(Some(problem));
                        }
                    }
                    tokio::time::sleep(BIND_AGAIN).await;
                };
                state.note_deaf(None);
                tracing::info!(%address, "nodes that join are certified here");
                desk.serve(listener, &owner);
            });
        }
        let store = Arc::clone(&self.store);
        tasks.spawn_until_stopped("identity tidy", move || {
            let store = Arc::clone(&store);
            async move {
                loop {
                    tokio::time::sleep(TIDY).await;
                    match enrolment::tidy(&*store).await {
                        Ok(0) => {}
                        Ok(removed) => tracing::info!(removed, "tokens, names and revocations that are over"),
                        Err(error) => {
                            tracing::debug!(%error, "removing tokens, names and revocations that are over")
                        }
                    }
                }
            }
        });
        Ok(Some(desk))
    }
}
