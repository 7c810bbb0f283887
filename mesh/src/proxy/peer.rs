//! Who a connection comes from.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// At this address.
    Ip(SocketAddr),
    /// On this host, by a unix socket: it has no address.
    Unix,
}

impl Peer {
    /// Its address, if it has one.
    pub(super) fn ip(self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(address),
            Self::Unix => None,
        }
    }

    /// What limits, affinity and hash policies know it by. All clients of unix sockets are `local`.
    pub(super) fn key(self, local: IpAddr) -> SocketAddr {
        self.ip().unwrap_or(SocketAddr::new(local, 0))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.pad("unix"),
        }
    }
}
