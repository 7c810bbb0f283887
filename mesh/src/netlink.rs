//! What the kernel answered over netlink, as an error that says what was asked of it.
//!
//! Each room that speaks netlink has a file of its own for that; they fail alike.

use std::io;

/// Why it could not be done: `what` follows "cannot".
pub(crate) fn failed(what: &str, error: &rtnetlink::Error) -> io::Error {
    let error = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    };
    let advice =
        if error.kind() == io::ErrorKind::PermissionDenied { "; give the agent CAP_NET_ADMIN" } else { "" };
    io::Error::new(error.kind(), format!("cannot {what}: {error}{advice}"))
}
