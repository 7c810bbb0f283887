//! The ways to peers by links that encrypt: what an encrypted network's forwarding entries follow from.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use nerve::model::{Cipher, NodeName};

/// How packets to a peer are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// By what.
    pub cipher: Cipher,
    /// Since when this node has the key, in seconds since 1970.
    pub since: u64,
    /// The link to send by.
    pub(super) link: u32,
    /// The peer's address there.
    pub(super) to: Ipv6Addr,
}

/// The peers that packets can be sent to.
pub type Ways = BTreeMap<(NodeName, IpAddr), Way>;
