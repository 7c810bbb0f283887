//! Who makes certificates where nodes are certified: the authority whose key is here, or one elsewhere that is asked.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::model::Fingerprint;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::authority::{self, AuthorityError};
use super::certificate::{CertificateError, Certified};
use super::course::Memory;
use super::directory::{Authorities, Outdated};
use super::external::{ExternalError, Remote};
use super::spiffe::Subject;
use super::token::{Terms, Token};
use super::{fingerprint, tls};

/// Why there is no certificate, or no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum Uncertified {
    #[error("the request for a certificate is no use: {0}")]
    Request(#[from] rcgen::Error),
    #[error("the join token was not made by this mesh's authority")]
    Forged,
    #[error("the join token is of an authority that another one has replaced: make another token")]
    Replaced,
    #[error(transparent)]
    Outdated(#[from] Outdated),
    #[error("vouching for the authority: {0}")]
    Unvouched(#[from] AuthorityError),
    #[error(transparent)]
    External(#[from] ExternalError),
    #[error("the certificate that was made cannot be read: {0}")]
    Unreadable(#[from] CertificateError),
}

impl Uncertified {
    /// For metrics and programs.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Request(_) => "request_malformed",
            Self::Forged => "token_forged",
            Self::Replaced => "token_replaced",
            Self::Outdated(_) => "outdated",
            Self::Unvouched(_) => "authority",
            Self::External(_) | Self::Unreadable(_) => "external",
        }
    }
}

/// A certificate, and what goes with it.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) certificate: CertificateDer<'static>,
    /// The same, and what leads from it to a root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Who is to be believed.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// Who has made it.
    pub(super) root: Fingerprint,
    /// Until when it holds.
    pub(super) until: SystemTime,
}

/// Makes certificates.
#[derive(Debug)]
pub(super) enum Certifier {
    /// Here.
    Own {
        /// As the operator's directory has them now.
        authorities: watch::Receiver<Arc<Authorities>>,
        /// Which of them is to be used.
        course: watch::Receiver<Memory>,
        /// How long what it makes holds.
        life: Duration,
    },
    /// Elsewhere.
    Remote(Box<Remote>),
}

impl Certifier {
    /// Certifies who made a request to be `subject`. Of what the request says itself, nothing is believed. `from`: no certificate of
    /// before is believed.
    pub(super) async fn make(
        &self,
        request: &[u8],
        subject: Subject,
        from: Option<SystemTime>,
    ) -> Result<Made, Uncertified> {
        let (certificate, chain, roots, root) = match self {
            Self::Own { authorities, course, life } => {
                let (authorities, rotation) = (Arc::clone(&authorities.borrow()), course.borrow().rotation());
                let plan = authorities.plan(rotation.as_ref())?;
                let certificate = plan.by.certify(request, subject, *life, from)?;
                let (chain, roots) = (plan.chain(certificate.clone(), *life)?, plan.roots());
                (certificate, chain, roots, plan.by.fingerprint())
            }
            Self::Remote(remote) => {
                let public_key = authority::requested_key(request)?;
                let roots = remote.roots().await?;
                let certificate = remote.certify(request, &public_key, subject, &roots).await?;
                let root =
                    tls::issuer(&certificate, &roots).map(fingerprint::of).ok_or(Uncertified::Forged)?;
                (certificate.clone(), vec![certificate], roots, root)
            }
        };
        let until = Certified::read(&certificate)?.not_after;
        Ok(Made { certificate, chain, roots, root, until })
    }

    /// Makes a token that is good wherever nodes are certified.
    pub(super) async fn make_token(&self, terms: Terms) -> Result<Token, Uncertified> {
        match self {
            Self::Own { authorities, course, .. } => {
                let (authorities, rotation) = (Arc::clone(&authorities.borrow()), course.borrow().rotation());
                Ok(authorities.plan(rotation.as_ref())?.by.make_token(terms))
            }
            Self::Remote(remote) => {
                let roots = remote.roots().await?;
                let root = roots.first().map(fingerprint::of).ok_or(Uncertified::Forged)?;
                Ok(Token::make(remote.token_key(), root, terms))
            }
        }
    }

    /// Was a token made by who certifies?
    pub(super) async fn prove(&self, token: &Token) -> Result<(), Uncertified> {
        let root = token.grant().root;
        let is_proved = match self {
            Self::Own { authorities, course, .. } => {
                let (authorities, rotation) = (Arc::clone(&authorities.borrow()), course.borrow().rotation());
                let plan = authorities.plan(rotation.as_ref())?;
                match plan.believed(root) {
                    None if course.borrow().has_dropped(root) => return Err(Uncertified::Replaced),
                    believed => believed.is_some_and(|authority| token.is_proved(authority.token_key())),
                }
            }
            Self::Remote(remote) => {
                let is_believed = remote.roots().await?.iter().any(|known| fingerprint::of(known) == root);
                is_believed && token.is_proved(remote.token_key())
            }
        };
        if is_proved { Ok(()) } else { Err(Uncertified::Forged) }
    }
}
