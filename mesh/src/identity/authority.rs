//! What certifies nodes: a key and its certificate.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nerve::model::Fingerprint;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use zeroize::Zeroizing;

use super::certificate::{self, CertificateError, Root};
use super::fingerprint;
use super::spiffe::{SpiffeId, Subject, TrustDomain};
use super::token::{Terms, Token, TokenKey};

/// Where an authority is, in a directory of the operator's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Files {
    /// The certificate, for everyone to see.
    pub(super) certificate: &'static str,
    pub(super) key: &'static str,
}

impl Files {
    pub(super) fn certificate_in(self, directory: &Path) -> PathBuf {
        directory.join(self.certificate)
    }

    pub(super) fn key_in(self, directory: &Path) -> PathBuf {
        directory.join(self.key)
    }
}

/// One that another one vouches for certifies no other authority.
const LAST: IsCa = IsCa::Ca(BasicConstraints::Constrained(0));
/// How long an authority certifies.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Certificates hold from so long before they are made: other nodes' clocks may be behind.
pub(super) const SKEW: Duration = Duration::from_secs(300);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file is not to be had.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is one, and another one must not take its place.
    #[error("{} exists: an authority is not overwritten; choose another directory", .0.display())]
    Exists(PathBuf),
    /// Others can read the key.
    #[error("{}: others than its owner may read or write it (mode {mode:04o}): whoever has this key is the mesh; chmod 600", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The certificate is no authority's.
    #[error("{}: {error}", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: CertificateError,
    },
    /// It is a certificate, and of nobody who may certify others.
    #[error("{}: it may not certify anybody (it has no CA flag)", .0.display())]
    NoAuthority(PathBuf),
    /// The key is none, or another certificate's.
    #[error("{}: {error}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// It cannot be worked with.
    #[error("{0}")]
    Unusable(String),
    /// A certificate cannot be made.
    #[error("making a certificate: {0}")]
    Making(#[from] rcgen::Error),
}

/// An authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    trust_domain: TrustDomain,
    token_key: TokenKey,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes one in a directory that has none.
    pub(super) fn make(
        directory: &Path,
        files: Files,
        trust_domain: &TrustDomain,
        name: &str,
    ) -> Result<(), AuthorityError> {
        let (key_path, root_path) = (files.key_in(directory), files.certificate_in(directory));
        if let Some(there) = [&key_path, &root_path].into_iter().find(|path| path.exists()) {
            return Err(AuthorityError::Exists(there.clone()));
        }
        let file = |path: &Path| {
            let path = path.to_owned();
            move |error| AuthorityError::File { path, error }
        };
        fs::create_dir_all(directory).map_err(file(directory))?;
        let key = KeyPair::generate()?;
        let root = root_params(trust_domain, name)?.self_signed(&key)?;
        write_new(&key_path, 0o600, &Zeroizing::new(key.serialize_pem())).map_err(file(&key_path))?;
        write_new(&root_path, 0o644, &root.pem()).map_err(file(&root_path))
    }

    /// Reads one.
    pub(super) fn read(directory: &Path, files: Files) -> Result<Self, AuthorityError> {
        let (key_path, root_path) = (files.key_in(directory), files.certificate_in(directory));
        let read = |path: &Path| {
            fs::read_to_string(path)
                .map(Zeroizing::new)
                .map_err(|error| AuthorityError::File { path: path.to_owned(), error })
        };
        let mode = fs::metadata(&key_path)
            .map_err(|error| AuthorityError::File { path: key_path.clone(), error })?
            .mode()
            & 0o7777;
        if mode & 0o077 != 0 {
            return Err(AuthorityError::Open { path: key_path, mode });
        }
        let key_error = |error: String| AuthorityError::Key { path: key_path.clone(), error };
        let key = KeyPair::from_pem(&read(&key_path)?).map_err(|error| key_error(error.to_string()))?;
        let malformed = |error| AuthorityError::Certificate { path: root_path.clone(), error };
        let root = CertificateDer::from_pem_slice(read(&root_path)?.as_bytes())
            .map_err(|_| malformed(CertificateError::Malformed))?;
        let Root { trust_domain, is_ca, .. } = Root::read(&root).map_err(malformed)?;
        if !is_ca {
            return Err(AuthorityError::NoAuthority(root_path));
        }
        if !certificate::has_key(&root, key.public_key_raw()) {
            return Err(key_error(format!("it is not the key of {}", root_path.display())));
        }
        let token_key = TokenKey::of(key.serialized_der());
        Ok(Self { issuer: Issuer::from_ca_cert_der(&root, key)?, root, trust_domain, token_key })
    }

    /// Whom it certifies.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What it is known by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint::of(&self.root)
    }

    /// Makes a token that lets nodes in wherever this authority's key is.
    #[must_use]
    pub fn make_token(&self, terms: Terms) -> Token {
        Token::make(&self.token_key, self.fingerprint(), terms)
    }

    /// A certificate of another one's key, for whoever believes this one and not that one, for so long.
    pub(super) fn vouch_for(
        &self,
        other: &Self,
        life: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let mut params = params("", other.trust_domain.uri(), life)?;
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in certificate::subject(&other.root).unwrap_or_default() {
            params.distinguished_name.push(DnType::from_oid(&kind), value);
        }
        params.is_ca = LAST;
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let vouched = params.signed_by(other.issuer.key(), &self.issuer)?.into();
        // A name that is written otherwise is another name.
        if certificate::has_subject_of(&vouched, &other.root) {
            return Ok(vouched);
        }
        let error = format!(
            "the authority {} cannot be vouched for by another one: its name is not written in UTF-8",
            other.fingerprint()
        );
        Err(AuthorityError::Unusable(error))
    }

    /// What tokens are proved by.
    pub(super) fn token_key(&self) -> &TokenKey {
        &self.token_key
    }

    pub(super) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Certifies whoever has the key of a request to be `subject`; of what the request says itself, nothing is believed. It holds
    /// from a while ago, for those whose clocks are behind; not from before `from`.
    ///
    /// # Errors
    /// It is no request, or who asks does not have its key.
    pub fn certify(
        &self,
        request: &[u8],
        subject: Subject,
        life: Duration,
        from: Option<SystemTime>,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        // Proves that the key is theirs who ask.
        let CertificateSigningRequestParams { public_key, .. } =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
        let id = SpiffeId { trust_domain: self.trust_domain.clone(), subject };
        let mut params = node_params(&id, life)?;
        params.not_before = from.map_or(params.not_before, |from| params.not_before.max(from.into()));
        Ok(params.signed_by(&public_key, &self.issuer)?.into())
    }
}

/// The key of a request, as it stands in a certificate, if whoever asks has its private half.
pub(super) fn requested_key(request: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
    let CertificateSigningRequestParams { public_key, .. } =
        CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
    Ok(public_key.der_bytes().to_vec())
}

fn params(name: &str, uri: String, life: Duration) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - SKEW).into(), (now + life).into());
    // RFC 5280 section 4.1.2.2: unique, and positive.
    let mut serial: [u8; 16] = rand::random();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn root_params(trust_domain: &TrustDomain, name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(name, trust_domain.uri(), ROOT_LIFE)?;
    // One that another one vouches for may stand in between.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn node_params(id: &SpiffeId, life: Duration) -> Result<CertificateParams, rcgen::Error> {
    let name = match &id.subject {
        Subject::Node(name) | Subject::Signer(name) => name.as_str(),
        Subject::Service(name) => name.as_str(),
    };
    let mut params = params(name, id.to_string(), life)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// A file that nobody else has written, and that is on the disk.
fn write_new(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
