//! What rooms that speak netlink have in common: errors that say what was asked of the kernel, and routing rules found again.
//!
//! Each of these rooms has a file of its own for the rest.

use std::io;

use rtnetlink::packet_route::rule::RuleMessage;

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

/// Does a routing rule that was found do what is wanted? The kernel adds attributes that say nothing.
pub(crate) fn is_rule(found: &RuleMessage, wanted: &RuleMessage) -> bool {
    found.header.action == wanted.header.action
        && found.header.src_len == 0
        && found.header.dst_len == 0
        && wanted.attributes.iter().all(|attribute| found.attributes.contains(attribute))
}
