//! Unix stream sockets: one that listens, and those of connections. No option of TCP is set on any of them.

use std::os::fd::{AsFd, OwnedFd};

use nerve::model::UnixPath;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::TcpOptions;
use super::socket::{BACKLOG, set_buffers};

/// Connects. There is no handshake to wait for: it succeeds at once or fails, with [`Errno::AGAIN`] where the backlog of
/// whoever listens is full, of which nobody tells when that is over.
pub(super) fn connect(path: &UnixPath, options: &TcpOptions) -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    set_buffers(&socket, options);
    rustix::net::connect(&socket, &address(path)?)?;
    Ok(socket)
}

/// A socket with the path as its name, at which nobody can connect before it listens.
pub(super) fn bind(path: &UnixPath) -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    rustix::net::bind(&socket, &address(path)?)?;
    Ok(socket)
}

/// Lets clients in.
pub(super) fn listen(socket: impl AsFd) -> Result<(), Errno> {
    rustix::net::listen(socket, BACKLOG)
}

/// What waits in a listening socket's queue.
pub(super) fn accept(listener: impl AsFd) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
}

/// On the stack: a path fits into a socket address.
fn address(path: &UnixPath) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(path.as_str())
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}
