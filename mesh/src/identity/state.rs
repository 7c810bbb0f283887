//! How this node's identity stands, for whoever asks.

use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use rustls::pki_types::CertificateDer;

use super::certificate::Certified;
use super::fingerprint::Fingerprint;
use super::metrics::Metrics;

/// Shared by what keeps it and who asks.
#[derive(Debug)]
pub(super) struct State {
    now: Mutex<Now>,
    metrics: Metrics,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Now {
    pub(super) certified: Option<Certified>,
    pub(super) roots: Vec<Fingerprint>,
    pub(super) problem: Option<String>,
    /// Why nobody can ask this node, though it signs.
    pub(super) deaf: Option<String>,
}

impl State {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { now: Mutex::default(), metrics }
    }

    pub(super) fn now(&self) -> Now {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn certified(&self) -> Option<Certified> {
        self.now().certified
    }

    /// What an earlier life has left.
    pub(super) fn recalled(&self, certified: &Certified, roots: &[CertificateDer<'_>]) {
        self.put(certified, roots);
        let until = humantime::format_rfc3339_seconds(certified.not_after);
        tracing::info!(id = %certified.id, %until, "this node's identity");
    }

    /// There is a new certificate.
    pub(super) fn has(&self, certified: &Certified, roots: &[CertificateDer<'_>]) {
        self.metrics.renewals.with_label_values(&["ok"]).inc();
        self.put(certified, roots);
        let until = humantime::format_rfc3339_seconds(certified.not_after);
        tracing::info!(id = %certified.id, %until, "this node has a new certificate");
    }

    fn put(&self, certified: &Certified, roots: &[CertificateDer<'_>]) {
        let not_after = certified.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.metrics.not_after.set(i64::try_from(not_after).unwrap_or(i64::MAX));
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.certified = Some(certified.clone());
        now.roots = roots.iter().map(Fingerprint::of).collect();
        now.problem = None;
    }

    /// There is none. Said once for each reason.
    pub(super) fn failed(&self, problem: &str) {
        self.metrics.renewals.with_label_values(&["failed"]).inc();
        self.note(problem);
    }

    /// Others cannot ask this node, or can again.
    pub(super) fn note_deaf(&self, problem: Option<String>) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = problem.as_ref().filter(|_| now.deaf != problem) {
            tracing::warn!("identity: {problem}");
        }
        now.deaf = problem;
    }

    pub(super) fn note(&self, problem: &str) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.problem.as_deref() != Some(problem) {
            tracing::warn!("identity: {problem}");
            now.problem = Some(problem.to_owned());
        }
    }
}
