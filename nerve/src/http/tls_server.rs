//! TLS as a server: the certificate that clients are shown, and its key, as they stand in two files that may be exchanged.
//!
//! Whoever owns a [`TlsServer`] reads it again from time to time. A pair that is no good is told and changes nothing: clients go on
//! being shown the one before. Until there was a good one, handshakes are refused. Never asks clients for certificates.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::file::{FileError, FilePath};
use super::validity::not_after;

/// The files of a certificate, with those that lead to its authority behind it, and of its key. PEM, both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate.
    pub cert_file: FilePath,
    /// Its key.
    pub key_file: FilePath,
}

/// A certificate that clients are shown. Clones share it.
#[derive(Debug, Clone)]
pub struct TlsServer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: CertificateFiles,
    shown: Arc<Shown>,
    /// What stood in the files that the certificate is from.
    contents: Mutex<Option<[Vec<u8>; 2]>>,
    /// What a client comes back with instead of a whole handshake; those of all listeners are the same.
    tickets: Arc<dyn rustls::server::ProducesTickets>,
}

/// What handshakes ask for the certificate.
#[derive(Debug)]
struct Shown(ArcSwapOption<CertifiedKey>);

/// Speaks TLS with clients who connect, and one of some protocols over it.
#[derive(Clone)]
pub struct TlsAccept(TlsAcceptor);

/// What the files say that was not said before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewCertificate {
    /// When its time is over; `None` where that cannot be read.
    pub not_after: Option<SystemTime>,
}

/// Why there is no certificate to show, or no newer one.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// What stands in it is of no use.
    #[error("{file}: {why}")]
    Useless {
        /// Which.
        file: String,
        /// Why.
        why: String,
    },
    /// They are of no use together.
    #[error("{cert} with {key}: {why}; both have to be exchanged")]
    Pair {
        /// The certificate's file.
        cert: String,
        /// The key's file.
        key: String,
        /// Why.
        why: rustls::Error,
    },
}

/// What TLS needs is not to be had here: randomness, mostly.
#[derive(Debug, thiserror::Error)]
#[error("TLS cannot be served: {0}")]
pub struct TlsServerError(#[from] rustls::Error);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl fmt::Debug for TlsAccept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsAccept").finish_non_exhaustive()
    }
}

impl TlsServer {
    /// One that has read nothing yet.
    ///
    /// # Errors
    /// This machine has no randomness for tickets.
    pub fn new(files: CertificateFiles) -> Result<Self, TlsServerError> {
        let shown = Arc::new(Shown(ArcSwapOption::empty()));
        let tickets = Ticketer::new()?;
        Ok(Self(Arc::new(Inner { files, shown, contents: Mutex::default(), tickets })))
    }

    /// Reads the files; `None` where they say what they said before.
    ///
    /// # Errors
    /// What is wrong with them; what clients are shown stays as it was.
    pub async fn read(&self) -> Result<Option<NewCertificate>, CertificateError> {
        let CertificateFiles { cert_file, key_file } = &self.0.files;
        let read = [cert_file.contents().await?, key_file.contents().await?];
        let mut contents = self.0.contents.lock().unwrap_or_else(PoisonError::into_inner);
        if contents.as_ref() == Some(&read) {
            return Ok(None);
        }
        let useless = |file: &FilePath, why: &dyn fmt::Display| CertificateError::Useless {
            file: file.path().display().to_string(),
            why: why.to_string(),
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read[0]).collect();
        let chain = chain.map_err(|error| useless(cert_file, &error))?;
        let Some(first) = chain.first() else {
            return Err(useless(cert_file, &"there is no certificate in it"));
        };
        let not_after = not_after(first);
        let key = PrivateKeyDer::from_pem_slice(&read[1]).map_err(|error| useless(key_file, &error))?;
        let pair = CertifiedKey::from_der(chain, key, &default_provider());
        let pair = pair.map_err(|why| CertificateError::Pair {
            cert: cert_file.path().display().to_string(),
            key: key_file.path().display().to_string(),
            why,
        })?;
        self.0.shown.0.store(Some(Arc::new(pair)));
        *contents = Some(read);
        Ok(Some(NewCertificate { not_after }))
    }

    /// With clients who want one of these protocols (RFC 7301), or do not say what they want.
    ///
    /// # Errors
    /// There are no versions of TLS to speak.
    pub fn accept(&self, protocols: &[&[u8]]) -> Result<TlsAccept, TlsServerError> {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
        let mut config = builder.with_cert_resolver(Arc::clone(&self.0.shown) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config.ticketer = Arc::clone(&self.0.tickets);
        Ok(TlsAccept(TlsAcceptor::from(Arc::new(config))))
    }
}

impl TlsAccept {
    /// The handshake; with it, which protocol it is to be. Its time is the caller's to bound.
    ///
    /// # Errors
    /// Why there is none: the client's fault or the connection's.
    pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
    ) -> io::Result<(impl AsyncRead + AsyncWrite + Unpin + Send + use<S>, Option<Vec<u8>>)> {
        let stream = self.0.accept(stream).await?;
        let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        Ok((stream, protocol))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::Tls;
    use super::*;

    fn file(path: &Path) -> FilePath {
        FilePath::absolute(path.to_owned()).unwrap()
    }

    fn write(directory: &Path, cert: &str, key: &str) {
        std::fs::write(directory.join("cert.pem"), cert).unwrap();
        std::fs::write(directory.join("key.pem"), key).unwrap();
    }

    /// For `a.example`, and signed by itself: certificate and key.
    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    /// Is this client, who believes that certificate alone, spoken with?
    async fn is_believed(accept: &TlsAccept, authority: &Path) -> bool {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let client = Tls::verified(Some(file(authority)), Some("a.example".to_owned()));
        let server = async {
            let (mut stream, protocol) = accept.handshake(ours).await.ok()?;
            assert_eq!(protocol, None);
            stream.write_all(b"x").await.ok()?;
            stream.flush().await.ok()
        };
        let client = async {
            let mut stream = client.over(theirs, "a.example").await.ok()?;
            stream.read_u8().await.ok()
        };
        tokio::join!(server, client) == (Some(()), Some(b'x'))
    }

    #[tokio::test]
    async fn a_good_pair_is_shown_and_a_bad_one_leaves_it() {
        let directory = tempfile::tempdir().unwrap();
        let (cert_file, key_file) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
        let files = CertificateFiles { cert_file: file(&cert_file), key_file: file(&key_file) };
        let server = TlsServer::new(files).unwrap();
        let accept = server.accept(&[b"dot"]).unwrap();
        let (old, new) = (pair(), pair());
        let old_authority = directory.path().join("old.pem");
        std::fs::write(&old_authority, &old.0).unwrap();
        assert!(!is_believed(&accept, &old_authority).await, "there is none yet");
        assert!(server.read().await.unwrap_err().to_string().contains("cert.pem: No such file"));
        write(directory.path(), &old.0, &old.1);
        let read = server.read().await.unwrap().unwrap();
        assert!(read.not_after.unwrap() > SystemTime::now());
        assert!(is_believed(&accept, &old_authority).await);
        assert_eq!(server.read().await.unwrap(), None, "the same again");
        for (cert, key, why) in [
            (new.0.as_str(), old.1.as_str(), "both have to be exchanged"),
            ("", &old.1, "there is no certificate in it"),
            (&new.0, "x", "key.pem: "),
        ] {
            write(directory.path(), cert, key);
            let error = server.read().await.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(is_believed(&accept, &old_authority).await, "{why}");
        }
        write(directory.path(), &new.0, &new.1);
        assert!(server.read().await.unwrap().is_some());
        assert!(!is_believed(&accept, &old_authority).await);
        assert!(is_believed(&accept, &cert_file).await);
    }
}
