//! The certificate that clients are shown: read at the beginning, and again on a slow tick, since whoever renews it replaces files,
//! or what a link leads to, and tells nobody.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nerve::http::{CertificateFiles, NewCertificate, TlsAccept, TlsServer, TlsServerError};
use nerve::tasks::Tasks;
use tokio_util::sync::CancellationToken;

use super::https;
use crate::dns::metrics::Metrics;

/// What clients of DNS over TLS may ask for (RFC 7858 section 3.1; the name is in IANA's registry).
const DOT: &[u8] = b"dot";

/// A certificate, and what is wrong with its files. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Certificate {
    server: TlsServer,
    stands: Arc<Mutex<Stands>>,
    was_read: CancellationToken,
}

/// How it stands.
#[derive(Debug, Default)]
struct Stands {
    problem: Option<String>,
    not_after: Option<SystemTime>,
    is_shown: bool,
}

impl Certificate {
    pub(super) fn new(files: CertificateFiles) -> Result<Self, TlsServerError> {
        let server = TlsServer::new(files)?;
        Ok(Self { server, stands: Arc::default(), was_read: CancellationToken::new() })
    }

    /// For clients of DNS over TLS.
    pub(super) fn for_tls(&self) -> Result<TlsAccept, TlsServerError> {
        self.server.accept(&[DOT])
    }

    /// For clients of DNS over HTTPS.
    pub(super) fn for_https(&self) -> Result<TlsAccept, TlsServerError> {
        self.server.accept(&[https::H2, https::HTTP1])
    }

    /// Completes once the files were read, whatever came of it.
    pub(super) async fn was_read(&self) {
        self.was_read.cancelled().await;
    }

    /// What keeps clients from being shown what they should be.
    pub(super) fn problem(&self) -> Option<String> {
        let stands = self.stands.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |end: &SystemTime| *end < SystemTime::now();
        stands.problem.clone().or_else(|| {
            stands.not_after.filter(is_over).map(|_| {
                "the certificate that clients of TLS and HTTPS are shown has expired: replace dns.tls_cert_file and \
                 dns.tls_key_file"
                    .to_owned()
            })
        })
    }

    /// Reads the files every so often.
    pub(super) fn follow(&self, every: Duration, tasks: &Tasks, metrics: &Arc<Metrics>) {
        let (certificate, metrics) = (self.clone(), Arc::clone(metrics));
        tasks.spawn_until_stopped("dns certificate", move || {
            let (certificate, metrics) = (certificate.clone(), Arc::clone(&metrics));
            async move {
                loop {
                    certificate.read(&metrics).await;
                    certificate.was_read.cancel();
                    tokio::time::sleep(every).await;
                }
            }
        });
    }

    async fn read(&self, metrics: &Metrics) {
        let read = self.server.read().await;
        let mut stands = self.stands.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(new) => {
                if stands.problem.take().is_some() && new.is_none() {
                    tracing::info!("the files of DNS's certificate are those that are used again");
                }
                let Some(NewCertificate { not_after }) = new else { return };
                let seconds = not_after.and_then(|end| end.duration_since(UNIX_EPOCH).ok());
                let seconds = seconds.map_or(0, |end| i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
                metrics.certificate_not_after.set(seconds);
                tracing::info!(not_after_seconds = seconds, "DNS shows its clients a new certificate");
                (stands.not_after, stands.is_shown) = (not_after, true);
            }
            Err(error) => {
                let problem = told(&error, stands.is_shown);
                if stands.problem.as_ref() != Some(&problem) {
                    tracing::warn!(problem, "DNS over TLS and HTTPS");
                    stands.problem = Some(problem);
                }
            }
        }
    }
}

fn told(error: &dyn fmt::Display, is_shown: bool) -> String {
    let meanwhile = if is_shown {
        "clients are shown the certificate of before"
    } else {
        "clients of TLS and HTTPS are turned away"
    };
    format!("{error}; {meanwhile}; the files are read again")
}
