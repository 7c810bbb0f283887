//! How bad what a probe saw is.

use serde::{Deserialize, Serialize};

use crate::document::{FromValue, Mismatch, Value};

/// How bad it is; `max` finds the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It is well.
    Passing,
    /// It works, and somebody should look after it.
    Warning,
    /// It does not work.
    Critical,
}

impl Level {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// From which level on a probe counts as failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FailsOn {
    /// A warning takes the instance out.
    Warning,
    /// A warning is shown.
    #[default]
    Critical,
}

impl FailsOn {
    /// What a probe's result counts as.
    #[must_use]
    pub fn weigh(self, level: Level) -> Level {
        if self == Self::Warning && level == Level::Warning { Level::Critical } else { level }
    }

    /// Is it the default?
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl FromValue for FailsOn {
    fn expected() -> String {
        "\"warning\" or \"critical\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_text() {
            Some("warning") => Ok(Self::Warning),
            Some("critical") => Ok(Self::Critical),
            Some(_) => Err(value.mismatch("it is no level", Self::expected())),
            None => Err(value.wrong_kind(Self::expected())),
        }
    }
}
