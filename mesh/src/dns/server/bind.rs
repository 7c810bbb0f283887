//! Taking an address for UDP and TCP, both or neither, or for TLS or HTTPS, and saying what to do when it cannot be had.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::inherited::{Inherited, Transport};

/// A client's burst waits here while another answer is written; the kernel grants what its limits allow.
const UDP_RECEIVE_BUFFER: usize = 1 << 20;
/// Connections that wait to be accepted.
const TCP_BACKLOG: i32 = 256;
/// With port 0 the kernel picks a UDP port whose TCP port may be taken: so often another is tried.
const PORT_ATTEMPTS: usize = 16;

/// Why an address cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for DNS on {address} over {transport}: {source}; {}", hint(source, *address))]
pub struct BindError {
    address: SocketAddr,
    transport: &'static str,
    source: io::Error,
}

impl BindError {
    /// The address as configured.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// What an address is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// UDP and TCP, which whoever is on the way can read.
    Plain,
    /// TLS.
    Tls,
    /// HTTPS.
    Https,
}

/// What was taken of an address.
#[derive(Debug)]
pub(super) enum Taken {
    Plain(Sockets),
    Tls(TcpListener, SocketAddr),
    Https(TcpListener, SocketAddr),
}

impl Taken {
    /// Takes the address: the sockets of it that are there already, and new ones for what is missing.
    pub(super) fn bind(
        wanted: SocketAddr,
        over: Over,
        threads: NonZeroUsize,
        inherited: &Inherited,
    ) -> Result<Self, BindError> {
        let stream = |transport| {
            let listener =
                inherited.take(Transport::Tcp, wanted).pop().map_or_else(|| tcp(wanted), adopt_tcp);
            let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
            bound.map_err(|source| BindError { address: wanted, transport, source })
        };
        match over {
            Over::Plain => Sockets::bind(wanted, threads, inherited).map(Self::Plain),
            Over::Tls => stream("TLS").map(|(address, listener)| Self::Tls(listener, address)),
            Over::Https => stream("HTTPS").map(|(address, listener)| Self::Https(listener, address)),
        }
    }

    /// Where it is, with the port that the kernel chose where 0 was asked for.
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Plain(sockets) => sockets.address,
            Self::Tls(_, address) | Self::Https(_, address) => *address,
        }
    }
}

/// The sockets of an address, non-blocking, not yet part of a runtime.
#[derive(Debug)]
pub(super) struct Sockets {
    /// One for each thread that answers; more where there were more before.
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: TcpListener,
    pub(super) address: SocketAddr,
    /// It takes what comes for any address of this host, so a reply has to say which one it leaves from.
    pub(super) wildcard: bool,
}

impl Sockets {
    /// All of them, wherever they come from.
    pub(super) fn bind(
        wanted: SocketAddr,
        threads: NonZeroUsize,
        inherited: &Inherited,
    ) -> Result<Self, BindError> {
        let failed = |transport| move |source| BindError { address: wanted, transport, source };
        let wildcard = wanted.ip().is_unspecified();
        let tcp_given = inherited.take(Transport::Tcp, wanted).pop();
        let udp_given = inherited.take(Transport::Udp, wanted);
        if !udp_given.is_empty() || tcp_given.is_some() {
            let tcp = tcp_given.map_or_else(|| tcp(wanted), adopt_tcp).map_err(failed("TCP"))?;
            let udp: io::Result<Vec<_>> =
                udp_given.into_iter().map(|given| adopt_udp(given, wanted)).collect();
            let udp = udp.and_then(|given| one_a_thread(given, wanted, threads)).map_err(failed("UDP"))?;
            return Ok(Self { udp, tcp, address: wanted, wildcard });
        }
        let mut attempts = if wanted.port() == 0 { PORT_ATTEMPTS } else { 1 };
        loop {
            attempts -= 1;
            let first = udp(wanted, false).map_err(failed("UDP"))?;
            let address = first.local_addr().map_err(failed("UDP"))?;
            match tcp(address) {
                Ok(tcp) => {
                    let udp = one_a_thread(vec![first], address, threads).map_err(failed("UDP"))?;
                    return Ok(Self { udp, tcp, address, wildcard });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => {}
                Err(error) => return Err(failed("TCP")(error)),
            }
        }
    }
}

/// As many sockets of the address as there are threads. The first is had alone, so that a program that has the address is noticed; only
/// then others may share it, which have to be of the same user.
fn one_a_thread(
    mut sockets: Vec<UdpSocket>,
    address: SocketAddr,
    threads: NonZeroUsize,
) -> io::Result<Vec<UdpSocket>> {
    if sockets.is_empty() {
        sockets.push(udp(address, false)?);
    }
    if sockets.len() < threads.get() {
        sockets.iter().try_for_each(|socket| setsockopt(socket, sockopt::ReusePort, &true))?;
    }
    while sockets.len() < threads.get() {
        sockets.push(udp(address, true)?);
    }
    Ok(sockets)
}

fn udp(address: SocketAddr, is_shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // Each family has its own socket, so that both wildcards can be listened on.
        socket.set_only_v6(true)?;
    }
    prepare_udp(&socket, address)?;
    may_come_later(&socket, address)?;
    setsockopt(&socket, sockopt::ReusePort, &is_shared)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A link-local address may be taken before this host has it: the agent gives it to itself, and may have to do so again.
fn may_come_later(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_link_local() => socket.set_freebind_v4(true),
        _ => Ok(()),
    }
}

/// What every UDP socket of ours is like; also one that somebody else has bound.
fn prepare_udp(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address.ip() {
        IpAddr::V6(ip) if ip.is_unspecified() => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        IpAddr::V4(ip) if ip.is_unspecified() => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        _ => {}
    }
    // A smaller buffer than wished is no reason not to serve.
    let _ = socket.set_recv_buffer_size(UDP_RECEIVE_BUFFER);
    socket.set_nonblocking(true)
}

fn adopt_udp(given: OwnedFd, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::from(given);
    prepare_udp(&socket, address)?;
    Ok(socket.into())
}

fn adopt_tcp(given: OwnedFd) -> io::Result<TcpListener> {
    let listener = TcpListener::from(given);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of the program before this one, in TIME_WAIT, do not keep the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    may_come_later(&socket, address)?;
    socket.bind(&address.into())?;
    socket.listen(TCP_BACKLOG)?;
    Ok(socket.into())
}

fn hint(error: &io::Error, address: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program has it (see `ss -lnup 'sport = :{port}'; ss -lntp 'sport = :{port}'`; systemd-resolved has \
             127.0.0.53): stop that one or listen on another address; it is tried again meanwhile",
            port = address.port()
        ),
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE: run as root, grant it \
             (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE), or listen on a port from 1024 up"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this host has the address: it is tried again until one has".to_owned()
        }
        _ => "it is tried again".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NonZeroUsize = NonZeroUsize::MIN;

    #[test]
    fn udp_and_tcp_get_the_same_port_or_none() {
        let first = Sockets::bind("127.0.0.1:0".parse().unwrap(), ONE, &Inherited::default()).unwrap();
        assert_eq!(first.udp[0].local_addr().unwrap(), first.tcp.local_addr().unwrap());
        let error = Sockets::bind(first.address, ONE, &Inherited::default()).unwrap_err().to_string();
        assert!(
            error.contains("another program has it") && error.contains(&first.address.to_string()),
            "{error}"
        );
    }

    #[test]
    fn an_address_that_is_not_ours_is_said_to_be_so() {
        let error = Sockets::bind("192.0.2.200:0".parse().unwrap(), ONE, &Inherited::default()).unwrap_err();
        assert!(error.to_string().contains("no interface of this host"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn a_link_local_address_is_taken_before_it_is_ours() {
        let address = "169.254.53.200:0".parse().unwrap();
        assert_eq!(Sockets::bind(address, ONE, &Inherited::default()).unwrap().address.ip(), address.ip());
    }

    #[test]
    fn sockets_that_are_there_are_taken_and_what_is_missing_is_opened() {
        let first = Sockets::bind("127.0.0.1:0".parse().unwrap(), ONE, &Inherited::default()).unwrap();
        let inherited = Inherited::default();
        let (address, udp) = (first.address, first.udp);
        udp.into_iter().for_each(|udp| drop(inherited.add(udp.into()).unwrap()));
        drop(first.tcp);
        let second = Sockets::bind(address, ONE, &inherited).unwrap();
        assert_eq!(
            (second.udp[0].local_addr().unwrap(), second.tcp.local_addr().unwrap()),
            (address, address)
        );
        assert!(inherited.left().is_empty());
        inherited.add(second.tcp.into()).unwrap();
        drop(second.udp);
        assert_eq!(Sockets::bind(address, ONE, &inherited).unwrap().address, address);
    }

    #[test]
    fn a_thread_has_a_socket_and_those_that_were_there_are_all_taken() {
        let three = NonZeroUsize::new(3).unwrap();
        let first = Sockets::bind("127.0.0.1:0".parse().unwrap(), three, &Inherited::default()).unwrap();
        let address = first.address;
        assert_eq!(first.udp.len(), 3);
        assert!(first.udp.iter().all(|socket| socket.local_addr().unwrap() == address));
        let inherited = Inherited::default();
        first.udp.into_iter().for_each(|udp| drop(inherited.add(udp.into()).unwrap()));
        drop(first.tcp);
        let fewer = Sockets::bind(address, ONE, &inherited).unwrap();
        assert_eq!(fewer.udp.len(), 3, "what waits in them is not lost");
        fewer.udp.into_iter().take(1).for_each(|udp| drop(inherited.add(udp.into()).unwrap()));
        drop(fewer.tcp);
        assert_eq!(Sockets::bind(address, three, &inherited).unwrap().udp.len(), 3);
        // Alone at first, whoever else would share.
        let other = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        setsockopt(&other, sockopt::ReusePort, &true).unwrap();
        other.bind(&address.into()).unwrap();
        assert!(Sockets::bind(address, three, &Inherited::default()).is_err());
    }
}
