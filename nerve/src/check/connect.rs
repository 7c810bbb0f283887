//! Where a check connects to, and connecting there.
//!
//! To the instance, unless a definition names another address (labels may not): a process beside it that answers for it. A host
//! name is not looked up by any check.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tokio::net::{TcpStream, UnixStream};

use super::{Liberty, host};
use crate::document::{FromValue, Mismatch, Reported, Section, Value};
use crate::http::{Duplex, TlsError};
use crate::model::{Address, ListensOn, UnixPath};

/// A unix socket whose backlog is full tells nobody when there is room (connect(2), `EAGAIN`): it is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What a check says of where it connects to: nothing, and then it is as the balancer of this node does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The key of its kind, which the port is the value of.
    pub(super) kind: &'static str,
    /// Another port than the instance's main one.
    pub(super) port: Option<NonZeroU16>,
    /// Another unix socket than the instance's.
    pub(super) unix: Option<UnixPath>,
    /// Another address than the instance's.
    pub(super) address: Option<IpAddr>,
}

/// The value of a kind's key: a port, or none.
pub(super) struct Port(pub(super) Option<NonZeroU16>);

/// A connection of either kind.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Target {
    /// Where the instance listens.
    pub(super) fn nearest(kind: &'static str) -> Self {
        Self { kind, port: None, unix: None, address: None }
    }

    /// Reads `<kind> = true` or a port, `unix` and `address`.
    pub(super) fn read(section: &mut Section<'_>, kind: &'static str) -> Result<Self, Reported> {
        let Port(port) = section.required::<Port>(kind)?;
        Self::with_port(section, kind, port, kind)
    }

    /// Reads `unix` and `address` beside a port that stands under another key, `port_key`.
    pub(super) fn with_port(
        section: &mut Section<'_>,
        kind: &'static str,
        port: Option<NonZeroU16>,
        port_key: &str,
    ) -> Result<Self, Reported> {
        let (unix, address) = (section.given::<UnixPath>("unix"), section.given::<IpAddr>("address"));
        let (unix, address) = (unix?, address?);
        if unix.is_some() && port.is_some() {
            let why = format_args!("`{port_key}` names a port");
            return Err(section.invalid("unix", why, "a port or a socket"));
        }
        if unix.is_some() && address.is_some() {
            return Err(section.invalid("unix", "there is an `address` too", "one of them"));
        }
        Ok(Self { kind, port, unix, address })
    }

    /// Whoever has a check connect anywhere asks what this node may ask, and of a unix socket what the agent may.
    pub(super) fn liberty(&self) -> Option<Liberty> {
        match self {
            Self { unix: Some(_), .. } => Some(Liberty::Sockets),
            Self { address: Some(_), .. } => Some(Liberty::Addresses),
            _ => None,
        }
    }

    /// The address that it means for `instance`.
    pub(super) fn of(&self, instance: &ListensOn) -> Result<Address, String> {
        let named = match (&self.unix, self.port, self.address) {
            (Some(unix), ..) => Some(Address::Unix(unix.clone())),
            (None, None, None) => instance.nearest(),
            (None, port, address) => {
                let address = address.unwrap_or(instance.address);
                port.or(instance.port).map(|port| Address::Ip((address, port.get()).into()))
            }
        };
        named.ok_or_else(|| "the instance has neither a port nor a socket".to_owned())
    }
}

/// As the description of a check begins: `redis`, `redis port 6380`, `redis unix:/run/redis.sock`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)?;
        match (&self.unix, self.port) {
            (Some(unix), _) => write!(f, " unix:{unix}")?,
            (None, Some(port)) => write!(f, " port {port}")?,
            (None, None) => {}
        }
        self.address.map_or(Ok(()), |address| write!(f, " at {address}"))
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.port {
            None => map.serialize_entry(self.kind, &true)?,
            Some(port) => map.serialize_entry(self.kind, &port)?,
        }
        if let Some(unix) = &self.unix {
            map.serialize_entry("unix", unix)?;
        }
        if let Some(address) = &self.address {
            map.serialize_entry("address", address)?;
        }
        map.end()
    }
}

impl FromValue for Port {
    fn expected() -> String {
        "true, or a port from 1 to 65535".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match (value.as_bool(), value.as_integer()) {
            (Some(true), _) => Ok(Self(None)),
            (_, Some(_)) => NonZeroU16::from_value(value).map(|port| Self(Some(port))),
            (Some(false), _) => {
                Err(value.mismatch("a check cannot be switched off; leave it out", Self::expected()))
            }
            _ => Err(value.wrong_kind(Self::expected())),
        }
    }
}

/// A connection over TCP that has been begun.
enum Begun {
    Connected(OwnedFd),
    UnderWay(OwnedFd),
}

impl Begun {
    fn with(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(Self::Connected(socket)),
            Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        // Within a host the handshake is over by now, and most checks ask their own: nothing need be waited for.
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::ISCONN) => Ok(Self::Connected(socket)),
            Err(Errno::INPROGRESS | Errno::ALREADY) => Ok(Self::UnderWay(socket)),
            Err(error) => Err(error.into()),
        }
    }

    async fn finished(self) -> io::Result<TcpStream> {
        match self {
            Self::Connected(socket) => TcpStream::from_std(socket.into()),
            Self::UnderWay(socket) => {
                let stream = TcpStream::from_std(socket.into())?;
                stream.writable().await?;
                stream.take_error()?.map_or(Ok(stream), Err)
            }
        }
    }
}

/// Connects, and closes at once: over TCP with a reset, since the closing side would else hold the port pair in `TIME_WAIT` for a minute.
/// Takes as long as it takes.
pub(super) async fn knock(address: &Address) -> Result<(), String> {
    let Address::Ip(ip) = address else { return connect(address).await.map(drop) };
    let reset = |socket: BorrowedFd<'_>| {
        let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
    };
    let knocked = match Begun::with(*ip) {
        // No word of it to the runtime: that would cost more than the connection.
        Ok(Begun::Connected(socket)) => {
            reset(socket.as_fd());
            Ok(())
        }
        Ok(under_way) => under_way.finished().await.map(|stream| reset(stream.as_fd())),
        Err(error) => Err(error),
    };
    knocked.inspect_err(host::note).map_err(|error| format!("connect to {address}: {error}"))
}

/// Connects. Takes as long as it takes: the probe's timeout ends it.
pub(super) async fn connect(address: &Address) -> Result<Stream, String> {
    let connected = match address {
        Address::Ip(address) => match Begun::with(*address) {
            Ok(begun) => begun.finished().await.map(Stream::Tcp),
            Err(error) => Err(error),
        },
        Address::Unix(path) => loop {
            match UnixStream::connect(path.as_path()).await {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                connected => break connected.map(Stream::Unix),
            }
        },
    };
    connected.inspect_err(host::note).map_err(|error| format!("connect to {address}: {error}"))
}

/// Why there is no TLS, in words; what this host lacked for it is noted.
pub(super) fn no_tls(error: TlsError) -> String {
    if let TlsError::File(file) = &error {
        host::note(&file.error);
    }
    error.to_string()
}

impl Stream {
    /// As what both kinds are. Small requests and answers go at once.
    pub(super) fn boxed(self) -> Box<dyn Duplex> {
        match self {
            Self::Tcp(stream) => {
                let _ = stream.set_nodelay(true);
                Box::new(stream)
            }
            Self::Unix(stream) => Box::new(stream),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_full_backlog_is_waited_for_and_is_no_failure() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let address = Address::Unix(UnixPath::new(path.to_str().unwrap()).unwrap());
        // Whatever backlog std asks for is filled up.
        let mut waiting = Vec::new();
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        let accepting = async {
            tokio::task::yield_now().await;
            listener.accept().unwrap()
        };
        let (connected, _accepted) = tokio::join!(connect(&address), accepting);
        assert!(connected.is_ok(), "{:?}", connected.err());
    }
}
