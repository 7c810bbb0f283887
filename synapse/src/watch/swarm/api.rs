//! What the API of a manager says: the parts of services, nodes and tasks that matter here. Each of a list is read by itself, so that one that
//! cannot be understood costs itself alone.

use std::collections::BTreeMap;

use nerve::model::Protocol;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::watch::place::Refused;

/// A service.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Service {
    #[serde(rename = "ID")]
    pub(super) id: String,
    #[serde(default)]
    pub(super) created_at: String,
    pub(super) spec: ServiceSpec,
    #[serde(default)]
    endpoint: Endpoint,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ServiceSpec {
    pub(super) name: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    endpoint_spec: Option<Endpoint>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    #[serde(default)]
    ports: Option<Vec<Port>>,
}

/// A port of a service, or one that a task has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Port {
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    protocol: String,
    #[serde(default)]
    pub(super) target_port: u16,
    /// 0: Docker chooses one.
    #[serde(default)]
    pub(super) published_port: u16,
    #[serde(default)]
    publish_mode: String,
}

impl Port {
    /// `None`: it is of SCTP.
    pub(super) fn protocol(&self) -> Option<Protocol> {
        // Docker's own default.
        if self.protocol.is_empty() { Some(Protocol::Tcp) } else { self.protocol.parse().ok() }
    }

    /// Is it opened where a task is, and leads to that one? Otherwise it is of Swarm's own mesh.
    pub(super) fn is_of_host(&self) -> bool {
        self.publish_mode == "host"
    }
}

impl Service {
    /// What it publishes: as the swarm has allocated it, or as it was asked for.
    pub(super) fn ports(&self) -> &[Port] {
        let asked = || self.spec.endpoint_spec.as_ref().and_then(|asked| asked.ports.as_deref());
        self.endpoint.ports.as_deref().or_else(asked).unwrap_or_default()
    }

    pub(super) fn labels(&self) -> impl Iterator<Item = (&String, &String)> {
        self.spec.labels.iter().flatten()
    }

    /// Does it have all of these labels?
    pub(super) fn has_labels(&self, wanted: &BTreeMap<String, String>) -> bool {
        let has = |key: &String| self.spec.labels.as_ref().and_then(|labels| labels.get(key));
        wanted.iter().all(|(key, value)| has(key) == Some(value))
    }
}

/// A node.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Node {
    #[serde(rename = "ID")]
    pub(super) id: String,
    #[serde(default)]
    pub(super) spec: NodeSpec,
    #[serde(default)]
    pub(super) description: Description,
    #[serde(default)]
    pub(super) status: NodeStatus,
    #[serde(default)]
    pub(super) manager_status: Option<ManagerStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NodeSpec {
    #[serde(default)]
    pub(super) labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) availability: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Description {
    #[serde(default)]
    pub(super) hostname: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NodeStatus {
    #[serde(default)]
    pub(super) state: String,
    #[serde(default)]
    pub(super) addr: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ManagerStatus {
    /// `address:port`.
    #[serde(default)]
    pub(super) addr: String,
}

/// A task: a copy of a service, on a node or on its way there.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Task {
    #[serde(rename = "ID")]
    pub(super) id: String,
    #[serde(rename = "ServiceID", default)]
    pub(super) service: String,
    /// Empty: it waits for a node.
    #[serde(rename = "NodeID", default)]
    pub(super) node: String,
    /// Its number among the copies; there is none where each node has one.
    #[serde(default)]
    pub(super) slot: u64,
    #[serde(default)]
    pub(super) status: TaskStatus,
    #[serde(default)]
    networks_attachments: Option<Vec<Attachment>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TaskStatus {
    #[serde(default)]
    pub(super) state: String,
    #[serde(default)]
    port_status: Option<Endpoint>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attachment {
    #[serde(default)]
    network: Network,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Network {
    #[serde(default)]
    spec: NetworkSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSpec {
    #[serde(default)]
    name: String,
}

impl Task {
    pub(super) fn runs(&self) -> bool {
        self.status.state == "running"
    }

    /// Has it a node, and is on its way to run there?
    pub(super) fn is_coming(&self) -> bool {
        let coming = ["assigned", "accepted", "preparing", "ready", "starting"];
        !self.node.is_empty() && coming.contains(&self.status.state.as_str())
    }

    /// The ports of its node that lead to it, as its node says.
    pub(super) fn ports(&self) -> &[Port] {
        self.status.port_status.as_ref().and_then(|status| status.ports.as_deref()).unwrap_or_default()
    }

    /// Does it listen on its node's own addresses?
    pub(super) fn is_on_host(&self) -> bool {
        self.networks_attachments.iter().flatten().any(|attached| attached.network.spec.name == "host")
    }
}

/// Reads each of a list by itself, and at most so many.
pub(super) fn each<T: DeserializeOwned>(
    what: &str,
    mut listed: Vec<Value>,
    most: usize,
    refused: &mut Vec<Refused>,
) -> Vec<T> {
    if listed.len() > most {
        refused.push((
            format!("{} {what}s", listed.len() - most),
            format!("there are more than the {most} that are looked at"),
        ));
        listed.truncate(most);
    }
    let read = listed.into_iter().filter_map(|one| {
        let id = one.get("ID").and_then(Value::as_str).unwrap_or("without an id");
        let id: String = id.chars().filter(|c| !c.is_control()).take(64).collect();
        let read = serde_json::from_value(one);
        read.inspect_err(|error| {
            refused.push((format!("{what} {id}"), format!("it cannot be read: {error}")))
        })
        .ok()
    });
    read.collect()
}
