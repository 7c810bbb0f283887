//! How nodes prove themselves to each other: TLS 1.3, both sides by certificates of the mesh's authorities.
//!
//! What is shown and who is believed is looked up at each handshake, so that both can change while connections go on.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError as Refusal, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};

use tokio::sync::watch;

use super::certificate::{CertificateError, Certified};
use super::credentials::{Credentials, CredentialsError};
use super::revoked::Revoked;
use super::spiffe::{SpiffeId, Subject, TrustDomain};

/// Why a peer with a good certificate is not believed all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unwanted {
    /// It names nobody of a mesh.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// It is somebody else than is to be spoken with.
    #[error("it is {0}, which is not who is to be spoken with here")]
    SomebodyElse(SpiffeId),
    /// Its certificate was taken back.
    #[error("the certificate of {0} was revoked")]
    Revoked(SpiffeId),
}

/// Who a peer has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peers {
    /// A node.
    Nodes,
    /// A node that certifies others, as such.
    Signers,
}

impl Peers {
    fn admit(self, subject: &Subject) -> bool {
        match self {
            Self::Nodes => matches!(subject, Subject::Node(_)),
            Self::Signers => matches!(subject, Subject::Signer(_)),
        }
    }
}

/// Certificates that a peer's may come from.
#[derive(Debug)]
pub(super) struct Roots {
    store: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
}

impl Roots {
    /// # Errors
    /// None of them can certify anybody.
    pub(super) fn new(roots: &[CertificateDer<'static>], trust_domain: TrustDomain) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone())?;
        }
        let store = Arc::new(store);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { store, clients, trust_domain })
    }
}

/// What is shown, and who is believed, as it stands.
#[derive(Debug)]
pub(super) struct Standing {
    shown: ArcSwapOption<CertifiedKey>,
    roots: ArcSwapOption<Roots>,
    revoked: ArcSwap<Revoked>,
    changes: watch::Sender<u64>,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            shown: ArcSwapOption::empty(),
            roots: ArcSwapOption::empty(),
            revoked: ArcSwap::from_pointee(Revoked::default()),
            changes: watch::Sender::new(0),
        }
    }
}

impl Standing {
    /// Has nothing to show, and believes these.
    pub(super) fn believing(roots: Roots) -> Self {
        Self { roots: ArcSwapOption::from_pointee(roots), ..Self::default() }
    }

    /// Shows these from now on, and believes whom they believe.
    pub(super) fn take(&self, credentials: &Credentials) -> Result<(), CredentialsError> {
        let malformed = |error: Error| CredentialsError::Malformed(error.to_string());
        let roots = Roots::new(&credentials.roots, credentials.certified.id.trust_domain.clone());
        let roots = roots.map_err(malformed)?;
        let key = credentials.certified_key()?;
        self.roots.store(Some(Arc::new(roots)));
        self.shown.store(Some(Arc::new(key)));
        self.changed();
        Ok(())
    }

    /// Believes others than before.
    #[cfg(test)]
    pub(super) fn believe(&self, roots: Roots) {
        self.roots.store(Some(Arc::new(roots)));
    }

    pub(super) fn refuse(&self, revoked: Revoked) {
        self.revoked.store(Arc::new(revoked));
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Counts up with each change of what is shown or believed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn trust_domain(&self) -> Option<TrustDomain> {
        self.roots.load().as_ref().map(|roots| roots.trust_domain.clone())
    }

    pub(super) fn revoked(&self) -> Arc<Revoked> {
        self.revoked.load_full()
    }
}

/// Shows what stands.
#[derive(Debug)]
pub(super) struct Shown(pub(super) Arc<Standing>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.shown.load_full()
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.shown.load_full()
    }

    fn has_certs(&self) -> bool {
        self.0.shown.load().is_some()
    }
}

/// Believes whom it should, as it stands.
#[derive(Debug)]
pub(super) struct Believed {
    pub(super) standing: Arc<Standing>,
    pub(super) peers: Peers,
    /// Who has nothing to show is nobody, which may do.
    pub(super) may_be_nobody: bool,
}

impl Believed {
    fn roots(&self) -> Result<Arc<Roots>, Error> {
        self.standing
            .roots
            .load_full()
            .ok_or_else(|| Error::General("this node has no identity yet".to_owned()))
    }

    fn is_wanted(&self, certificate: &CertificateDer<'_>, roots: &Roots) -> Result<(), Error> {
        wanted(certificate, self.peers, &roots.trust_domain, &self.standing.revoked()).map_err(refused)
    }
}

fn wanted(
    certificate: &CertificateDer<'_>,
    peers: Peers,
    trust_domain: &TrustDomain,
    revoked: &Revoked,
) -> Result<(), Unwanted> {
    let certified = Certified::read(certificate)?;
    if certified.id.trust_domain != *trust_domain || !peers.admit(&certified.id.subject) {
        return Err(Unwanted::SomebodyElse(certified.id));
    }
    if revoked.refuses(&certified) {
        return Err(Unwanted::Revoked(certified.id));
    }
    Ok(())
}

fn refused(unwanted: Unwanted) -> Error {
    match unwanted {
        Unwanted::Certificate(_) => Error::InvalidCertificate(Refusal::BadEncoding),
        Unwanted::Revoked(_) => Error::InvalidCertificate(Refusal::Revoked),
        Unwanted::SomebodyElse(_) => {
            Error::InvalidCertificate(Refusal::Other(OtherError(Arc::new(unwanted))))
        }
    }
}

/// Why a handshake failed on the peer's certificate; `None`: on something else.
pub(super) fn refusal(error: &std::io::Error) -> Option<&'static str> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    let Error::InvalidCertificate(why) = error else { return None };
    Some(match why {
        Refusal::Expired | Refusal::ExpiredContext { .. } => "certificate_expired",
        Refusal::NotValidYet | Refusal::NotValidYetContext { .. } => "certificate_not_valid_yet",
        Refusal::Revoked => "certificate_revoked",
        // The latter: one that calls itself as ours does.
        Refusal::UnknownIssuer | Refusal::BadSignature => "certificate_unknown_issuer",
        Refusal::Other(_) => "certificate_somebody_else",
        _ => "certificate_bad",
    })
}

impl ServerCertVerifier for Believed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.roots()?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, algorithms)?;
        self.is_wanted(end_entity, &roots)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Believed {
    fn client_auth_mandatory(&self) -> bool {
        !self.may_be_nobody
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // They have one certificate to show, and know it.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let roots = self.roots()?;
        let verified = roots.clients.verify_client_cert(end_entity, intermediates, now)?;
        self.is_wanted(end_entity, &roots)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Is the first of these believed by who believes those?
pub(super) fn verify_chain(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'static>],
) -> Result<(), Error> {
    let [first, between @ ..] = chain else { return Err(Error::NoCertificatesPresented) };
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    let algorithms = provider().signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(first)?;
    verify_server_cert_signed_by_trust_anchor(&parsed, &store, between, UnixTime::now(), algorithms)
}

/// Which of these has made a certificate that holds.
pub(super) fn issuer<'a>(
    certificate: &CertificateDer<'_>,
    roots: &'a [CertificateDer<'static>],
) -> Option<&'a CertificateDer<'static>> {
    let is_issuer = |root: &&CertificateDer<'static>| {
        verify_chain(std::slice::from_ref(certificate), std::slice::from_ref(root)).is_ok()
    };
    roots.iter().find(is_issuer)
}

pub(super) fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = provider().signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
}

/// What clients of the mesh's ports speak.
pub(super) fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    shown: Option<Arc<dyn ResolvesClientCert>>,
    protocol: &[u8],
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match shown {
        Some(shown) => builder.with_client_cert_resolver(shown),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    // Names prove nothing here.
    config.enable_sni = false;
    Ok(config)
}

/// What the mesh's ports speak.
pub(super) fn server(
    verifier: Arc<dyn ClientCertVerifier>,
    shown: Arc<dyn ResolvesServerCert>,
    protocol: &[u8],
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}

/// The one that the rest of the program uses.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
