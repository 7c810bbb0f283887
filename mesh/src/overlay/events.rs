//! What the kernel tells: what has changed, or gone, of links, entries, addresses and rules.
//!
//! The socket is read here and not by the library, which reads everything into a queue without an end. The kernel keeps what nobody
//! has read yet, as far as its buffer goes; that there was more is an event as well.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::packet_route::rule::RuleAttribute;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::messages::{OURS, is_our_rule, local_address, own_address};
use super::netlink::{Link, link, name_of, neighbour_place, route};
use super::plan::Place;
use crate::netlink::{enlarge, is_overrun};

/// What may take something of ours away.
const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Tc,
];
/// No message of the kernel about these is longer (`NLMSG_GOODSIZE`, and what dumps have at most).
const LONGEST: usize = 32 * 1024;

/// One change of what the kernel has, as far as it can be about a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// There were more than the socket holds: anything may have been among them.
    Overrun,
    /// A link as it is from now on; `None`: it is gone.
    Link { index: u32, name: String, now: Option<Link> },
    /// A neighbour, a forwarding entry or a route of ours went, on that link.
    Gone { link: u32, place: Place },
    /// An address came to a link, or went from it. `outside`: it is one that packets of this host may come from elsewhere with.
    Address { link: u32, address: (IpAddr, u8), came: bool, outside: bool },
    /// A routing rule of ours went, which was for packets from that link.
    Rule { from: String },
    /// What is done with packets at a link was changed: queueing, classifiers.
    Control,
}

/// Where they are told.
pub(super) struct Events {
    socket: TokioSocket,
    datagram: Vec<u8>,
    waiting: VecDeque<Event>,
}

impl Events {
    /// Told from now on.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        enlarge(socket.socket_ref());
        let groups = GROUPS.iter().fold(0, |groups, group| groups | 1 << (*group as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket, datagram: Vec::with_capacity(LONGEST), waiting: VecDeque::new() })
    }

    /// The next one. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(event);
            }
            self.datagram.clear();
            match self.socket.recv_from(&mut self.datagram).await {
                Ok(_) => self.waiting.extend(read(&self.datagram)),
                Err(error) if is_overrun(&error) => return Ok(Event::Overrun),
                Err(error) => return Err(error),
            }
        }
    }
}

/// What a datagram tells.
fn read(datagram: &[u8]) -> Vec<Event> {
    let (mut events, mut rest) = (Vec::new(), datagram);
    while let Ok(header) = NetlinkBuffer::new_checked(rest) {
        let length = header.length() as usize;
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
            Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) => {
                events.extend(event(&message));
            }
            Ok(_) => {}
            // Of a newer kernel. What it takes away is found by the slow tick.
            Err(error) => tracing::debug!(%error, "a message of the kernel about links, routes or rules"),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    events
}

fn event(message: &RouteNetlinkMessage) -> Option<Event> {
    match message {
        RouteNetlinkMessage::NewLink(message) => link_event(message, Some(link(message))),
        RouteNetlinkMessage::DelLink(message) => link_event(message, None),
        RouteNetlinkMessage::DelNeighbour(message) => {
            Some(Event::Gone { link: message.header.ifindex, place: neighbour_place(message)? })
        }
        RouteNetlinkMessage::DelRoute(message) if message.header.protocol == OURS => {
            let link = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            Some(Event::Gone { link: link?, place: route(message)?.place() })
        }
        RouteNetlinkMessage::NewAddress(message) => address_event(message, true),
        RouteNetlinkMessage::DelAddress(message) => address_event(message, false),
        RouteNetlinkMessage::DelRule(message) if is_our_rule(message) => {
            let from = message.attributes.iter().find_map(|attribute| match attribute {
                RuleAttribute::Iifname(name) => Some(name.clone()),
                _ => None,
            });
            Some(Event::Rule { from: from? })
        }
        RouteNetlinkMessage::NewQueueDiscipline(_)
        | RouteNetlinkMessage::DelQueueDiscipline(_)
        | RouteNetlinkMessage::NewTrafficFilter(_)
        | RouteNetlinkMessage::DelTrafficFilter(_) => Some(Event::Control),
        _ => None,
    }
}

/// Of the family of bridges, a message is about a port and not about the link.
fn link_event(message: &LinkMessage, now: Option<Link>) -> Option<Event> {
    let name = name_of(message).filter(|_| message.header.interface_family != AddressFamily::Bridge)?;
    Some(Event::Link { index: message.header.index, name: name.to_owned(), now })
}

fn address_event(message: &AddressMessage, came: bool) -> Option<Event> {
    let address = (local_address(&message.attributes)?, message.header.prefix_len);
    Some(Event::Address {
        link: message.header.index,
        address,
        came,
        outside: own_address(message).is_some(),
    })
}

#[cfg(test)]
mod tests {
    use nerve::model::{Mac, Prefix};
    use rtnetlink::packet_core::NetlinkHeader;
    use rtnetlink::packet_route::link::LinkAttribute;
    use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
    use rtnetlink::packet_route::route::{RouteAddress, RouteMessage, RouteProtocol};
    use rtnetlink::packet_route::rule::RuleMessage;

    use super::*;

    /// As the kernel sends them.
    fn told(messages: Vec<RouteNetlinkMessage>) -> Vec<Event> {
        let mut datagram = Vec::new();
        for message in messages {
            let mut message =
                NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
            message.finalize();
            let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
            message.serialize(&mut bytes);
            datagram.extend(bytes);
        }
        read(&datagram)
    }

    fn neighbour(family: AddressFamily, attributes: Vec<NeighbourAttribute>) -> RouteNetlinkMessage {
        let mut message = NeighbourMessage::default();
        (message.header.family, message.header.ifindex) = (family, 7);
        message.attributes = attributes;
        RouteNetlinkMessage::DelNeighbour(message)
    }

    fn route(protocol: RouteProtocol) -> RouteNetlinkMessage {
        let mut message = RouteMessage::default();
        (message.header.address_family, message.header.destination_prefix_length) = (AddressFamily::Inet, 24);
        message.header.protocol = protocol;
        message.header.table = 254;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet("10.42.7.0".parse().unwrap())),
            RouteAttribute::Gateway(RouteAddress::Inet("10.42.7.1".parse().unwrap())),
            RouteAttribute::Oif(7),
        ];
        RouteNetlinkMessage::DelRoute(message)
    }

    fn link_message(family: AddressFamily) -> LinkMessage {
        let mut message = LinkMessage::default();
        (message.header.interface_family, message.header.index) = (family, 7);
        message.attributes = vec![LinkAttribute::IfName("plxb4096".to_owned())];
        message
    }

    #[test]
    fn what_goes_is_told_by_its_place() {
        let mac = Mac([2, 0x50, 0x4c, 0, 0, 7]);
        let gateway = NeighbourAddress::Inet("10.42.7.1".parse().unwrap());
        let other = NeighbourAddress::Other(vec![192, 0, 2, 2]);
        let events = told(vec![
            // It has lost its MAC before it goes.
            neighbour(AddressFamily::Inet, vec![NeighbourAttribute::Destination(gateway)]),
            neighbour(
                AddressFamily::Bridge,
                vec![
                    NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
                    NeighbourAttribute::Destination(other),
                ],
            ),
            route(OURS),
            route(RouteProtocol::Static),
        ]);
        let places = [
            Place::Neighbour("10.42.7.1".parse().unwrap()),
            Place::Forward(mac),
            Place::Route("10.42.7.0/24".parse::<Prefix>().unwrap()),
        ];
        assert_eq!(events, places.map(|place| Event::Gone { link: 7, place }));
    }

    #[test]
    fn a_link_is_told_with_its_state_and_the_ports_of_bridges_are_none() {
        let events = told(vec![
            RouteNetlinkMessage::NewLink(link_message(AddressFamily::Unspec)),
            RouteNetlinkMessage::DelLink(link_message(AddressFamily::Bridge)),
            RouteNetlinkMessage::DelLink(link_message(AddressFamily::Unspec)),
        ]);
        let [Event::Link { now: Some(now), .. }, Event::Link { index: 7, name, now: None }] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert!(!now.is_up && name == "plxb4096");
    }

    #[test]
    fn rules_of_others_are_nothing() {
        let rule = |attributes| {
            let mut message = RuleMessage::default();
            message.attributes = attributes;
            message.header.family = AddressFamily::Inet;
            RouteNetlinkMessage::DelRule(message)
        };
        let iif = || RuleAttribute::Iifname("plxb4096".to_owned());
        let events = told(vec![rule(vec![iif()]), rule(vec![iif(), RuleAttribute::Protocol(OURS)])]);
        assert_eq!(events, [Event::Rule { from: "plxb4096".to_owned() }]);
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        assert_eq!(read(&[0; 7]), []);
        assert_eq!(read(&[255; 64]), []);
        assert_eq!(read(&[0; 64]), [], "a length of nothing leads nowhere");
    }
}
