//! What a node proves itself with, on disk: its key, its certificate, and the authorities that it believes.

use std::io;
use std::path::Path;

use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::certificate::{self, CertificateError, Certified};
use super::private_file;

/// Key, chain and roots: one file, so that they change together.
const FILE: &str = "identity.json";

/// Why what is on disk is no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialsError {
    /// The file is not to be had.
    #[error(transparent)]
    File(#[from] io::Error),
    /// It is not what this program writes.
    #[error("it is not what an agent writes: {0}")]
    Malformed(String),
    /// The certificate is no node's.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// A key, what certifies it, and who is believed.
#[derive(Clone)]
pub(super) struct Credentials {
    /// PKCS #8, in PEM.
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
        let first = chain.first().ok_or_else(|| CredentialsError::Malformed("no certificate".to_owned()))?;
        if !certificate::has_key(first, key.public_key_raw()) {
            return Err(CredentialsError::Malformed("the certificate is of another key".to_owned()));
        }
        let certified = Certified::read(first)?;
        Ok(Self { key: Zeroizing::new(key.serialize_pem()), chain, roots, certified })
    }

    /// The key, as TLS wants it.
    pub(super) fn key(&self) -> Result<PrivateKeyDer<'static>, CredentialsError> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(self.key.as_bytes());
        key.map(PrivateKeyDer::Pkcs8).map_err(|error| CredentialsError::Malformed(error.to_string()))
    }

    /// What an earlier life has left in a directory; `None` where there was none.
    pub(super) fn load(directory: &Path) -> Result<Option<Self>, CredentialsError> {
        let Some(text) = private_file::read(directory, FILE)? else { return Ok(None) };
        let malformed = |error: &dyn std::fmt::Display| CredentialsError::Malformed(error.to_string());
        let written: Written = serde_json::from_str(&text).map_err(|error| malformed(&error))?;
        let certificates =
            |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = certificates(&written.chain).map_err(|error| malformed(&error))?;
        let roots = certificates(&written.roots).map_err(|error| malformed(&error))?;
        let key = KeyPair::from_pem(&written.key).map_err(|error| malformed(&error))?;
        Self::new(&key, chain, roots).map(Some)
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
