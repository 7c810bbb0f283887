//! How this node's identity stands, for whoever asks.

use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use nerve::enrolment::rotation::Report;
use nerve::model::Fingerprint;
use tokio::sync::watch;

use super::certificate::Certified;
use super::credentials::Credentials;
use super::fingerprint;
use super::metrics::Metrics;
use super::tls;

/// Shared by what keeps it and who asks.
#[derive(Debug)]
pub(super) struct State {
    now: Mutex<Now>,
    /// What others are to know.
    report: watch::Sender<Option<Report>>,
    signs: bool,
    metrics: Metrics,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Now {
    pub(super) certified: Option<Certified>,
    pub(super) roots: Vec<Fingerprint>,
    pub(super) problem: Option<String>,
    /// Why nobody can ask this node, though it signs.
    pub(super) deaf: Option<String>,
    /// Why the operator's files are no use as they are now.
    pub(super) files: Option<String>,
}

impl Now {
    /// What is wrong.
    pub(super) fn problem(self) -> Option<String> {
        self.problem.or(self.files).or(self.deaf)
    }
}

impl State {
    pub(super) fn new(signs: bool, metrics: Metrics) -> Self {
        Self { now: Mutex::default(), report: watch::Sender::new(None), signs, metrics }
    }

    pub(super) fn report(&self) -> watch::Receiver<Option<Report>> {
        self.report.subscribe()
    }

    pub(super) fn now(&self) -> Now {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn certified(&self) -> Option<Certified> {
        self.now().certified
    }

    /// What an earlier life has left.
    pub(super) fn recalled(&self, credentials: &Credentials) {
        self.put(credentials);
        let certified = &credentials.certified;
        let until = humantime::format_rfc3339_seconds(certified.not_after);
        tracing::info!(id = %certified.id, %until, "this node's identity");
    }

    /// There is a new certificate.
    pub(super) fn has(&self, credentials: &Credentials) {
        self.metrics.renewals.with_label_values(&["ok"]).inc();
        self.put(credentials);
        let certified = &credentials.certified;
        let until = humantime::format_rfc3339_seconds(certified.not_after);
        tracing::info!(id = %certified.id, %until, "this node has a new certificate");
    }

    fn put(&self, Credentials { certified, chain, roots, .. }: &Credentials) {
        let not_after = certified.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.metrics.not_after.set(i64::try_from(not_after).unwrap_or(i64::MAX));
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.certified = Some(certified.clone());
        now.roots = roots.iter().map(fingerprint::of).collect();
        now.problem = None;
        self.report.send_replace(Some(Report {
            issuer: chain.first().and_then(|first| tls::issuer(first, roots)).map(fingerprint::of),
            roots: now.roots.clone(),
            signs: self.signs,
            until: not_after,
        }));
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

    /// The operator's files are no use, or are again. What they had before is in use.
    pub(super) fn note_files(&self, problem: Option<String>) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = problem.as_ref().filter(|_| now.files != problem) {
            tracing::warn!("identity: {problem}");
        }
        now.files = problem;
    }

    pub(super) fn note(&self, problem: &str) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.problem.as_deref() != Some(problem) {
            tracing::warn!("identity: {problem}");
            now.problem = Some(problem.to_owned());
        }
    }
}
