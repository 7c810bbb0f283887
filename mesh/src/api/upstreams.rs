//! How the servers do that names outside the domain are asked of.

use serde::{Deserialize, Serialize};

/// The upstreams of the node that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamList {
    /// Those for all names in the order of preference, then those of routes.
    pub upstreams: Vec<UpstreamInfo>,
}

/// One upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamInfo {
    /// As it is written in the configuration.
    pub upstream: String,
    /// The domain of the route that it is asked for; none: all names that no route covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// How long it takes to answer, smoothed, in microseconds; none: not measured lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_us: Option<u64>,
    /// Questions that it answered, of all groups that it is in.
    pub answered: u64,
    /// Questions that it answered with a failure of its own.
    pub failed: u64,
    /// Questions that it did not answer.
    pub unanswered: u64,
    /// How many of these came last, without an answer since.
    pub failures_in_a_row: u32,
    /// How long it is passed over now, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed_over_for_ms: Option<u64>,
    /// Why it did not answer last; none once it answers again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Are the letters of questions mixed, which it gives back as they were?
    pub keeps_case: bool,
}
