//! Overlay networks: what requests about them are told and answer.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nerve::model::{Cipher, Mac, Mtu, NetworkName, NodeKey, NodeName, Pool, Prefix, Slot, Vni};
use serde::{Deserialize, Serialize};

use super::{Attachment, Stale};

/// Create a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkRequest {
    /// The ranges of its addresses: one, or one of each family.
    pub pools: Vec<Pool>,
    /// Its number; one that is free unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,
    /// The largest packet of its containers; made of the underlay's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Networks that it is to reach.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub reaches: BTreeSet<NetworkName>,
    /// Without a tunnel between nodes on one link.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
    /// Encrypted between nodes, which cannot be without a tunnel.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
}

/// Every overlay network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networks {
    /// Set when the list may be out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Stale>,
    /// In the order of their names.
    pub networks: Vec<NetworkSummary>,
}

/// What holds for a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSummary {
    /// Its name.
    pub name: NetworkName,
    /// Its number.
    pub vni: Vni,
    /// The ranges of its addresses.
    pub pools: Vec<Pool>,
    /// The largest packet of its containers, where it was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Networks that it names as reached.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub reaches: BTreeSet<NetworkName>,
    /// Networks that name it as reached, which is as good.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub reached_by: BTreeSet<NetworkName>,
    /// Without a tunnel between nodes on one link.
    #[serde(default)]
    pub direct: bool,
    /// Encrypted between nodes.
    #[serde(default)]
    pub encrypted: bool,
    /// Nodes that take part in it.
    pub nodes: usize,
    /// How many can.
    pub slots: u32,
}

/// One network, and who takes part in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// Set when it may be out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Stale>,
    /// What holds for it.
    pub network: NetworkSummary,
    /// In the order of their numbers.
    pub subnets: Vec<SubnetInfo>,
    /// What is attached to it on the node that answers, in the order of their names.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
}

/// A subnet that a node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetInfo {
    /// Its number.
    pub slot: Slot,
    /// Its addresses, of each range of the network; none where the network has no subnet of this number.
    pub prefixes: Vec<Prefix>,
    /// Who holds it.
    pub node: NodeName,
    /// The address of that node in the network beneath.
    pub address: IpAddr,
    /// The address of its VXLAN device.
    pub mac: Mac,
    /// Containers of it are attached.
    #[serde(default)]
    pub in_use: bool,
    /// Its containers can be shown the addresses of clients that other nodes balance.
    #[serde(default)]
    pub returns: bool,
    /// The store no longer confirms it.
    #[serde(default)]
    pub unconfirmed: bool,
    /// Of an encrypted network: the public keys that the node receives with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<NodeKey>,
    /// What the node that answers encrypts packets to this one with; none: it sends nothing to it, or is it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

/// What packets to a node are encrypted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// By what.
    pub cipher: Cipher,
    /// When the key of the node that answers was made, in seconds since 1970.
    pub since: u64,
}
