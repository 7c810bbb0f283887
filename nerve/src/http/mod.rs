//! Speaking HTTP with other programs: connections, TLS, also as a server, and a client of their APIs. What is asked, and why, is others'
//! business.
//!
//! What a server answers is bounded, and so is how long it may take.

mod client;
mod connection;
mod file;
mod tls;
mod tls_server;
mod url;
mod validity;

use tokio::io::{AsyncRead, AsyncWrite};

pub use client::{Answer, Client, Lines};
pub(crate) use connection::{Connection, chain};
pub use file::{FileError, FilePath};
pub use tls::{Tls, TlsError};
pub use tls_server::{
    CertificateError, CertificateFiles, NewCertificate, TlsAccept, TlsServer, TlsServerError,
};
pub use url::{Url, encoded};

/// So much of what is not needed is read, and so long may the head of an answer be, in bytes.
pub(crate) const MAX_READ: usize = 64 * 1024;

/// What a connection can do.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}
