//! What a node proves itself with, on disk: its key, its certificate, and the authorities that it believes.

use std::io;
use std::path::Path;

use rcgen::KeyPair;
use rustls::Error;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::certificate::{CertificateError, Certified};
use super::private_file;

/// Key, chain and roots: one file, so that they change together.
const FILE: &str = "identity.json";

/// Why what is on disk is no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialsError {
    /// The file is not to be had.
    #[error(transparent)]
    File(#[from] io::Error),
    /// It is not what it is to be.
    #[error("{0}")]
    Malformed(String),
    /// The certificate is no node's.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// A key, what certifies it, and who is believed.
#[derive(Clone)]
pub(super) struct Credentials {
    /// In PEM.
    key: Zeroizing<String>,
    /// The node's certificate first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) certified: Certified,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("certified", &self.certified).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Written {
    key: Zeroizing<String>,
    chain: String,
    roots: String,
}

impl Credentials {
    /// # Errors
    /// The certificate is nobody's, or of another key.
    pub(super) fn new(
        key: &KeyPair,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CredentialsError> {
        Self::from_pem(Zeroizing::new(key.serialize_pem()), chain, roots)
    }

    /// The same with a key of any kind.
    ///
    /// # Errors
    /// As there; or the key is none.
    pub(super) fn from_pem(
        key: Zeroizing<String>,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CredentialsError> {
        let first = chain.first().ok_or_else(|| CredentialsError::Malformed("no certificate".to_owned()))?;
        let certified = Certified::read(first)?;
        let credentials = Self { key, chain, roots, certified };
        credentials.certified_key()?;
        Ok(credentials)
    }

    /// What TLS shows.
    pub(super) fn certified_key(&self) -> Result<CertifiedKey, CredentialsError> {
        let malformed = |error: &dyn std::fmt::Display| CredentialsError::Malformed(error.to_string());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        let key = key.map_err(|error| malformed(&format_args!("its key cannot be read: {error}")))?;
        CertifiedKey::from_der(self.chain.clone(), key, &ring::default_provider()).map_err(
            |error| match error {
                Error::InconsistentKeys(_) => malformed(&"the certificate is of another key"),
                error => malformed(&error),
            },
        )
    }

    /// What an earlier life has left in a directory; `None` where there was none.
    pub(super) fn load(directory: &Path) -> Result<Option<Self>, CredentialsError> {
        let Some(text) = private_file::read(directory, FILE)? else { return Ok(None) };
        let malformed = |error: &dyn std::fmt::Display| {
            CredentialsError::Malformed(format!("it is not what an agent writes: {error}"))
        };
        let written: Written = serde_json::from_str(&text).map_err(|error| malformed(&error))?;
        let certificates =
            |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = certificates(&written.chain).map_err(|error| malformed(&error))?;
        let roots = certificates(&written.roots).map_err(|error| malformed(&error))?;
        Self::from_pem(written.key, chain, roots).map(Some)
    }

    /// Keeps it for the next life.
    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        let written = Written { key: self.key.clone(), chain: pem(&self.chain), roots: pem(&self.roots) };
        let text = Zeroizing::new(serde_json::to_string_pretty(&written)?);
        private_file::write(directory, FILE, &text)
    }
}

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        // RFC 7468 section 2: lines of 64.
        for line in STANDARD.encode(certificate).as_bytes().chunks(64) {
            text.extend(line.iter().map(|octet| char::from(*octet)));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}
