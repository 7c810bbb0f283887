//! A certificate, its key and the roots from files that somebody else renews (cert-manager, Vault's agent, SPIRE's helper): followed, and
//! used without a restart. Files that are no use are told, and what they had before stays.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::model::NodeName;
use nerve::watched::Watched;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::credentials::{Credentials, CredentialsError};
use super::spiffe::Subject;
use super::state::State;
use super::tls::{self, Standing};

/// They are read so often without any event.
const TICK: Duration = Duration::from_secs(10);
/// What is no use is told once it has been so for as long: files are replaced one after the other.
const IN_BETWEEN: Duration = Duration::from_secs(1);
/// More is no certificate of anybody's, in octets.
const LONGEST: u64 = 1024 * 1024;

/// Where they are, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and those between it and a root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Whom this node believes.
    pub roots: PathBuf,
}

/// Why the files are no use.
#[derive(Debug, thiserror::Error)]
enum FilesError {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{} has no certificate in PEM", .0.display())]
    NoCertificate(PathBuf),
    #[error("{} with {}: {error}", certificate.display(), key.display())]
    Unusable { certificate: PathBuf, key: PathBuf, error: CredentialsError },
    #[error("{} is the certificate of {found}, and this node is {node}", path.display())]
    SomebodyElse { path: PathBuf, found: String, node: String },
    #[error("{} is believed by nobody who goes by {}: {why}", path.display(), roots.display())]
    Unbelieved { path: PathBuf, roots: PathBuf, why: String },
}

impl Files {
    /// Uses them, and what comes after them. Does not end.
    pub(super) async fn follow(self, node: NodeName, standing: Arc<Standing>, state: Arc<State>) {
        let mut watched = Watched::files([&self.certificate, &self.key, &self.roots].map(PathBuf::as_path));
        let (mut known, mut wrong_since) = (None, None);
        loop {
            match self.load(&node).await {
                Ok(credentials) => {
                    wrong_since = None;
                    state.note_files(None);
                    let shown = (credentials.chain.clone(), credentials.roots.clone());
                    if known.as_ref() != Some(&shown) {
                        match standing.take(&credentials) {
                            Ok(()) => state.has(&credentials),
                            Err(error) => state.failed(&error.to_string()),
                        }
                        known = Some(shown);
                    }
                }
                Err(error) => {
                    let since = *wrong_since.get_or_insert_with(tokio::time::Instant::now);
                    if since.elapsed() >= IN_BETWEEN {
                        let before = match known {
                            Some(_) => ", and what was there before is in use",
                            None => "",
                        };
                        state.note_files(Some(format!("{error}{before}")));
                    } else {
                        watched.changed(IN_BETWEEN).await;
                        continue;
                    }
                }
            }
            watched.changed(TICK).await;
        }
    }

    /// Off the control thread: a file may be on a network.
    async fn load(&self, node: &NodeName) -> Result<Credentials, FilesError> {
        let (files, node) = (self.clone(), node.clone());
        let loaded = tokio::task::spawn_blocking(move || files.read(&node)).await;
        loaded.unwrap_or_else(|panic| {
            Err(FilesError::File { path: self.certificate.clone(), error: io::Error::other(panic) })
        })
    }

    fn read(&self, node: &NodeName) -> Result<Credentials, FilesError> {
        let Self { certificate, key, roots } = self;
        let (chain, trusted) = (certificates(certificate)?, certificates(roots)?);
        let credentials = Credentials::from_pem(read(key)?, chain, trusted);
        let credentials = credentials.map_err(|error| {
            let (certificate, key) = (certificate.clone(), key.clone());
            FilesError::Unusable { certificate, key, error }
        })?;
        let found = &credentials.certified.id;
        if found.subject != Subject::Node(node.clone()) {
            let node = format!("spiffe://{}/node/{node}", found.trust_domain);
            return Err(FilesError::SomebodyElse {
                path: certificate.clone(),
                found: found.to_string(),
                node,
            });
        }
        let not_after = credentials.certified.not_after;
        let why = if not_after <= SystemTime::now() {
            Some(format!("it ended at {}", humantime::format_rfc3339_seconds(not_after)))
        } else {
            tls::verify_chain(&credentials.chain, &credentials.roots).err().map(|error| error.to_string())
        };
        match why {
            Some(why) => Err(FilesError::Unbelieved { path: certificate.clone(), roots: roots.clone(), why }),
            None => Ok(credentials),
        }
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, FilesError> {
    use std::io::Read;
    let mut text = Zeroizing::new(String::new());
    let read = std::fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    read.map_err(|error| FilesError::File { path: path.to_owned(), error })?;
    Ok(text)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FilesError> {
    let text = read(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    read.ok().filter(|read| !read.is_empty()).ok_or_else(|| FilesError::NoCertificate(path.to_owned()))
}
