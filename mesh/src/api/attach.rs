//! What is attached to overlay networks on a node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use nerve::model::{InstanceId, Mac, NetworkName, Prefix, ServiceName};
use serde::{Deserialize, Serialize};

/// Attach a network namespace of this node to a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// By what it is known, unique on the node: letters, digits, '-', '_', '.' and '@'.
    pub id: String,
    /// To which network.
    pub network: NetworkName,
    /// The file of the namespace: `/run/netns/NAME`, `/proc/PID/ns/net`.
    pub namespace: PathBuf,
    /// What the interface is called in there.
    pub interface: String,
    /// Addresses that it is to have, one of a family at most; others are chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// For whom, where a container runtime asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<AttachmentOwner>,
    /// Labels: what it serves, and free data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What it is called: services that it is an instance of, unless a label says otherwise.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub aliases: BTreeSet<ServiceName>,
}

/// A container as its runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachmentOwner {
    /// The name of the runtime's network configuration.
    pub configuration: String,
    /// The runtime's id of the container.
    pub container: String,
    /// The interface that the runtime asked for; what it is called may be something else.
    pub interface: String,
}

/// Something that is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// By what it is known.
    pub id: String,
    /// To which network.
    pub network: NetworkName,
    /// One of each family of the network.
    pub addresses: Vec<IpAddr>,
    /// Of the interface.
    pub mac: Mac,
    /// The file of the namespace.
    pub namespace: PathBuf,
    /// What the interface is called in there.
    pub interface: String,
    /// What its other end is called, on the host.
    pub link: String,
    /// For whom, where a container runtime asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<AttachmentOwner>,
    /// Labels: as they were given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What it is called: services that it is an instance of, unless a label says otherwise.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub aliases: BTreeSet<ServiceName>,
    /// What follows from these, and is checked and registered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<AttachmentInstance>,
}

/// An instance that something attached is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentInstance {
    /// Of which service.
    pub service: ServiceName,
    /// Its id.
    pub id: InstanceId,
    /// Where it listens, with its main port.
    pub address: String,
}

/// Something that was just attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewAttachment {
    /// What it is.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Where its addresses are from.
    #[serde(flatten)]
    pub place: Attachable,
    /// The routes that it was given.
    pub routes: Vec<AttachmentRoute>,
}

/// What a node has to give of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachable {
    /// Its subnets, one a family.
    pub subnets: Vec<Prefix>,
    /// The gateway in each of them.
    pub gateways: Vec<IpAddr>,
    /// The largest packet of a container, in bytes.
    pub mtu: u32,
}

/// A route of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRoute {
    /// Where to.
    pub to: Prefix,
    /// By which gateway.
    pub via: IpAddr,
}

/// How something that is attached compares with what the kernel has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentCheck {
    /// What it should be.
    pub attachment: Attachment,
    /// What is not so, a sentence each.
    pub problems: Vec<String>,
}

/// All of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachments {
    /// In the order of their names.
    pub attachments: Vec<Attachment>,
}
