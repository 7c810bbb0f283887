//! The checks of this node's instances, and what applications report of themselves.

use nerve::model::{Health, InstanceId, ServiceName};
use serde::{Deserialize, Serialize};

/// One check of an instance of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckInfo {
    /// `tcp`, `http`, …
    pub kind: String,
    /// What it does: `http GET /healthz`.
    pub description: String,
    /// By what the application reports to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its verdict.
    pub health: Health,
    /// Its last probe; none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<ProbeInfo>,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeInfo {
    /// `passing`, `warning` or `critical`.
    pub result: String,
    /// What was seen, on one line.
    pub text: String,
    /// What a program printed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// How long it took, in microseconds.
    pub latency_us: u64,
    /// When it ended, in milliseconds since 1970.
    pub at_unix_ms: u64,
}

/// What an application reports of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportRequest {
    /// `passing`, `warning` or `critical`.
    pub status: String,
    /// What it says.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
}

/// The same in Consul's shape, `PUT /v1/agent/check/update/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulUpdate {
    /// `passing`, `warning` or `critical`.
    pub status: String,
    /// What it says.
    #[serde(default)]
    pub output: String,
}

/// It was taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// The service.
    pub service: ServiceName,
    /// Its instance that the check is of.
    pub instance: InstanceId,
}
