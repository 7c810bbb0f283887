//! How the endpoints of a service learn who the client is.

use super::key::{Key, key};
use super::value::word_list;

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

word_list! {
    /// What an endpoint sees as the client's address.
    ClientAddress {
        /// The balancer's own: nothing is needed on either side.
        #[default]
        Plain = "plain",
        /// The balancer's own, and in front of the client's bytes a PROXY protocol header of version 1.
        ProxyV1 = "proxy_v1",
        /// The same with version 2.
        ProxyV2 = "proxy_v2",
        /// The client's: the balancer connects from it (`IP_TRANSPARENT`). For endpoints on the balancer's own node; others see the
        /// balancer's.
        Transparent = "transparent",
    }
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

/// What an operator may set of it.
pub(super) const KEYS: &[Key] = &[key!(
    client_address: ClientAddress = "plain",
    "how endpoints learn the client's address: not, by a PROXY protocol header, or by its being the source"
)];
