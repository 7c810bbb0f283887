//! Asking a signing node for a certificate.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nerve::model::{Fingerprint, NodeName};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError as Refusal, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::certificate::{Certified, Root};
use super::credentials::{Credentials, CredentialsError};
use super::fingerprint;
use super::protocol::{self, Answer, Der, PROTOCOL, Request, Secret};
use super::tls::{self, Believed, Peers, Roots, Shown, Standing};
use super::token::Token;

/// How long one signing node may take.
const WITHIN: Duration = Duration::from_secs(10);
/// More than anyone needs; bounded like all that others say.
const MOST_CERTIFICATES: usize = 16;

/// Why no certificate was had of a signing node.
#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    /// It refuses.
    #[error("{message} ({reason})")]
    Refused { reason: String, message: String },
    /// It is out of reach, or nobody to believe.
    #[error(transparent)]
    Unreachable(#[from] io::Error),
    #[error("it did not answer within {WITHIN:?}")]
    Silent,
    #[error("what it answered is no use: {0}")]
    Useless(#[from] CredentialsError),
    #[error("making a key: {0}")]
    Key(#[from] rcgen::Error),
}

/// By what a node asks.
#[derive(Debug)]
pub(super) enum Ask<'a> {
    /// For the first time: the mesh is known by the token.
    Token(&'a Token),
    /// By the certificate that it has.
    Again(&'a Arc<Standing>),
}

/// A new key, and a request for its certificate, in DER.
///
/// # Errors
/// There is no key to be had.
pub fn request() -> Result<(KeyPair, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // Who it is, the signing node knows by other means.
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key)?.der().to_vec();
    Ok((key, request))
}

/// Asks the signing node at `address` to certify this node.
///
/// # Errors
/// It does not, or is not believed.
pub(super) async fn ask(
    address: SocketAddr,
    node: &NodeName,
    by: &Ask<'_>,
) -> Result<Credentials, JoinError> {
    let (key, request) = request()?;
    let token = match by {
        Ask::Token(token) => Some(Secret(Zeroizing::new(token.text().to_owned()))),
        Ask::Again(_) => None,
    };
    let request = Request { node: node.clone(), request: Der(request), token };
    let config = by.config().map_err(io::Error::other)?;
    let answered = tokio::time::timeout(WITHIN, converse(address, config, &request)).await;
    match answered.map_err(|_| JoinError::Silent)?? {
        Answer::Refused { reason, message } => {
            let short = |text: String| text.chars().filter(|c| !c.is_control()).take(500).collect();
            Err(JoinError::Refused { reason: short(reason), message: short(message) })
        }
        Answer::Certified { chain, roots } => {
            let certificates =
                |der: Vec<Der>| der.into_iter().take(MOST_CERTIFICATES).map(|der| der.0.into()).collect();
            let credentials = Credentials::new(&key, certificates(chain), certificates(roots))?;
            if credentials.certified.id.subject != super::spiffe::Subject::Node(node.clone()) {
                let error = format!("it certifies {}", credentials.certified.id);
                return Err(CredentialsError::Malformed(error).into());
            }
            Ok(credentials)
        }
    }
}

async fn converse(address: SocketAddr, config: ClientConfig, request: &Request) -> io::Result<Answer> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    protocol::write(&mut stream, request).await?;
    protocol::read(&mut stream).await
}

impl Ask<'_> {
    fn config(&self) -> Result<ClientConfig, Error> {
        match self {
            Self::Token(token) => {
                let verifier = Arc::new(FirstMeeting { root: token.grant().root });
                tls::client(verifier, None, PROTOCOL)
            }
            Self::Again(standing) => {
                let standing = Arc::clone(standing);
                let shown = Arc::new(Shown(Arc::clone(&standing)));
                let verifier = Arc::new(Believed { standing, peers: Peers::Signers, may_be_nobody: false });
                tls::client(verifier, Some(shown), PROTOCOL)
            }
        }
    }
}

/// Believes a signing node whose authority has this fingerprint, which it shows with its own certificate.
#[derive(Debug)]
struct FirstMeeting {
    root: Fingerprint,
}

impl ServerCertVerifier for FirstMeeting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_root = |certificate: &&CertificateDer<'_>| fingerprint::of(certificate) == self.root;
        let root =
            intermediates.iter().find(is_root).ok_or(Error::InvalidCertificate(Refusal::UnknownIssuer))?;
        // An authority that is not one of ours alone does not say whose it is.
        let trust_domain = match Root::read(root) {
            Ok(said) => said.trust_domain,
            Err(_) => {
                let shown = Certified::read(end_entity);
                shown.map_err(|_| Error::InvalidCertificate(Refusal::BadEncoding))?.id.trust_domain
            }
        };
        let standing = Arc::new(Standing::believing(Roots::new(&[root.clone().into_owned()], trust_domain)?));
        let believed = Believed { standing, peers: Peers::Signers, may_be_nobody: false };
        believed.verify_server_cert(end_entity, intermediates, name, ocsp, now)
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
        tls::verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
