//! What Prometheus is told of identity.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// Counters and gauges. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// When this node's certificate ends, in seconds since 1970; 0: it has none.
    pub(super) not_after: IntGauge,
    /// Certificates that this node asked for, by how that ended.
    pub(super) renewals: IntCounterVec,
    /// Certificates that this node made, by what let their owner in.
    pub(super) certified: IntCounterVec,
    /// Those that it refused, by reason.
    pub(super) refused: IntCounterVec,
    /// Nodes whose certificates are refused.
    pub(super) revoked: IntGauge,
}

impl Metrics {
    /// Not registered yet.
    ///
    /// # Errors
    /// None in practice: the names are constants.
    pub fn new() -> Result<Self, prometheus::Error> {
        let counter = |name, help, label| IntCounterVec::new(Opts::new(name, help), &[label]);
        Ok(Self {
            not_after: IntGauge::new(
                "plexus_identity_certificate_not_after_seconds",
                "When this node's certificate ends, in seconds since 1970; 0: it has none.",
            )?,
            renewals: counter(
                "plexus_identity_renewals_total",
                "Certificates that this node asked for, by how that ended (ok, failed).",
                "result",
            )?,
            certified: counter(
                "plexus_identity_certified_total",
                "Nodes that this node certified, by what let them in (own, certificate, token).",
                "by",
            )?,
            refused: counter(
                "plexus_identity_refused_total",
                "Nodes that this node did not certify, by reason.",
                "reason",
            )?,
            revoked: IntGauge::new(
                "plexus_identity_revoked_nodes",
                "Nodes whose certificates are refused, by what the store says.",
            )?,
        })
    }

    /// Has them told.
    ///
    /// # Errors
    /// They are told already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.not_after.clone()))?;
        registry.register(Box::new(self.renewals.clone()))?;
        registry.register(Box::new(self.certified.clone()))?;
        registry.register(Box::new(self.refused.clone()))?;
        registry.register(Box::new(self.revoked.clone()))
    }
}
