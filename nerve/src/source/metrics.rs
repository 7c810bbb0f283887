//! What the sources count.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// Counters of the sources. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) reads: IntCounterVec,
    pub(super) faulty_files: IntGauge,
    pub(crate) refused: IntGauge,
}

#[allow(clippy::expect_used, reason = "the names and labels are constants; a wrong one fails every test")]
impl Default for Metrics {
    fn default() -> Self {
        let gauge = |name, help| IntGauge::new(name, help).expect("constant");
        let reads =
            Opts::new("plexus_source_file_reads_total", "Reads of service files that had changed, by result");
        Self {
            reads: IntCounterVec::new(reads, &["result"]).expect("constant"),
            faulty_files: gauge(
                "plexus_source_faulty_files",
                "Service files with an error, whose last good version is in force",
            ),
            refused: gauge(
                "plexus_source_refused_definitions",
                "Definitions refused because the instance is defined elsewhere",
            ),
        }
    }
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// One of the names is taken.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.reads.clone()))?;
        registry.register(Box::new(self.faulty_files.clone()))?;
        registry.register(Box::new(self.refused.clone()))
    }
}
