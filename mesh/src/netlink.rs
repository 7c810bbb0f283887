//! What rooms that speak netlink have in common: errors that say what was asked of the kernel, and routing rules found again.
//!
//! Each of these rooms has a file of its own for the rest.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use nerve::model::Prefix;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleMessage;
use rustix::io::Errno;
use rustix::net::sockopt;

/// `lo` has this index in every network namespace (`LOOPBACK_IFINDEX` of the kernel).
pub(crate) const LOOPBACK: u32 = 1;
/// The table of what is this host's own, asked before all others (`RT_TABLE_LOCAL` of the kernel).
const TABLE_LOCAL: u8 = 255;
/// More than the messages that some thousands of changed routes and neighbours come with.
const EVENTS: usize = 8 << 20;

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

/// The route that makes a range this host's own, marked by this number: `ip route add local RANGE dev lo proto N`.
pub(crate) fn local_route(range: Prefix, protocol: u8) -> RouteMessage {
    let mut message = match range.network() {
        IpAddr::V4(v4) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, range.length());
            // As `ip route` does: a local IPv4 route is of scope host.
            route.scope(RouteScope::Host).output_interface(LOOPBACK).build()
        }
        IpAddr::V6(v6) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, range.length());
            route.output_interface(LOOPBACK).build()
        }
    };
    message.header.kind = RouteType::Local;
    message.header.table = TABLE_LOCAL;
    message.header.protocol = RouteProtocol::Other(protocol);
    message
}

/// Does a routing rule that was found do what is wanted? The kernel adds attributes that say nothing.
pub(crate) fn is_rule(found: &RuleMessage, wanted: &RuleMessage) -> bool {
    found.header.action == wanted.header.action
        && found.header.src_len == 0
        && found.header.dst_len == 0
        && wanted.attributes.iter().all(|attribute| found.attributes.contains(attribute))
}

/// Has the kernel keep more events of what nobody has read yet: past what a host's settings allow, where the agent may do that.
pub(crate) fn enlarge(socket: impl AsFd) {
    let enlarged = sockopt::set_socket_recv_buffer_size_force(&socket, EVENTS)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, EVENTS));
    if let Err(error) = enlarged {
        tracing::debug!(%error, "the kernel keeps few events of what nobody has read yet");
    }
}

/// Does an error of a socket for events say that there were more than it holds?
pub(crate) fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error())
}
