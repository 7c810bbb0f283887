//! How the watchers of a node stand.

use nerve::model::ServiceName;
use serde::{Deserialize, Serialize};

/// The watchers of the node that answers, that of the store first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatcherList {
    /// In the order in which they are believed.
    pub watchers: Vec<WatcherInfo>,
}

/// One watcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatcherInfo {
    /// What it is called.
    pub name: String,
    /// `store`, `file`, …
    pub kind: String,
    /// The service that it fills; none for the store's, which fills all, and for a place that names services itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// Where it looks.
    pub place: String,
    /// Is the place within reach?
    pub connected: bool,
    /// For how long it is so, or is not.
    pub for_seconds: u64,
    /// How long ago it last told something new; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_seconds_ago: Option<u64>,
    /// What it knows: instances of its service, or records of the store.
    pub entries: usize,
    /// The place names no server, and what is used instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
    /// What stands there and cannot be used, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
    /// Why it was last out of reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
