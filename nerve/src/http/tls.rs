//! TLS to a server: whom one trusts, what one shows of oneself, and what is asked for.
//!
//! Keys: `ca_file` (default: this machine's authorities), `insecure`, `server_name` (the name that is asked for and that the
//! certificate must have; default: the host name of the request, or the server's address), `cert_file` with `key_file`.
//! Files are read for each connection: a certificate that is renewed is used without a word to the agent.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Duplex;
use super::file::{FileError, FilePath};
use crate::document::{Reported, Section};

/// How TLS is spoken with a server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Tls {
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<FilePath>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cert_file: Option<FilePath>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_file: Option<FilePath>,
}

/// Why there is no TLS with a server.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of ours cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Anything else, in words.
    #[error("{0}")]
    Refused(String),
}

impl Tls {
    /// Reads its keys.
    ///
    /// # Errors
    /// What is wrong was reported.
    pub fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let ca_file = section.given("ca_file");
        let insecure = section.or("insecure", false);
        let server_name = section.given::<String>("server_name");
        let (cert_file, key_file) = (section.given("cert_file"), section.given("key_file"));
        let tls = Self {
            ca_file: ca_file?,
            insecure,
            server_name: server_name?,
            cert_file: cert_file?,
            key_file: key_file?,
        };
        if tls.insecure && tls.ca_file.is_some() {
            return Err(section.invalid("ca_file", "nothing is verified: `insecure` is set", "one of them"));
        }
        if tls.server_name.as_ref().is_some_and(|name| ServerName::try_from(name.as_str()).is_err()) {
            return Err(section.invalid("server_name", "it is no host name", "such as \"web.example.com\""));
        }
        match (&tls.cert_file, &tls.key_file) {
            (Some(_), None) => {
                Err(section.invalid("key_file", "`cert_file` is given", "the key of `cert_file`"))
            }
            (None, Some(_)) => {
                Err(section.invalid("cert_file", "`key_file` is given", "the certificate of `key_file`"))
            }
            _ => Ok(tls),
        }
    }

    /// With servers whose certificates come from an authority in `ca_file`, or from one of this machine's, and are for
    /// `server_name`, or for the host that is connected to.
    #[must_use]
    pub fn verified(ca_file: Option<FilePath>, server_name: Option<String>) -> Self {
        Self { ca_file, server_name, ..Self::default() }
    }

    /// Speaks TLS over a connection to `host`, a name or an address, with what is no HTTP.
    ///
    /// # Errors
    /// What is missing here, or why the server is not believed.
    pub async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        host: &str,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<S>, TlsError> {
        self.connect(Box::new(stream), host, &[]).await
    }

    /// Is any of it set?
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Speaks TLS over a connection to `host`, offering `protocols`.
    pub(crate) async fn connect(
        &self,
        stream: Box<dyn Duplex>,
        host: &str,
        protocols: &[&[u8]],
    ) -> Result<TlsStream<Box<dyn Duplex>>, TlsError> {
        let name = self.server_name.as_deref().unwrap_or_else(|| without_port(host));
        let server = match name.parse::<IpAddr>() {
            Ok(address) => ServerName::IpAddress(address.into()),
            Err(_) => ServerName::try_from(name.to_owned())
                .map_err(|_| refused(format_args!("{name:?} is no host name; give a `server_name`")))?,
        };
        let mut config = self.config().await?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(server, stream).await.map_err(refused)
    }

    async fn config(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(refused)?;
        let verifier: Arc<dyn ServerCertVerifier> = if self.insecure {
            Arc::new(Anyone(provider))
        } else {
            WebPkiServerVerifier::builder_with_provider(self.roots().await?, provider)
                .build()
                .map_err(refused)?
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let (Some(cert_file), Some(key_file)) = (&self.cert_file, &self.key_file) else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates(cert_file).await?;
        let key = PrivateKeyDer::from_pem_slice(&key_file.contents().await?)
            .map_err(|error| useless(key_file, &error))?;
        builder.with_client_auth_cert(chain, key).map_err(|error| {
            let (cert, key) = (cert_file.path().display(), key_file.path().display());
            TlsError::Refused(format!("{cert} with {key}: {error}"))
        })
    }

    async fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let Some(file) = &self.ca_file else {
            let roots = of_this_machine();
            return if roots.is_empty() {
                Err(TlsError::Refused("this machine has no certificate authorities: install ca-certificates, or give a `ca_file`".to_owned()))
            } else {
                Ok(roots)
            };
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(file).await? {
            roots.add(certificate).map_err(|error| useless(file, &error))?;
        }
        Ok(Arc::new(roots))
    }
}

/// The authorities that this machine trusts, read once there are any.
fn of_this_machine() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Arc::clone(roots);
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let roots = Arc::new(roots);
    if !roots.is_empty() {
        // Somebody else may have been faster, with the same ones.
        let _ = ROOTS.set(Arc::clone(&roots));
    }
    roots
}

fn refused(why: impl fmt::Display) -> TlsError {
    TlsError::Refused(format!("TLS: {why}"))
}

fn useless(file: &FilePath, why: &dyn fmt::Display) -> TlsError {
    TlsError::Refused(format!("{}: {why}", file.path().display()))
}

async fn certificates(file: &FilePath) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = file.contents().await?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match read {
        Ok(read) if read.is_empty() => Err(useless(file, &"there is no certificate in it")),
        Ok(read) => Ok(read),
        Err(error) => Err(useless(file, &error)),
    }
}

/// The name in `name`, `name:443`, `[::1]:443`.
fn without_port(host: &str) -> &str {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return address;
    }
    match host.split_once(':') {
        // More than one colon: an IPv6 address without a port.
        Some((name, rest)) if !rest.contains(':') => name,
        _ => host,
    }
}

/// Takes any certificate: what `insecure` asks for. Signatures are verified all the same, for what that is worth.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    #[test]
    fn the_name_of_a_host_is_without_its_port() {
        for (host, name) in [
            ("a.b", "a.b"),
            ("a.b:443", "a.b"),
            ("192.0.2.1:443", "192.0.2.1"),
            ("[::1]:443", "::1"),
            ("::1", "::1"),
        ] {
            assert_eq!(without_port(host), name);
        }
    }

    #[test]
    fn keys_that_contradict_each_other_are_refused() {
        for (text, expected) in [
            ("insecure = true\nca_file = \"/ca\"", "x:2:11: ca_file: nothing is verified"),
            ("cert_file = \"/a\"", "key_file: `cert_file` is given"),
            ("key_file = \"/a\"", "cert_file: `key_file` is given"),
            ("server_name = \"a b\"", "x:1:15: server_name: it is no host name"),
            ("ca_file = \"ca.pem\"", "x:1:11: ca_file: ca.pem is not absolute"),
        ] {
            let shown = Document::parse("x", text).unwrap().decode(Tls::read).unwrap_err().to_string();
            assert!(shown.contains(expected), "{text}: {shown}");
        }
    }
}
