//! Who this node is, and whom it believes.
//!
//! A node proves itself by a short-lived X.509-SVID ([`spiffe`], RFC 5280) whose key never leaves it. Nodes that have the authority's
//! key certify others: at first by a join token ([`token`]), then by the certificate that is to be renewed. The store lists where they
//! are, counts a token's uses and says whom nobody believes any more; it cannot make anybody believed.
//!
//! `authority` is the key and its certificate, `signer` what it answers, `join` how it is asked, `keeper` sees to it that there is always
//! a certificate that holds, `tls` has both sides of a connection prove themselves, `credentials` are what is on disk. `directory` has the
//! authority and the one that is to replace it, and says which of them certifies in which phase; `course` follows the phases, and `rotate` leads through them.

mod authority;
mod certificate;
mod certifier;
mod course;
mod credentials;
mod directory;
mod external;
mod files;
mod fingerprint;
mod follow;
mod join;
mod keeper;
mod metrics;
mod mutual;
mod private_file;
pub mod protocol;
mod reload;
mod report;
mod revoked;
mod rotate;
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

use nerve::enrolment::{self, rotation};
use nerve::model::{Fingerprint, NodeName};
use nerve::store::Store;
use nerve::tasks::Tasks;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use authority::{Authority, AuthorityError};
pub use certificate::{CertificateError, Certified};
pub use directory::Authorities;
pub use external::External;
pub use files::Files;
pub use join::request;
pub use keeper::Signers;
pub use metrics::Metrics;
pub use mutual::Mutual;
pub use nerve::enrolment::Error as EnrolmentError;
pub use nerve::enrolment::rotation::{Lack, Member, Phase, Rotation};
pub use spiffe::{SpiffeError, SpiffeId, Subject, TrustDomain};
pub use token::{Grant, Terms, Token, TokenError};

use certifier::Certifier;
use course::Memory;
use credentials::Credentials;
use external::Remote;
use keeper::{Keeper, Source};
use rotate::Driver;
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
    /// Where its certificate comes from.
    pub means: Means,
}

/// How a node comes by its certificate.
#[derive(Debug, Clone)]
pub enum Means {
    /// It makes it itself, and those of others.
    Authority {
        /// The authority's directory.
        directory: PathBuf,
        /// Where others are certified.
        listen: Vec<SocketAddr>,
        /// For how long.
        life: Duration,
    },
    /// It has an authority elsewhere make it, and those of others.
    External {
        /// Which.
        authority: External,
        /// Where others are certified.
        listen: Vec<SocketAddr>,
    },
    /// Somebody else writes it to files.
    Files(Files),
    /// Nodes that sign make it.
    Others {
        /// What lets this node in.
        token: Option<Token>,
    },
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

/// Why this node makes no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoToken {
    /// Only a node that signs can do it.
    #[error("this node does not sign: ask one that does (identity.authority, identity.external)")]
    SignsNot,
    /// It cannot at the moment.
    #[error("{0}")]
    Refused(String),
}

/// How a rotation of the authority stands.
#[derive(Debug, Clone)]
pub struct Progress {
    /// How far it is.
    pub rotation: Rotation,
    /// How many nodes it is about.
    pub nodes: usize,
    /// Those that the next phase waits for.
    pub waits_for: Vec<(Member, Lack)>,
}

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
    let Config { node, state_dir, means } = config;
    let directory = state_dir.join(DIRECTORY);
    let signs = matches!(means, Means::Authority { .. } | Means::External { .. });
    let state = Arc::new(State::new(signs, metrics.clone()));
    let standing = Arc::new(Standing::default());
    if !matches!(means, Means::Files(_)) {
        recall(&directory, &node, &state, &standing);
    }
    let is_on = !matches!(means, Means::Others { token: None }) || state.certified().is_some();
    let course = watch::Sender::new(if signs { Memory::recall(&directory) } else { Memory::default() });
    let handle = Handle { state, standing, signer: None, store: Arc::clone(store), is_on };
    if !is_on {
        return Ok(handle);
    }
    make_directory(&directory).map_err(|error| AuthorityError::File { path: directory.clone(), error })?;
    let (state, standing) = (Arc::clone(&handle.state), Arc::clone(&handle.standing));
    let (handle, desk, source) = match means {
        Means::Authority { directory: authority, listen, life } => {
            let certifier = handle.start_authority(&node, authority, life, &course, tasks)?;
            handle.sign(certifier, &node, listen, metrics, tasks)?
        }
        Means::External { authority, listen } => {
            let certifier = Certifier::Remote(Box::new(Remote::open(authority)?));
            handle.sign(certifier, &node, listen, metrics, tasks)?
        }
        Means::Others { token } => (handle, None, Source::Others { signers, token }),
        Means::Files(files) => {
            handle.follow(&node, &directory, &course, None, metrics, tasks);
            tasks.spawn_until_stopped("identity files", move || {
                files.clone().follow(node.clone(), Arc::clone(&standing), Arc::clone(&state))
            });
            return Ok(handle);
        }
    };
    handle.follow(&node, &directory, &course, desk, metrics, tasks);
    let keeper = Arc::new(Keeper { node, directory, source, standing, state, course: course.subscribe() });
    tasks.spawn_until_stopped("identity", move || {
        let keeper = Arc::clone(&keeper);
        async move { keeper.run().await }
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
        Ok(()) => state.recalled(&credentials),
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
        self.state.now().problem()
    }

    /// How it stands; `None` where nothing of it is used.
    #[must_use]
    pub fn info(&self) -> Option<Info> {
        let now = self.state.now();
        let revoked = self.standing.revoked();
        let mut revoked: Vec<_> = revoked.nodes().map(|(node, since)| (node.clone(), since.at)).collect();
        revoked.sort();
        self.is_on.then_some(Info {
            certified: now.certified.clone(),
            roots: now.roots.clone(),
            signs: self.signer.is_some(),
            revoked,
            problem: now.problem(),
        })
    }

    /// Makes a token that lets nodes in.
    ///
    /// # Errors
    /// This node does not sign, or cannot at the moment.
    pub async fn make_token(&self, terms: Terms) -> Result<Token, NoToken> {
        let signer = self.signer.as_ref().ok_or(NoToken::SignsNot)?;
        signer.make_token(terms).await.map_err(|refused| NoToken::Refused(refused.to_string()))
    }

    /// How a rotation of the authority stands; `None`: there was none.
    ///
    /// # Errors
    /// The store does not tell.
    pub async fn rotation(&self) -> Result<Option<Progress>, enrolment::Error> {
        let Some(rotation) = rotation::rotation(&*self.store).await? else { return Ok(None) };
        let members = rotation::members(&*self.store).await?;
        let nodes = members.len();
        let lacking = |member| rotation.lacks(&member).map(|lack| (member, lack));
        let waits_for = members.into_iter().filter_map(lacking).collect();
        Ok(Some(Progress { rotation, nodes, waits_for }))
    }

    /// Takes a rotation back that is under way.
    ///
    /// # Errors
    /// There is none, or the store does not do it.
    pub async fn abort_rotation(&self) -> Result<Rotation, enrolment::Error> {
        rotation::abort(&*self.store).await
    }

    /// Has nobody believe a node any more, whatever certificate it has.
    ///
    /// # Errors
    /// The store does not take it.
    pub async fn revoke(&self, node: &NodeName) -> Result<(), enrolment::Error> {
        enrolment::revoke(&*self.store, node, LONGEST_LIFE).await.map(drop)
    }

    /// Has the authority at work, as its directory has it now and later.
    fn start_authority(
        &self,
        node: &NodeName,
        directory: PathBuf,
        life: Duration,
        course: &watch::Sender<Memory>,
        tasks: &Tasks,
    ) -> Result<Certifier, AuthorityError> {
        let authorities = watch::Sender::new(Arc::new(Authorities::load(&directory)?));
        let read = authorities.subscribe();
        let state = Arc::clone(&self.state);
        tasks.spawn_until_stopped("identity authority", move || {
            reload::follow(directory.clone(), authorities.clone(), Arc::clone(&state))
        });
        let driver = Arc::new(Driver {
            node: node.clone(),
            store: Arc::clone(&self.store),
            authorities: read.clone(),
            life,
            course: course.clone(),
        });
        tasks.spawn_until_stopped("identity rotation driver", move || {
            let driver = Arc::clone(&driver);
            async move { driver.run().await }
        });
        Ok(Certifier::Own { authorities: read, course: course.subscribe(), life })
    }

    /// Certifies this node, and others.
    fn sign(
        self,
        certifier: Certifier,
        node: &NodeName,
        listen: Vec<SocketAddr>,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Result<(Self, Option<Arc<Desk>>, Source), AuthorityError> {
        let (store, metrics) = (Arc::clone(&self.store), metrics.clone());
        let signer = Arc::new(Signer { certifier, standing: Arc::default(), store, metrics });
        let desk = self.open_desk(&signer, node, listen, tasks)?;
        let source = Source::Own { signer: Arc::clone(&signer), desk: Arc::clone(&desk) };
        Ok((Self { signer: Some(signer), ..self }, Some(desk), source))
    }

    /// Hears what the store says of others, and tells it how this node stands.
    fn follow(
        &self,
        node: &NodeName,
        directory: &std::path::Path,
        course: &watch::Sender<Memory>,
        desk: Option<Arc<Desk>>,
        metrics: &Metrics,
        tasks: &Tasks,
    ) {
        let (store, standing) = (Arc::clone(&self.store), Arc::clone(&self.standing));
        let (metrics, kept) = (metrics.clone(), directory.to_owned());
        tasks.spawn_until_stopped("identity revocations", move || {
            let (standing, desk) = (Arc::clone(&standing), desk.clone());
            follow::follow(Arc::clone(&store), kept.clone(), metrics.clone(), move |revoked| {
                standing.refuse(revoked.clone());
                if let Some(desk) = &desk {
                    desk.refuse(revoked.clone());
                }
            })
        });
        let (store, followed) = (Arc::clone(&self.store), course.clone());
        let kept = self.signer.is_some().then(|| directory.to_owned());
        tasks.spawn_until_stopped("identity rotation", move || {
            course::follow(Arc::clone(&store), kept.clone(), followed.clone())
        });
        let (store, node, state) = (Arc::clone(&self.store), node.clone(), Arc::clone(&self.state));
        let course = course.subscribe();
        tasks.spawn_until_stopped("identity report", move || {
            report::keep_told(Arc::clone(&store), node.clone(), Arc::clone(&state), course.clone())
        });
    }

    /// Answers those who ask to be certified.
    fn open_desk(
        &self,
        signer: &Arc<Signer>,
        node: &NodeName,
        listen: Vec<SocketAddr>,
        tasks: &Tasks,
    ) -> Result<Arc<Desk>, AuthorityError> {
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
        Ok(desk)
    }
}
