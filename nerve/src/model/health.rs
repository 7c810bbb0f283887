//! The health of an instance, as its checks see it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// As well as its worst check. The order is from best to worst, so that `max` finds the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Every check passes, or there is none.
    #[default]
    Passing,
    /// It works, and a check says that something is to be looked after.
    Warning,
    /// Not yet decided: the instance was just defined and has not passed its checks once.
    Starting,
    /// A check has failed `fall` times in a row.
    Critical,
}

impl Health {
    /// May an instance of this health be given traffic?
    #[must_use]
    pub fn is_serving(self) -> bool {
        matches!(self, Self::Passing | Self::Warning)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Starting => "starting",
            Self::Critical => "critical",
        })
    }
}
