//! What clients of Consul's agent send and are answered (developer.hashicorp.com/consul/api-docs/agent), as far as it has a meaning
//! here. Keys that have none are not looked at. Consul takes keys in whatever case; what is received is in lower case
//! and without `_` by the time that it is read ([`folded`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A registration with the keys of its own structures in lower case and without `_`; those of data and headers stay.
#[must_use]
pub fn folded(value: Value) -> Value {
    const INSIDE: [&str; 3] = ["check", "checks", "weights"];
    match value {
        Value::Object(entries) => {
            let fold = |(key, value): (String, Value)| {
                let key = key.to_lowercase().replace('_', "");
                let value = if INSIDE.contains(&key.as_str()) { folded(value) } else { value };
                (key, value)
            };
            Value::Object(entries.into_iter().map(fold).collect::<Map<_, _>>())
        }
        Value::Array(elements) => elements.into_iter().map(folded).collect(),
        other => other,
    }
}

/// `PUT /v1/agent/service/register`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ConsulService {
    /// What it is a copy of.
    pub name: String,
    /// Unique on the node; the name unless given.
    pub id: Option<String>,
    /// An IP address; the node's unless given.
    pub address: Option<String>,
    /// Its port.
    pub port: Option<u32>,
    /// Its marks.
    pub tags: Option<Vec<String>>,
    /// Its data.
    pub meta: Option<BTreeMap<String, String>>,
    /// Its share.
    pub weights: Option<ConsulWeights>,
    /// What kind of proxy it is; a service of its own has none.
    pub kind: Option<String>,
    /// Its one check.
    pub check: Option<ConsulCheck>,
    /// Its checks.
    pub checks: Option<Vec<ConsulCheck>>,
}

/// How much of the traffic it gets.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all(serialize = "PascalCase"))]
pub struct ConsulWeights {
    /// While it passes.
    pub passing: u16,
    /// While it warns; here it is the same.
    #[serde(default)]
    pub warning: u16,
}

/// A check: by itself at `PUT /v1/agent/check/register`, or of a service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ConsulCheck {
    /// By which it is reported to.
    #[serde(rename = "checkid")]
    pub check_id: Option<String>,
    /// The same, where it is registered by itself.
    pub id: Option<String>,
    /// For people; the id of one that is registered by itself, unless there is an `ID`.
    pub name: Option<String>,
    /// The service that it is of.
    #[serde(rename = "serviceid")]
    pub service_id: Option<String>,
    /// From probe to probe.
    pub interval: Option<String>,
    /// How long a probe may take.
    pub timeout: Option<String>,
    /// How long a report holds.
    pub ttl: Option<String>,
    /// A URL.
    pub http: Option<String>,
    /// Its method.
    pub method: Option<String>,
    /// Its headers.
    pub header: Option<BTreeMap<String, Vec<String>>>,
    /// What it sends.
    pub body: Option<String>,
    /// Takes any certificate.
    #[serde(rename = "tlsskipverify")]
    pub tls_skip_verify: bool,
    /// The name that the certificate is to have.
    #[serde(rename = "tlsservername")]
    pub tls_server_name: Option<String>,
    /// `host:port`.
    pub tcp: Option<String>,
    /// `host:port`.
    pub udp: Option<String>,
    /// `host:port`, and a service behind a slash.
    pub grpc: Option<String>,
    /// By TLS.
    #[serde(rename = "grpcusetls")]
    pub grpc_use_tls: bool,
    /// A program.
    #[serde(alias = "scriptargs")]
    pub args: Option<Vec<String>>,
    /// A program, as older clients have it.
    pub script: Option<String>,
    /// The container that the program runs in.
    #[serde(rename = "dockercontainerid")]
    pub docker_container_id: Option<String>,
    /// Successes in a row that make it passing.
    #[serde(rename = "successbeforepassing")]
    pub success_before_passing: Option<u32>,
    /// Failures in a row that make it critical.
    #[serde(rename = "failuresbeforecritical")]
    pub failures_before_critical: Option<u32>,
    /// The service is deregistered once it has been critical for so long.
    #[serde(rename = "deregistercriticalserviceafter")]
    pub deregister_critical_service_after: Option<String>,
}

/// An instance of this node, as `GET /v1/agent/services` and `/v1/agent/service/ID` show it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulAgentService {
    /// Always empty: a service of its own.
    pub kind: &'static str,
    /// Its id on this node.
    #[serde(rename = "ID")]
    pub id: String,
    /// The service.
    pub service: String,
    /// Its marks.
    pub tags: Vec<String>,
    /// Its data.
    pub meta: BTreeMap<String, String>,
    /// Its port; 0 for one on a socket.
    pub port: u16,
    /// Its address.
    pub address: String,
    /// Its share.
    pub weights: ConsulWeights,
    /// Never.
    pub enable_tag_override: bool,
    /// Consul's default.
    pub datacenter: &'static str,
}

/// A check of this node, as `GET /v1/agent/checks` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulAgentCheck {
    /// This node.
    pub node: String,
    /// By which it is known.
    #[serde(rename = "CheckID")]
    pub check_id: String,
    /// For people.
    pub name: String,
    /// `passing`, `warning` or `critical`.
    pub status: &'static str,
    /// Why it is in force, where somebody has said so.
    pub notes: String,
    /// What the last probe saw.
    pub output: String,
    /// The service's id on this node; empty for one of the node.
    #[serde(rename = "ServiceID")]
    pub service_id: String,
    /// The service.
    pub service_name: String,
    /// The service's marks.
    pub service_tags: Vec<String>,
    /// `http`, `ttl`, …
    #[serde(rename = "Type")]
    pub kind: String,
}

/// A node, as `GET /v1/agent/members` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulMember {
    /// Its name.
    pub name: String,
    /// Its address.
    pub addr: String,
    /// Consul's gossip has a port; nothing listens there.
    pub port: u16,
    /// What Consul's servers say of themselves.
    pub tags: BTreeMap<&'static str, String>,
    /// 1: alive.
    pub status: u8,
}
