//! Certifying others: what a node that has the authority's key answers those who ask.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::enrolment::{self, Claim, Holding};
use nerve::model::NodeName;
use nerve::store::Store;
use nerve::tasks::Tasks;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::certificate::{self, CertificateError, Certified};
use super::certifier::{Certifier, Made, Uncertified};
use super::credentials::{Credentials, CredentialsError};
use super::metrics::Metrics;
use super::protocol::{self, Answer, Der, PROTOCOL, Request};
use super::revoked::Revoked;
use super::spiffe::{SpiffeId, Subject};
use super::tls::{self, Believed, Peers, Shown, Standing};
use super::token::{Terms, Token, TokenError};

/// Who asks at once; others wait for their turn.
const AT_ONCE: usize = 64;
/// How long a question, its answer and the handshake before them may take.
const WITHIN: Duration = Duration::from_secs(10);
/// A pause after accepting failed: no descriptors, as a rule.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Why somebody is not certified.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(
        "no join token, and no certificate that holds: use a token (`plexus join-token create` on a node that signs)"
    )]
    Nobody,
    #[error(transparent)]
    Malformed(#[from] TokenError),
    #[error("the join token expired at {}: make another one", humantime::format_rfc3339_seconds(*.0))]
    Expired(SystemTime),
    #[error("the join token is for the node {0} alone")]
    ForAnother(NodeName),
    #[error("the certificate is of {0}, who asks for another name")]
    SomebodyElse(SpiffeId),
    #[error(transparent)]
    Uncertified(#[from] Uncertified),
    #[error(transparent)]
    Enrolment(#[from] enrolment::Error),
}

impl Refused {
    /// For metrics and programs.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Malformed(_) => "token_malformed",
            Self::Expired(_) => "token_expired",
            Self::ForAnother(_) => "token_for_another",
            Self::SomebodyElse(_) => "somebody_else",
            Self::Uncertified(why) => why.as_str(),
            Self::Enrolment(enrolment::Error::UsedUp { .. }) => "token_used_up",
            Self::Enrolment(enrolment::Error::NameTaken { .. }) => "name_taken",
            Self::Enrolment(enrolment::Error::NodeRevoked { .. }) => "revoked",
            Self::Enrolment(_) => "store",
        }
    }
}

/// What lets somebody in.
#[derive(Debug)]
enum Pass<'a> {
    /// The operator of this node, who has the authority's key.
    Own,
    /// A certificate that holds, and what its key is known by.
    Certificate(&'a SpiffeId, &'a str),
    Token(&'a Token),
}

/// An authority at work.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) certifier: Certifier,
    /// What is shown to those who ask, and who of them is believed.
    pub(super) standing: Arc<Standing>,
    pub(super) store: Arc<dyn Store>,
    pub(super) metrics: Metrics,
}

impl Signer {
    /// Certifies this. Of a node that was revoked and is let in anew, certificates hold from then on: those of before are refused.
    async fn make(&self, request: &[u8], subject: Subject) -> Result<Made, Refused> {
        let from = self.standing.revoked().since(&subject);
        Ok(self.certifier.make(request, subject, from).await?)
    }

    /// Makes a token that is good wherever nodes are certified.
    pub(super) async fn make_token(&self, terms: Terms) -> Result<Token, Refused> {
        Ok(self.certifier.make_token(terms).await?)
    }

    async fn answer(&self, request: Request, shown: Option<&Shows>) -> Result<Answer, Refused> {
        let token = request.token.as_ref().map(|token| token.0.parse::<Token>()).transpose()?;
        let pass = match (&token, shown) {
            // Who lets a new key in says so by a token, also where the old one still holds.
            (Some(token), _) => Pass::Token(token),
            (None, Some(shown)) => Pass::Certificate(&shown.id, &shown.key),
            (None, None) => return Err(Refused::Nobody),
        };
        let made = self.admit(&request.node, &request.request.0, &pass).await?;
        let (by, token) = (pass.as_str(), token.as_ref().map(|token| token.grant().id.to_string()));
        tracing::info!(node = %request.node, by, token, "certified a node");
        self.metrics.certified.with_label_values(&[by]).inc();
        let der = |certificates: &[CertificateDer<'_>]| {
            certificates.iter().map(|certificate| Der(certificate.to_vec())).collect()
        };
        Ok(Answer::Certified { chain: der(&made.chain), roots: der(&made.roots) })
    }

    /// Certifies a key to be of this node, if whoever has it may have that name.
    async fn admit(&self, node: &NodeName, request: &[u8], pass: &Pass<'_>) -> Result<Made, Refused> {
        let claim = match pass {
            Pass::Own => Claim::Operator,
            Pass::Certificate(id, key) if id.subject == Subject::Node(node.clone()) => Claim::Holder(key),
            Pass::Certificate(id, _) => return Err(Refused::SomebodyElse(SpiffeId::clone(id))),
            Pass::Token(token) => self.claim_of(token, node).await?,
        };
        let made = self.make(request, Subject::Node(node.clone())).await?;
        let key = certificate::key_digest(&made.certificate);
        if let Pass::Token(token) = pass {
            // A token is not spent on a name that is not to be had.
            enrolment::may_admit(&*self.store, node, &key, claim).await?;
            let grant = token.grant();
            enrolment::use_token(&*self.store, grant.id, grant.uses, grant.expires).await?;
        }
        let holding = Holding { key: &key, until: made.until, root: made.root };
        match enrolment::admit(&*self.store, node, &holding, claim).await {
            // Who is in stays in while the store is away.
            Err(enrolment::Error::Store(error)) if !matches!(pass, Pass::Token(_)) => {
                tracing::warn!(%node, %error, "certified a node, and the store does not note it");
            }
            noted => noted?,
        }
        Ok(made)
    }

    /// What it lets this node claim.
    pub(super) async fn claim_of(&self, token: &Token, node: &NodeName) -> Result<Claim<'static>, Refused> {
        let grant = token.grant();
        self.certifier.prove(token).await?;
        if grant.expires <= SystemTime::now() {
            return Err(Refused::Expired(grant.expires));
        }
        match &grant.node {
            Some(named) if named != node => Err(Refused::ForAnother(named.clone())),
            Some(_) => Ok(Claim::Operator),
            None => Ok(Claim::Free),
        }
    }

    /// What this node shows itself, made here.
    pub(super) async fn certify_own(&self, node: &NodeName) -> Result<Credentials, OwnError> {
        let (key, request) = super::join::request()?;
        let Made { chain, roots, .. } = self.admit(node, &request, &Pass::Own).await?;
        Ok(Credentials::new(&key, chain, roots)?)
    }

    /// What this node shows those who ask for a certificate. They know an authority by its fingerprint, so they are shown those, too.
    async fn certify_signer(&self, node: &NodeName) -> Result<Credentials, OwnError> {
        let (key, request) = super::join::request()?;
        let Made { chain, roots, .. } = self.make(&request, Subject::Signer(node.clone())).await?;
        Ok(Credentials::new(&key, [chain, roots.clone()].concat(), roots)?)
    }
}

/// Why this node has no certificate of its own making.
#[derive(Debug, thiserror::Error)]
pub(super) enum OwnError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("making a key: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl Pass<'_> {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Certificate(..) => "certificate",
            Self::Token(_) => "token",
        }
    }
}

/// Who somebody is who asks.
#[derive(Debug)]
struct Shows {
    id: SpiffeId,
    /// What its key is known by.
    key: String,
}

impl Shows {
    fn read(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        Ok(Self { id: Certified::read(certificate)?.id, key: certificate::key_digest(certificate) })
    }
}

/// The port where others are certified.
#[derive(Debug)]
pub(super) struct Desk {
    signer: Arc<Signer>,
    tls: Arc<ServerConfig>,
    node: NodeName,
}

impl Desk {
    /// It has nothing to show before [`Desk::renew`].
    pub(super) fn new(signer: Arc<Signer>, node: NodeName) -> Result<Self, OwnError> {
        let standing = Arc::clone(&signer.standing);
        let shown = Arc::new(Shown(Arc::clone(&standing)));
        let verifier = Arc::new(Believed { standing, peers: Peers::Nodes, may_be_nobody: true });
        let mut config = tls::server(verifier, shown, PROTOCOL)
            .map_err(|error| CredentialsError::Malformed(error.to_string()))?;
        // One question a connection.
        config.send_tls13_tickets = 0;
        Ok(Self { signer, tls: Arc::new(config), node })
    }

    /// Shows a new certificate. To be called within its life.
    pub(super) async fn renew(&self) -> Result<(), OwnError> {
        Ok(self.signer.standing.take(&self.signer.certify_signer(&self.node).await?)?)
    }

    pub(super) fn refuse(&self, revoked: Revoked) {
        self.signer.standing.refuse(revoked);
    }

    /// Answers until the tasks are stopped.
    pub(super) fn serve(self: &Arc<Self>, listener: TcpListener, tasks: &Tasks) {
        let (desk, places, conversations) =
            (Arc::clone(self), Arc::new(Semaphore::new(AT_ONCE)), tasks.clone());
        let listener = Arc::new(listener);
        tasks.spawn_until_stopped("identity signer", move || {
            let (desk, places, listener) = (Arc::clone(&desk), Arc::clone(&places), Arc::clone(&listener));
            let conversations = conversations.clone();
            async move {
                loop {
                    let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                    match listener.accept().await {
                        Ok((stream, peer)) => {
                            let desk = Arc::clone(&desk);
                            conversations.spawn_while_wanted("identity signer connection", async move {
                                desk.speak(stream, peer).await;
                                drop(place);
                            });
                        }
                        Err(error) => {
                            tracing::debug!(%error, "accepting a node that asks for a certificate");
                            tokio::time::sleep(ACCEPT_AGAIN).await;
                        }
                    }
                }
            }
        });
    }

    async fn speak(&self, stream: TcpStream, peer: SocketAddr) {
        let spoken = tokio::time::timeout(WITHIN, self.converse(stream, peer)).await;
        let (reason, error) = match spoken {
            Ok(Ok(())) => return,
            Ok(Err(error)) => (tls::refusal(&error).unwrap_or("broken"), error.to_string()),
            Err(_) => ("timeout", format!("nothing came within {WITHIN:?}")),
        };
        self.signer.metrics.refused.with_label_values(&[reason]).inc();
        if reason.starts_with("certificate") {
            tracing::warn!(%peer, reason, error, "refused a certificate to who shows one that is not believed");
        } else {
            tracing::debug!(%peer, reason, error, "somebody asked for a certificate and did not go on");
        }
    }

    async fn converse(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let mut stream = TlsAcceptor::from(Arc::clone(&self.tls)).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        // It was believed in the handshake.
        let shown = shown.map(Shows::read).transpose().map_err(io::Error::other)?;
        let request: Request = protocol::read(&mut stream).await?;
        let node = request.node.clone();
        let answer = self.signer.answer(request, shown.as_ref()).await.unwrap_or_else(|refused| {
            let reason = refused.as_str();
            self.signer.metrics.refused.with_label_values(&[reason]).inc();
            tracing::warn!(%peer, %node, reason, "refused a certificate: {refused}");
            Answer::Refused { reason: reason.to_owned(), message: refused.to_string() }
        });
        protocol::write(&mut stream, &answer).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut stream).await
    }
}
