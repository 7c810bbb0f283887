//! How nodes reach each other's instances.

use std::net::IpAddr;

use nerve::model::{MtlsMode, NodeName};
use serde::{Deserialize, Serialize};

/// How the node that answers reaches others, and is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MtlsInfo {
    /// What the mesh asks of every node.
    pub mesh: MtlsMode,
    /// What holds on this node, which may ask for more.
    pub mode: MtlsMode,
    /// Where it takes other nodes' tunnels; none: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_port: Option<u16>,
    /// The nodes of the mesh, this one too.
    pub nodes: Vec<MtlsNode>,
    /// What is wrong here.
    pub problems: Vec<String>,
}

/// A node, as others know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MtlsNode {
    /// Its name.
    pub node: NodeName,
    /// Where it is reached.
    pub address: IpAddr,
    /// Where it takes tunnels; none: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_port: Option<u16>,
}

/// Say how nodes reach each other's instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MtlsRequest {
    /// On every node, at least.
    pub mode: MtlsMode,
    /// Also where that cuts nodes off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}
