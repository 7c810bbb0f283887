//! Socket options and the one way to make each kind of socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::TcpOptions;
use super::transparent::Borrowed;
use crate::sys;

/// Handshakes that the kernel completes ahead of us; it caps this at `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// Is nobody else listening there? `SO_REUSEPORT` alone would let two programs of one user share a port silently.
pub(super) fn probe(address: SocketAddr) -> io::Result<()> {
    listening_socket(address)?.bind(&address.into())
}

/// A listening socket that others of ours on the same address share the connections with.
pub(super) fn listen(address: SocketAddr, options: &TcpOptions) -> io::Result<OwnedFd> {
    let socket = listening_socket(address)?;
    socket.set_reuse_port(true)?;
    // Before the handshake, where a buffer's size decides the window's scale.
    set_buffers(&socket, options);
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    adopt(&socket, options)?;
    Ok(socket.into())
}

/// Prepares a listening socket, also one that another process has opened.
pub(super) fn adopt(socket: impl AsFd, options: &TcpOptions) -> io::Result<()> {
    let socket = socket.as_fd();
    rustix::io::ioctl_fionbio(socket, true)?;
    // Accepted sockets inherit it, which saves a call for each.
    set_nodelay(socket);
    if options.defer_accept {
        // The client's data must come within this; then it is accepted nevertheless.
        const SECONDS: i32 = 5;
        sys::sockopt::set_tcp_defer_accept(socket, SECONDS)?;
    }
    Ok(())
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
    let address = SocketAddr::try_from(address)?;
    // A client that came to an IPv6 socket by IPv4 is an IPv4 client.
    Ok((client, SocketAddr::new(address.ip().to_canonical(), address.port())))
}

/// Begins to connect. With `speaks_first`, bytes follow as soon as the connection stands, and they carry the
/// acknowledgement that ends the handshake: one packet less. With `client`, the endpoint sees that address and not this
/// host's.
pub(super) fn connect(
    address: SocketAddr,
    client: Option<Borrowed>,
    speaks_first: bool,
    options: &TcpOptions,
) -> Result<OwnedFd, Errno> {
    let attempt = |source| connect_from(source, address, speaks_first, options);
    if let Some(client) = client {
        return match attempt(Source::Client(client)) {
            // Another connection of the client's has its port, towards this endpoint or on this host; or only root may have it.
            Err(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL | Errno::ACCESS) => {
                attempt(Source::Client(client.with_any_port()))
            }
            done => done,
        };
    }
    match attempt(Source::Any) {
        // Every port of the source address that the kernel chose is in use towards this endpoint.
        Err(Errno::ADDRNOTAVAIL) => {
            let usable = options.source_addresses.iter().filter(|ip| ip.is_ipv4() == address.is_ipv4());
            let mut attempts = usable.map(|ip| attempt(Source::Own(*ip)));
            attempts
                .find(|done| done.as_ref().err() != Some(&Errno::ADDRNOTAVAIL))
                .unwrap_or(Err(Errno::ADDRNOTAVAIL))
        }
        done => done,
    }
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// Whatever the kernel chooses.
    Any,
    /// An address of this host.
    Own(IpAddr),
    /// The client's.
    Client(Borrowed),
}

fn connect_from(
    source: Source,
    address: SocketAddr,
    speaks_first: bool,
    options: &TcpOptions,
) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    match source {
        Source::Any => {}
        Source::Own(source) => {
            choose_port_late(&socket);
            rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
        }
        Source::Client(client) => {
            // Its connections to other endpoints may come from the same port.
            sockopt::set_socket_reuseaddr(&socket, true)?;
            if client.address.port() == 0 {
                choose_port_late(&socket);
            }
            bind_as(&socket, client)?;
        }
    }
    set_buffers(&socket, options);
    if speaks_first {
        // Without it the handshake has one packet more and is as good.
        let _ = sockopt::set_tcp_quickack(&socket, false);
    }
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// The port is chosen when the destination is known, so that it may be one that leads elsewhere already.
fn choose_port_late(socket: &OwnedFd) {
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true);
}

/// Binds to a client's address, which need not be this host's (`IP_TRANSPARENT`), with the mark by which what is sent there is
/// known to be for this socket. Both need `CAP_NET_ADMIN`, without which nobody says that answers are steered.
pub(super) fn bind_as(socket: &OwnedFd, client: Borrowed) -> Result<(), Errno> {
    let options = SockRef::from(socket);
    let transparent = match client.address {
        SocketAddr::V4(_) => options.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => options.set_ip_transparent_v6(true),
    };
    let marked = transparent.and_then(|()| options.set_mark(client.mark));
    marked.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
    rustix::net::bind(socket, &client.address)
}

/// What waits to be read, without taking it.
pub(super) fn peek(socket: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    Ok(rustix::net::recv(socket, buffer, RecvFlags::PEEK)?.1)
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
pub(super) fn set_keepalive(socket: impl AsFd, options: &TcpOptions) {
    let socket = socket.as_fd();
    let _ = sockopt::set_tcp_keepidle(socket, options.keepalive);
    let _ = sockopt::set_tcp_keepintvl(socket, options.keepalive_interval);
    let _ = sockopt::set_socket_keepalive(socket, true);
    if let Some(timeout) = options.user_timeout {
        let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let _ = sockopt::set_tcp_user_timeout(socket, millis);
    }
}

pub(super) fn set_buffers(socket: impl AsFd, options: &TcpOptions) {
    let socket = socket.as_fd();
    if let Some(bytes) = options.send_buffer {
        let _ = sockopt::set_socket_send_buffer_size(socket, bytes.get() as usize);
    }
    if let Some(bytes) = options.receive_buffer {
        let _ = sockopt::set_socket_recv_buffer_size(socket, bytes.get() as usize);
    }
}

/// Ends a connection by RST, as the peer on the other side did.
pub(super) fn reset(socket: OwnedFd) {
    // Without the option it ends by FIN, which is the next best.
    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
    drop(socket);
}
