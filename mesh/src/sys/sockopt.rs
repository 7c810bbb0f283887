//! Socket options that no crate of ours has a safe call for.

use std::io;
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
