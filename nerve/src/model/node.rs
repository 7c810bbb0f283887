//! A node: a machine that runs an agent, as it stands under `nodes/<node>`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{NodeName, Region, Zone};

/// A machine that runs an agent. Leased: the record dies with the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Unique in the fleet.
    pub name: NodeName,
    /// The address that other nodes reach it by.
    pub address: IpAddr,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// Where in the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// The port where it certifies other nodes, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer_port: Option<u16>,
    /// The port where other nodes' tunnels are taken, if they are: mutual TLS to its instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_port: Option<u16>,
    /// Version of the agent.
    pub version: String,
    /// Its instances get no new traffic.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}
