//! Where a node's name server answers, and what it answers: for whoever is to ask it.

use std::net::{IpAddr, SocketAddr};

use nerve::model::Prefix;
use serde::{Deserialize, Serialize};

/// The name server of the node that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsInfo {
    /// A name that is always there, and the address that it has: this node's own.
    pub probe: (String, IpAddr),
    /// The domains that are answered from the catalog.
    pub domains: Vec<String>,
    /// The ranges of virtual addresses, which have reverse names.
    pub ranges: Vec<Prefix>,
    /// Where it listens, or is to.
    pub listeners: Vec<DnsListener>,
    /// Where names outside the domains go.
    pub others: DnsOthers,
}

/// An address of a name server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsListener {
    /// UDP and TCP.
    pub address: SocketAddr,
    /// Why nothing is answered there; none: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Where names outside the domains go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsOthers {
    /// Nowhere: they are refused.
    Refused,
    /// To servers that the configuration names.
    Configured,
    /// To those of `/etc/resolv.conf`.
    ResolvConf,
}
