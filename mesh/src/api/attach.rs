//! What is attached to overlay networks on a node.

use std::net::IpAddr;
use std::path::PathBuf;

use nerve::model::{Mac, NetworkName};
use serde::{Deserialize, Serialize};

/// Attach a network namespace of this node to a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// By what it is known, unique on the node: letters, digits, '-', '_' and '.'.
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
}

/// All of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachments {
    /// In the order of their names.
    pub attachments: Vec<Attachment>,
}
