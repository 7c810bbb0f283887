//! The life of an agent, as everyone may watch it: the API, a metric, `sd_notify`, tests.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where the agent stands between start and end. It only ever moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Sockets are being bound and the catalog is awaited.
    #[default]
    Starting,
    /// Everything that was awaited is there; `/readyz` says so.
    Ready,
    /// Asked to leave: this node's instances are taken out of the store, and that is waited for. Still accepting.
    Deregistering,
    /// No new connections; those that exist are finished.
    Draining,
    /// Nothing runs any more.
    Stopped,
}

impl Phase {
    /// The word for it, as in the API and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Deregistering => "deregistering",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
