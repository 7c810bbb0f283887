//! The two kinds of UDP socket, and their options.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt as option};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::proxy::socket as tcp;
use crate::proxy::transparent::Borrowed;

/// Room for a burst on a listener: some 5,000 small datagrams, or 5 ms of 10 Gbit/s. The kernel caps it at `net.core.rmem_max`
/// where we lack `CAP_NET_ADMIN`.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Errors of one socket that are taken out at once.
const ERRORS: usize = 16;
/// The ports below are those of name servers and such, which talk to each other from them.
const FIRST_FREE_PORT: u16 = 1024;

/// Is nobody else there? `SO_REUSEPORT` alone would let two programs of one user share a port silently.
pub(in crate::proxy) fn probe(address: SocketAddr) -> io::Result<()> {
    listening_socket(address)?.bind(&address.into())
}

/// A socket for clients that others of ours on the same address share them with: the kernel's hash keeps a client with one.
pub(in crate::proxy) fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = listening_socket(address)?;
    socket.set_reuse_port(true)?;
    adopt(&socket, address)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Makes a socket what [`listen`] makes, wherever it comes from.
pub(in crate::proxy) fn adopt(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => setsockopt(socket, option::Ipv4PacketInfo, &true)?,
        // On a socket for both families it tells of IPv4 too, as mapped addresses (ipv6(7)).
        SocketAddr::V6(_) => setsockopt(socket, option::Ipv6RecvPacketInfo, &true)?,
    }
    // What these do not do is not worth the listener: bursts are shorter, losses uncounted, bulk dearer.
    if sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BUFFER);
    }
    let _ = setsockopt(socket, option::RxqOvfl, &1);
    let _ = setsockopt(socket, option::UdpGroSegment, &true);
    Ok(())
}

fn listening_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if let SocketAddr::V6(v6) = address {
        // One socket for both families on the wildcard; a concrete address is what it says.
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    Ok(socket)
}

/// A socket for one session, connected: the kernel brings it its endpoint's datagrams and ICMP errors and nobody else's. With
/// `client`, the endpoint sees that address and not this host's.
pub(super) fn connect(address: SocketAddr, client: Option<Borrowed>) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    // Tells of a host that is unreachable too; without it only of a port that is closed (ip(7), «Error handling»).
    let _ = match address {
        SocketAddr::V4(_) => setsockopt(&socket, option::Ipv4RecvErr, &true),
        SocketAddr::V6(_) => setsockopt(&socket, option::Ipv6RecvErr, &true),
    };
    let _ = setsockopt(&socket, option::RxqOvfl, &1);
    let _ = setsockopt(&socket, option::UdpGroSegment, &true);
    if let Some(client) = client {
        bind_as(&socket, client)?;
    }
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// The client's own port, unless it is one that a program of this host may want to listen on, or somebody has it: a port is
/// never shared, for of two sockets with the same addresses at both ends only one would hear.
fn bind_as(socket: &OwnedFd, client: Borrowed) -> Result<(), Errno> {
    let is_servers = client.address.port() < FIRST_FREE_PORT;
    match tcp::bind_as(socket, if is_servers { client.with_any_port() } else { client }) {
        Err(Errno::ADDRINUSE) => rustix::net::bind(socket, &client.with_any_port().address),
        done => done,
    }
}

/// Takes the reports of errors out of a socket that goes on in spite of them, so that they do not fill its buffer.
pub(super) fn forget_errors(socket: impl AsFd) {
    let socket = socket.as_fd();
    for _ in 0..ERRORS {
        if rustix::net::recv(socket, &mut [0; 1], RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT).is_err() {
            return;
        }
    }
}

/// Is this how the network says that an endpoint cannot be reached? It may be an ICMP error for an earlier datagram (icmp(7)), or
/// there is no route, or a packet filter of this host rejects it.
pub(super) fn is_unreachable(error: Errno) -> bool {
    matches!(
        error,
        Errno::CONNREFUSED
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::NETDOWN
            | Errno::NONET
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::ACCESS
            | Errno::PERM
    )
}

/// Is it for want of something here that there is no socket: descriptors, memory, ports? Another endpoint would not help.
pub(super) fn is_ours(error: Errno) -> bool {
    matches!(
        error,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN | Errno::ADDRINUSE
    )
}
