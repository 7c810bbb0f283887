//! Sockets that somebody else opened for us: the agent before this one, or the service manager.
//!
//! They are found by what they are, not by what somebody says they are: transport and address are asked of the kernel. A room
//! that wants to listen takes those of its address first and opens what is missing. Each is handed out once; nobody closes one
//! that a room may still want.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{SocketType, sockopt};

/// How bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// A listening TCP socket.
    Tcp,
    /// A UDP socket.
    Udp,
}

/// What a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its transport.
    pub transport: Transport,
    /// Where it is bound.
    pub address: SocketAddr,
}

/// A descriptor that is not of use.
#[derive(Debug, thiserror::Error)]
#[error("it is no TCP socket that listens and no UDP socket that is bound: {reason}")]
pub struct Unsuitable {
    reason: String,
}

/// Sockets that wait for the room that wants them. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Inherited(Arc<Mutex<BTreeMap<Key, Vec<OwnedFd>>>>);

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.transport)
    }
}

impl Key {
    /// What a descriptor is, as the kernel says.
    ///
    /// # Errors
    /// It is something else than what we listen with.
    pub fn of(socket: impl AsFd) -> Result<Self, Unsuitable> {
        let socket = socket.as_fd();
        let unsuitable = |error: io::Error| Unsuitable { reason: error.to_string() };
        let because = |reason: &str| Unsuitable { reason: reason.to_owned() };
        let kind = sockopt::socket_type(socket).map_err(|error| unsuitable(error.into()))?;
        let transport = match kind {
            SocketType::STREAM => Transport::Tcp,
            SocketType::DGRAM => Transport::Udp,
            _ => return Err(because("it is a socket of another kind")),
        };
        let listens = sockopt::socket_acceptconn(socket).map_err(|error| unsuitable(error.into()))?;
        if transport == Transport::Tcp && !listens {
            return Err(because("it does not listen"));
        }
        let address = rustix::net::getsockname(socket).map_err(|error| unsuitable(error.into()))?;
        let address = SocketAddr::try_from(address).map_err(|_| because("it has no IP address"))?;
        if address.port() == 0 {
            return Err(because("it is not bound"));
        }
        Ok(Self { transport, address })
    }
}

impl Inherited {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Vec<OwnedFd>>> {
        // Whole between any two calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a socket for whoever wants it.
    ///
    /// # Errors
    /// Nobody here could; it is closed.
    pub fn add(&self, socket: OwnedFd) -> Result<Key, Unsuitable> {
        let key = Key::of(&socket)?;
        self.lock().entry(key).or_default().push(socket);
        Ok(key)
    }

    /// Every socket of this address, to be listened on from now on.
    #[must_use]
    pub fn take(&self, transport: Transport, address: SocketAddr) -> Vec<OwnedFd> {
        self.lock().remove(&Key { transport, address }).unwrap_or_default()
    }

    /// What nobody has wanted so far.
    #[must_use]
    pub fn left(&self) -> Vec<Key> {
        self.lock().keys().copied().collect()
    }

    /// Closes what nobody has wanted.
    pub fn close_rest(&self) {
        self.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn sockets_are_known_by_what_they_are_and_handed_out_once() {
        let inherited = Inherited::default();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
        let address = tcp.local_addr().unwrap();
        inherited.add(tcp.try_clone().unwrap().into()).unwrap();
        inherited.add(tcp.into()).unwrap();
        assert_eq!(inherited.add(udp.into()).unwrap().to_string(), format!("{address}/udp"));
        assert_eq!(inherited.left().len(), 2);
        assert_eq!(inherited.take(Transport::Tcp, address).len(), 2);
        assert_eq!(inherited.take(Transport::Tcp, address).len(), 0);
        assert_eq!(inherited.left(), [Key { transport: Transport::Udp, address }]);
    }

    #[test]
    fn what_nobody_can_listen_on_is_refused() {
        let inherited = Inherited::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let file = tempfile::tempfile().unwrap();
        let (pair, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        for (what, fd) in
            [("connection", connection.into()), ("file", file.into()), ("pair", OwnedFd::from(pair))]
        {
            assert!(inherited.add(fd).is_err(), "{what}");
        }
        assert!(inherited.left().is_empty());
    }
}
