//! Sockets that somebody else opened for us: the agent before this one, or the service manager.
//!
//! They are found by what they are, not by what somebody says they are: transport and address are asked of the kernel, and only
//! whose the file of a unix socket is, which it does not know, is told. A room
//! that wants to listen takes those of its address first and opens what is missing. Each is handed out once; nobody closes one
//! that a room may still want.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nerve::model::UnixPath;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketType, sockopt};

/// How bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// A listening TCP socket.
    Tcp,
    /// A UDP socket.
    Udp,
}

/// What a socket is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Bound to an IP address.
    Ip {
        /// Its transport.
        transport: Transport,
        /// Where it is bound.
        address: SocketAddr,
    },
    /// A unix stream socket that listens.
    Unix(UnixPath),
}

/// A descriptor that is not of use.
#[derive(Debug, thiserror::Error)]
#[error("it is no TCP or unix socket that listens and no UDP socket that is bound: {reason}")]
pub struct Unsuitable {
    reason: String,
}

/// Sockets that wait for the room that wants them. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Inherited(Arc<Mutex<Sockets>>);

#[derive(Debug, Default)]
struct Sockets {
    waiting: BTreeMap<Key, Vec<OwnedFd>>,
    lent: BTreeSet<Key>,
}

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
        match self {
            Self::Ip { transport, address } => write!(f, "{address}/{transport}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
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
        if address.address_family() == AddressFamily::UNIX && transport == Transport::Tcp {
            let path = path_of(address).ok_or_else(|| because("its name is no path that can be written"))?;
            return Ok(Self::Unix(path));
        }
        let address = SocketAddr::try_from(address).map_err(|_| because("it has no IP address"))?;
        if address.port() == 0 {
            return Err(because("it is not bound"));
        }
        Ok(Self::Ip { transport, address })
    }
}

fn path_of(address: SocketAddrAny) -> Option<UnixPath> {
    let address = SocketAddrUnix::try_from(address).ok()?;
    UnixPath::new(std::str::from_utf8(address.path_bytes()?).ok()?).ok()
}

impl Inherited {
    fn lock(&self) -> MutexGuard<'_, Sockets> {
        // Whole between any two calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a socket for whoever wants it.
    ///
    /// # Errors
    /// Nobody here could; it is closed.
    pub fn add(&self, socket: OwnedFd) -> Result<Key, Unsuitable> {
        let key = Key::of(&socket)?;
        self.lock().waiting.entry(key.clone()).or_default().push(socket);
        Ok(key)
    }

    /// Notes that a socket is the service manager's, which goes on with it after this process: its file stays.
    pub fn lend(&self, key: Key) {
        self.lock().lent.insert(key);
    }

    /// Is it the service manager's?
    #[must_use]
    pub fn is_lent(&self, key: &Key) -> bool {
        self.lock().lent.contains(key)
    }

    /// Every socket of this address, to be listened on from now on.
    #[must_use]
    pub fn take(&self, transport: Transport, address: SocketAddr) -> Vec<OwnedFd> {
        self.lock().waiting.remove(&Key::Ip { transport, address }).unwrap_or_default()
    }

    /// Every socket of this path, to be listened on from now on, and whether they are lent.
    #[must_use]
    pub fn take_unix(&self, path: &UnixPath) -> (Vec<OwnedFd>, bool) {
        let key = Key::Unix(path.clone());
        let mut sockets = self.lock();
        (sockets.waiting.remove(&key).unwrap_or_default(), sockets.lent.contains(&key))
    }

    /// What nobody has wanted so far.
    #[must_use]
    pub fn left(&self) -> Vec<Key> {
        self.lock().waiting.keys().cloned().collect()
    }

    /// Closes what nobody has wanted.
    pub fn close_rest(&self) {
        self.lock().waiting.clear();
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
        assert_eq!(inherited.left(), [Key::Ip { transport: Transport::Udp, address }]);
    }

    #[test]
    fn a_unix_socket_is_known_by_its_path_and_remembers_whose_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = UnixPath::new(directory.path().join("web.sock").to_str().unwrap()).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(path.as_path()).unwrap();
        let inherited = Inherited::default();
        let key = inherited.add(listener.try_clone().unwrap().into()).unwrap();
        assert_eq!((key.to_string(), inherited.is_lent(&key)), (format!("unix:{path}"), false));
        inherited.lend(key.clone());
        let (sockets, is_lent) = inherited.take_unix(&path);
        assert!(sockets.len() == 1 && is_lent && inherited.is_lent(&key));
        assert_eq!(inherited.take_unix(&path).0.len(), 0);
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
