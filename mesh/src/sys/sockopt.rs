//! Socket options that no crate of ours has a safe call for.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// Accepts a client only when it has said something, or after `seconds` (tcp(7), `TCP_DEFER_ACCEPT`).
pub(crate) fn set_tcp_defer_accept(socket: impl AsFd, seconds: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<i32>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads `length` bytes of `seconds`, which lives
    // through the call, and keeps no pointer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends UDP datagrams over IPv4 without a checksum, or with one (socket(7), `SO_NO_CHECK`).
pub(crate) fn set_no_checksum(socket: impl AsFd, without: bool) -> io::Result<()> {
    let value = i32::from(without);
    let length = libc::socklen_t::try_from(size_of::<i32>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads `length` bytes of `value`, which lives
    // through the call, and keeps no pointer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const value).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Clients that have completed their handshake with a listening TCP socket and wait to be accepted: what `tcp_info`, asked of
/// such a socket, says in `tcpi_unacked` (`tcp_get_info` in the kernel's `net/ipv4/tcp.c`).
pub(crate) fn clients_waiting(socket: impl AsFd) -> io::Result<u32> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes at most `length` bytes to `info`, both of
    // which live through the call, and keeps no pointer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all of it is integers, for which zeros, and whatever the kernel wrote over them, are values.
    Ok(unsafe { info.assume_init() }.tcpi_unacked)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn those_who_wait_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let waiting = || clients_waiting(&listener).unwrap();
        assert_eq!(waiting(), 0);
        let address = listener.local_addr().unwrap();
        let _clients = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
        assert_eq!(waiting(), 2);
        listener.accept().unwrap();
        assert_eq!(waiting(), 1);
    }
}
