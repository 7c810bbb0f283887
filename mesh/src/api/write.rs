//! What changing requests are told, and what they answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use nerve::model::{InstanceId, PortName, PublishedPort, ServiceName, Tag, UnixPath, VirtualIp, Weight};
use serde::{Deserialize, Serialize};

/// Publish a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// Which ports, on which nodes and addresses, and which port of the instances they lead to.
    pub port: PublishedPort,
}

/// Change settings of a service, all of them or none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsRequest {
    /// Values by name, as they would be typed: `{"policy": "maglev"}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Names of settings that are to have their default again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unset: BTreeSet<String>,
}

/// Switch a service's virtual address on or off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VipRequest {
    /// Is it to have one?
    pub vip: VirtualIp,
}

/// Check an instance on this node and register it: the keys that `[[service]]` has in the configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// The service that it is a copy of.
    pub name: ServiceName,
    /// Unique in the service; made of service, node and port (or the socket's file) unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<InstanceId>,
    /// Where it listens; the node's address unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its main port; one without it is to have a socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
    /// The unix socket that it listens on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<UnixPath>,
    /// Further ports by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<PortName, NonZeroU16>,
    /// Its marks.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<Tag>,
    /// Its data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its share of the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// It gets traffic only while none of the others can be had.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
    /// Its checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub check: Vec<CheckRequest>,
    /// It is deregistered once it has not been well for so long, such as `1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deregister_critical_after: Option<String>,
}

/// One check, with the keys and forms of the configuration file: `{"http": "/healthz", "interval": "1s"}`.
pub type CheckRequest = BTreeMap<String, serde_json::Value>;

/// Give something no new traffic, or give it traffic again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// The instance; the whole node when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Its service, where several instances have that id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// `true`: drain; `false`: take back a drain.
    pub draining: bool,
}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// What was done, as a sentence.
    pub message: String,
    /// Something is different from before.
    pub changed: bool,
    /// What the user should know although it worked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was asked, of what, and why it failed.
    pub error: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
