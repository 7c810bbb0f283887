//! Connections by unix stream sockets. No option of TCP is set on any of them. Those that listen are made with [`crate::socket_file`].

use std::os::fd::{AsFd, OwnedFd};

use nerve::model::UnixPath;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::TcpOptions;
use super::socket::set_buffers;

/// Connects. There is no handshake to wait for: it succeeds at once or fails, with [`Errno::AGAIN`] where the backlog of
/// whoever listens is full, of which nobody tells when that is over.
pub(super) fn connect(path: &UnixPath, options: &TcpOptions) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_buffers(&socket, options);
    // On the stack: a path fits into a socket address.
    rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_str())?)?;
    Ok(socket)
}

/// What waits in a listening socket's queue.
pub(super) fn accept(listener: impl AsFd) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
}
