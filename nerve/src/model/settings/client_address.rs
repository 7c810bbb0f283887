//! How the endpoints of a service learn who the client is.

use serde::{Deserialize, Serialize};

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// What an endpoint sees as the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAddress {
    /// The balancer's own: nothing is needed on either side.
    #[default]
    Plain,
    /// The balancer's own, and in front of the client's bytes a PROXY protocol header of version 1.
    ProxyV1,
    /// The same with version 2.
    ProxyV2,
    /// The client's: the balancer connects from it (`IP_TRANSPARENT`). For endpoints on the balancer's own node.
    Transparent,
}

impl ClientAddress {
    /// The PROXY protocol version that it asks for.
    #[must_use]
    pub fn proxy_version(self) -> Option<ProxyVersion> {
        match self {
            Self::ProxyV1 => Some(ProxyVersion::V1),
            Self::ProxyV2 => Some(ProxyVersion::V2),
            Self::Plain | Self::Transparent => None,
        }
    }
}
