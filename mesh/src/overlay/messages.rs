//! What messages of the kernel say, as far as several ask it (pure).

use std::net::IpAddr;

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};

/// Marks our routes and rules (`ip route show proto 82`); nothing in iproute2's `rt_protos` has it.
pub(crate) const PROTOCOL: u8 = 82;
pub(super) const OURS: RouteProtocol = RouteProtocol::Other(PROTOCOL);
/// `lo` has this index in every network namespace (`LOOPBACK_IFINDEX` of the kernel).
pub(super) const LOOPBACK: u32 = 1;

/// Is a routing rule one of ours?
pub(super) fn is_our_rule(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(OURS))
}

/// An address that packets of this host may come from elsewhere with: not one of its loopback, where virtual addresses are, and not
/// one of a link alone.
pub(super) fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let is_of_link = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let is_outside = message.header.index != LOOPBACK;
    local_address(&message.attributes).filter(|address| is_outside && !is_of_link(address))
}

/// The address that a link has by a message.
pub(super) fn local_address(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let mut address = None;
    for attribute in attributes {
        match attribute {
            AddressAttribute::Local(local) => return Some(*local),
            AddressAttribute::Address(other) => address = Some(*other),
            _ => {}
        }
    }
    address
}
