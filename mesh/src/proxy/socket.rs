//! Socket options and the one way to make each kind of socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// Handshakes that the kernel completes ahead of us; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// A peer whose host vanished is noticed by probes; the kernel's defaults would take two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Is nobody else listening there? `SO_REUSEPORT` alone would let two programs of one user share a port silently.
pub(super) fn probe(address: SocketAddr) -> io::Result<()> {
    listening_socket(address)?.bind(&address.into())
}

/// A listening socket that others of ours on the same address share the connections with.
pub(super) fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = listening_socket(address)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit it, which saves a call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Makes a listening socket that somebody else opened like one of ours, as far as that can be done afterwards.
pub(super) fn adopt(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    set_nodelay(socket);
    Ok(rustix::io::ioctl_fionbio(socket, true)?)
}

/// Where a listening socket listens.
pub(super) fn local_address(socket: impl AsFd) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(rustix::net::getsockname(socket)?)?)
}

fn listening_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if let SocketAddr::V6(v6) = address {
        // One socket for both families on the wildcard; a concrete address is what it says.
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    Ok(socket)
}

/// What waits in a listening socket's queue.
pub(super) fn accept(listener: impl AsFd) -> Result<(OwnedFd, SocketAddr), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (client, address) = rustix::net::acceptfrom_with(listener, flags)?;
    let address = address.ok_or(Errno::NOTCONN)?;
    Ok((client, SocketAddr::try_from(address)?))
}

/// Begins to connect. With `speaks_first`, bytes follow as soon as the connection stands, and they carry the
/// acknowledgement that ends the handshake: one packet less.
pub(super) fn connect(address: SocketAddr, speaks_first: bool) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    if speaks_first {
        // Without it the handshake has one packet more and is as good.
        let _ = sockopt::set_tcp_quickack(&socket, false);
    }
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Why connecting failed.
pub(super) fn error(socket: impl AsFd) -> Errno {
    match sockopt::socket_error(socket) {
        Ok(Err(error)) | Err(error) => error,
        Ok(Ok(())) => Errno::CONNREFUSED,
    }
}

/// Failing to set an option does not make a connection worse than it is; so here and below.
pub(super) fn set_nodelay(socket: impl AsFd) {
    let _ = sockopt::set_tcp_nodelay(socket, true);
}

/// For connections that turn out to last.
pub(super) fn set_keepalive(socket: impl AsFd) {
    let socket = socket.as_fd();
    let _ = sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE);
    let _ = sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL);
    let _ = sockopt::set_socket_keepalive(socket, true);
}

/// Ends a connection by RST, as the peer on the other side did.
pub(super) fn reset(socket: OwnedFd) {
    // Without the option it ends by FIN, which is the next best.
    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
    drop(socket);
}
