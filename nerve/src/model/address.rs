//! Addresses: one that can be connected to or listened on, and all that an instance listens on.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use super::UnixPath;

/// Where something is connected to, or listened on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A unix stream socket of this host.
    Unix(UnixPath),
}

impl Address {
    /// The IP address and port, if it is that.
    #[must_use]
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// Where an instance listens: a port, a unix socket, or both. A socket address with port 0 is one without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListensOn {
    /// Its IP address, for all its ports.
    pub address: IpAddr,
    /// Its main port.
    pub port: Option<NonZeroU16>,
    /// Its unix socket.
    pub socket: Option<UnixPath>,
}

impl ListensOn {
    /// The address of its main port.
    #[must_use]
    pub fn main_port(&self) -> Option<SocketAddr> {
        self.port.map(|port| SocketAddr::new(self.address, port.get()))
    }

    /// The same as [`ListensOn::main_port`], with port 0 for none.
    #[must_use]
    pub fn or_port_zero(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port.map_or(0, NonZeroU16::get))
    }

    /// How whoever is on the same node connects to it: by its unix socket if it has one. `None`: it listens on neither.
    #[must_use]
    pub fn nearest(&self) -> Option<Address> {
        let socket = self.socket.clone().map(Address::Unix);
        socket.or_else(|| self.main_port().map(Address::Ip))
    }
}

impl From<SocketAddr> for ListensOn {
    fn from(address: SocketAddr) -> Self {
        Self { address: address.ip(), port: NonZeroU16::new(address.port()), socket: None }
    }
}

impl fmt::Display for ListensOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.main_port(), &self.socket) {
            (Some(port), Some(socket)) => write!(f, "{port} unix:{socket}"),
            (Some(port), None) => port.fmt(f),
            (None, Some(socket)) => write!(f, "unix:{socket}"),
            (None, None) => self.address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_nearer_than_the_port() {
        let socket = UnixPath::new("/run/app.sock").unwrap();
        let mut on = ListensOn::from(SocketAddr::from(([192, 0, 2, 1], 80)));
        assert_eq!(
            (on.nearest(), on.to_string()),
            (Some(on.main_port().unwrap().into()), "192.0.2.1:80".into())
        );
        on.socket = Some(socket.clone());
        let unix = || Some(Address::Unix(socket.clone()));
        assert_eq!((on.nearest(), on.to_string()), (unix(), "192.0.2.1:80 unix:/run/app.sock".into()));
        on.port = None;
        assert_eq!(
            (on.nearest(), on.main_port(), on.to_string()),
            (unix(), None, "unix:/run/app.sock".into())
        );
    }
}
