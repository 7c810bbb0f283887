//! What `plexus doctor` is told.

use nerve::model::NodeName;
use serde::{Deserialize, Serialize};

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkup {
    /// The node that it was looked at on.
    pub node: NodeName,
    /// In the order in which one thing needs another.
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub subject: String,
    /// `good`, `note` (it works, and there is something to know) or `bad`.
    pub state: String,
    /// What was seen.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// As it is to be.
    pub const GOOD: &'static str = "good";
    /// It works, and there is something to know about it.
    pub const NOTE: &'static str = "note";
    /// It does not work.
    pub const BAD: &'static str = "bad";
}
