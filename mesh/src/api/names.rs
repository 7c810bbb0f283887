//! What names are asked for most.

use serde::{Deserialize, Serialize};

/// What the name server of the node that answers was asked lately.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopList {
    /// How long "lately" is, in seconds: one to two minutes, less after a start.
    pub window_seconds: f64,
    /// Queries in that time.
    pub queries: u64,
    /// Names, the most frequent first.
    pub names: Vec<TopEntry>,
    /// Addresses of clients, the most frequent first.
    pub clients: Vec<TopEntry>,
}

/// A name, or a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopEntry {
    /// Which.
    pub what: String,
    /// About so many queries, an estimate where there are many.
    pub queries: u64,
    /// By so much it may be too high, since what is rare is not told apart.
    pub over: u64,
    /// The same in a second.
    pub per_second: f64,
}
