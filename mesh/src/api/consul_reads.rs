//! What clients of Consul's catalog and health API are answered (developer.hashicorp.com/consul/api-docs/catalog and `…/health`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::ConsulWeights;

/// A node, as `GET /v1/catalog/nodes` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulNode {
    /// Empty, as that of a node without an agent of Consul's.
    #[serde(rename = "ID")]
    pub id: &'static str,
    /// Its name.
    pub node: String,
    /// Its address.
    pub address: String,
    /// Consul's default.
    pub datacenter: &'static str,
    /// Its address by what it is for.
    pub tagged_addresses: BTreeMap<&'static str, String>,
    /// Its `zone`, and the `version` of its agent.
    pub meta: BTreeMap<&'static str, String>,
    /// When this agent began to count.
    pub create_index: u64,
    /// When it changed last.
    pub modify_index: u64,
}

/// Where an instance is reached.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulAddress {
    /// The address.
    pub address: String,
    /// The port.
    pub port: u16,
}

/// An instance, as it stands in what is asked of a node or of health.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulInstance {
    /// Always empty: a service of its own.
    pub kind: &'static str,
    /// Its id on its node.
    #[serde(rename = "ID")]
    pub id: String,
    /// The service.
    pub service: String,
    /// Its marks.
    pub tags: Vec<String>,
    /// Its address.
    pub address: String,
    /// Its address and port by what they are for.
    pub tagged_addresses: BTreeMap<&'static str, ConsulAddress>,
    /// Its data.
    pub meta: BTreeMap<String, String>,
    /// Its port; 0 for one on a socket.
    pub port: u16,
    /// The unix socket of its node that it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// Its share.
    pub weights: ConsulWeights,
    /// Never.
    pub enable_tag_override: bool,
    /// When this agent began to count.
    pub create_index: u64,
    /// When its service changed last.
    pub modify_index: u64,
}

/// An instance and its node in one, as `GET /v1/catalog/service/NAME` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulCatalogService {
    /// The node's: empty.
    #[serde(rename = "ID")]
    pub id: &'static str,
    /// The node.
    pub node: String,
    /// The node's address.
    pub address: String,
    /// Consul's default.
    pub datacenter: &'static str,
    /// The node's.
    pub tagged_addresses: BTreeMap<&'static str, String>,
    /// The node's.
    pub node_meta: BTreeMap<&'static str, String>,
    /// Always empty.
    pub service_kind: &'static str,
    /// Its id on its node.
    #[serde(rename = "ServiceID")]
    pub service_id: String,
    /// The service.
    pub service_name: String,
    /// Its marks.
    pub service_tags: Vec<String>,
    /// Its address.
    pub service_address: String,
    /// Its address and port by what they are for.
    pub service_tagged_addresses: BTreeMap<&'static str, ConsulAddress>,
    /// Its data.
    pub service_meta: BTreeMap<String, String>,
    /// Its port; 0 for one on a socket.
    pub service_port: u16,
    /// Its share.
    pub service_weights: ConsulWeights,
    /// Never.
    pub service_enable_tag_override: bool,
    /// When this agent began to count.
    pub create_index: u64,
    /// When its service changed last.
    pub modify_index: u64,
}

/// A check of an instance or of a node, as every agent knows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulHealthCheck {
    /// The node.
    pub node: String,
    /// By which it is known on its node.
    #[serde(rename = "CheckID")]
    pub check_id: String,
    /// For people.
    pub name: String,
    /// `passing`, `warning` or `critical`.
    pub status: &'static str,
    /// Who says so, where that is not the instance's node.
    pub notes: String,
    /// Why it is not passing.
    pub output: String,
    /// The instance's id on its node; empty for one of the node.
    #[serde(rename = "ServiceID")]
    pub service_id: String,
    /// The service.
    pub service_name: String,
    /// The instance's marks.
    pub service_tags: Vec<String>,
    /// `maintenance` for a drain.
    #[serde(rename = "Type")]
    pub kind: &'static str,
    /// Known to the instance's node only.
    pub definition: BTreeMap<String, String>,
    /// When this agent began to count.
    pub create_index: u64,
    /// When what it is of changed last.
    pub modify_index: u64,
}

/// An instance with its node and its checks, as `GET /v1/health/service/NAME` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulHealthEntry {
    /// Where it runs.
    pub node: ConsulNode,
    /// The instance.
    pub service: ConsulInstance,
    /// Its checks, and those of the node.
    pub checks: Vec<ConsulHealthCheck>,
}

/// What runs on a node, as `GET /v1/catalog/node/NAME` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulNodeServices {
    /// The node.
    pub node: ConsulNode,
    /// By id; one whose id another service's instance has too stands by `<service>:<id>`.
    pub services: BTreeMap<String, ConsulInstance>,
}

/// The same, as `GET /v1/catalog/node-services/NAME` shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConsulNodeServiceList {
    /// The node, if there is one.
    pub node: Option<ConsulNode>,
    /// What runs there.
    pub services: Vec<ConsulInstance>,
}
