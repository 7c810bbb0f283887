//! The kernel's routing, read and changed by netlink. Its types stop here.
//!
//! What is ours is marked by a protocol number, so that it is found again after a crash and nobody else's is ever touched. The
//! connection is a future that moves while something else is awaited: whoever opens one polls both.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;

use futures_util::{Stream, StreamExt, TryStreamExt};
use nerve::model::Prefix;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::AsyncSocket as _;
use rtnetlink::{Handle, IpVersion, MulticastGroup, RouteMessageBuilder, new_multicast_connection};

use super::plan::{Kind, Link, Links, Route};
use super::ruleset::Marks;
use crate::netlink::{failed, is_rule};

/// Marks our rules and routes (`ip rule`, `ip route show table all proto 81`); nothing in iproute2's `rt_protos` has it.
const OURS: RouteProtocol = RouteProtocol::Other(81);
/// Where our rule stands: behind that of the table `local`, before those of networks of containers and VPNs.
const PRIORITY: u32 = 81;
/// `lo` has this index in every network namespace (`LOOPBACK_IFINDEX` of the kernel).
const LOOPBACK: u32 = 1;
/// What may take our rules and routes away, or put another interface before an endpoint.
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Link,
];

type Events = Pin<Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send + Sync>>;

/// An open connection to the kernel.
pub(super) struct Netlink {
    handle: Handle,
    events: Events,
}

/// One of the two families of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn version(self) -> IpVersion {
        match self {
            Self::V4 => IpVersion::V4,
            Self::V6 => IpVersion::V6,
        }
    }

    fn code(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

impl Netlink {
    /// Opens one; the future must be polled for as long as it is used, and ends when the kernel ends it.
    pub(super) fn open() -> io::Result<(impl Future<Output = ()> + Send, Self)> {
        let (mut connection, handle, events) = new_multicast_connection(&GROUPS)?;
        // So that a request for the routes of one table is answered with these alone.
        connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true)?;
        Ok((connection, Self { handle, events: Box::pin(events.map(|(message, _)| message)) }))
    }

    /// Waits for a change of a rule, of a route of `table`, or of an interface; `false` when the connection ended. Cancel-safe.
    pub(super) async fn changed(&mut self, table: u32) -> bool {
        loop {
            let Some(message) = self.events.next().await else { return false };
            let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
            match message {
                RouteNetlinkMessage::NewRule(_)
                | RouteNetlinkMessage::DelRule(_)
                | RouteNetlinkMessage::NewLink(_)
                | RouteNetlinkMessage::DelLink(_) => return true,
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)
                    if table_of(&route) == table =>
                {
                    return true;
                }
                _ => {}
            }
        }
    }

    /// Makes what is marked come to this host: `ip rule add fwmark MARK/MASK lookup TABLE pref 81 protocol 81` and `ip route add
    /// local default dev lo table TABLE proto 81`. Tells whether something was missing or wrong.
    pub(super) async fn ensure(&self, family: Family, marks: Marks, table: u32) -> io::Result<bool> {
        let routes = self.routes(family, Some(table)).await?;
        if let Some(foreign) = routes.iter().find(|route| !is_ours(route)) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "routing table {table} is used by somebody else (a route with protocol {}); set proxy.transparent_table to one \
                     that is free",
                    u8::from(foreign.header.protocol)
                ),
            ));
        }
        let mut changed = false;
        // The route first: without it, the rule leads to nothing, and packets go on to the next.
        if routes.is_empty() {
            let added = self.handle.route().add(local_default(family, table)).execute().await;
            added.map_err(|e| failed("add a local default route", &e))?;
            changed = true;
        }
        let wanted = rule(family, marks, table);
        let mut is_there = false;
        for found in self.rules(family).await? {
            if !is_there && is_rule(&found, &wanted) {
                is_there = true;
            } else {
                self.remove_rule(found).await?;
                changed = true;
            }
        }
        if !is_there {
            let mut add = self.handle.rule().add();
            *add.message_mut() = wanted;
            add.execute().await.map_err(|e| failed("add a routing rule", &e))?;
            changed = true;
        }
        Ok(changed)
    }

    /// Takes every rule and route of ours away, whatever their mark and table. Tells whether there were any.
    pub(super) async fn remove(&self, family: Family) -> io::Result<bool> {
        let rules = self.rules(family).await?;
        let mut found = !rules.is_empty();
        for rule in rules {
            self.remove_rule(rule).await?;
        }
        for route in self.routes(family, None).await?.into_iter().filter(is_ours) {
            found = true;
            self.remove_route(route).await?;
        }
        Ok(found)
    }

    /// Takes the routes away that an agent with another configuration has left in other tables.
    pub(super) async fn remove_from_other_tables(&self, family: Family, table: u32) -> io::Result<()> {
        for route in self.routes(family, None).await? {
            if is_ours(&route) && table_of(&route) != table {
                self.remove_route(route).await?;
            }
        }
        Ok(())
    }

    async fn remove_route(&self, route: RouteMessage) -> io::Result<()> {
        let removed = self.handle.route().del(route).execute().await;
        removed.map_err(|e| failed("remove a local default route", &e))
    }

    async fn remove_rule(&self, rule: RuleMessage) -> io::Result<()> {
        self.handle.rule().del(rule).execute().await.map_err(|e| failed("remove a routing rule", &e))
    }

    /// Our rules.
    async fn rules(&self, family: Family) -> io::Result<Vec<RuleMessage>> {
        let mut listed = self.handle.rule().get(family.version()).execute();
        let mut rules = Vec::new();
        while let Some(rule) = or_nothing(listed.try_next().await, "list the routing rules")? {
            if rule.attributes.contains(&RuleAttribute::Protocol(OURS)) {
                rules.push(rule);
            }
        }
        Ok(rules)
    }

    /// The routes of a table; without one, ours of all tables.
    async fn routes(&self, family: Family, table: Option<u32>) -> io::Result<Vec<RouteMessage>> {
        let mut asked = RouteMessage::default();
        asked.header.address_family = family.code();
        match table {
            Some(table) => asked.attributes.push(RouteAttribute::Table(table)),
            None => asked.header.protocol = OURS,
        }
        let mut listed = self.handle.route().get(asked).execute();
        let mut routes = Vec::new();
        while let Some(route) = or_nothing(listed.try_next().await, "list routes")? {
            if table.is_none_or(|table| table_of(&route) == table) {
                routes.push(route);
            }
        }
        Ok(routes)
    }

    /// The way to an address: `ip route get ADDRESS`.
    pub(super) async fn route_to(&self, address: IpAddr) -> io::Result<Route> {
        let mut asked = RouteMessage::default();
        (asked.header.address_family, asked.header.destination_prefix_length) =
            if address.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
        let destination = match address {
            IpAddr::V4(v4) => RouteAddress::Inet(v4),
            IpAddr::V6(v6) => RouteAddress::Inet6(v6),
        };
        asked.attributes.push(RouteAttribute::Destination(destination));
        let mut answer = self.handle.route().get(asked).execute();
        let found = match answer.try_next().await {
            Ok(Some(found)) => found,
            // Unreachable, prohibited, or of a family that this host does not speak.
            Ok(None) | Err(rtnetlink::Error::NetlinkError(_)) => return Ok(Route::Nowhere),
            Err(error) => return Err(failed(&format!("find the route to {address}"), &error)),
        };
        if found.header.kind == RouteType::Local {
            return Ok(Route::Local);
        }
        let is_gateway = |attribute: &RouteAttribute| {
            matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
        };
        let link = found.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        Ok(match link {
            Some(link) if found.attributes.iter().any(is_gateway) => Route::Gateway(link),
            Some(link) => Route::Link(link),
            None => Route::Nowhere,
        })
    }

    /// Every interface.
    pub(super) async fn links(&self) -> io::Result<Links> {
        let mut links = Links::new();
        let mut listed = self.handle.link().get().execute();
        while let Some(message) = or_nothing(listed.try_next().await, "list the interfaces")? {
            links.insert(message.header.index, link(message));
        }
        let mut listed = self.handle.address().get().execute();
        while let Some(message) = or_nothing(listed.try_next().await, "list the addresses")? {
            let Some(link) = links.get_mut(&message.header.index) else { continue };
            let (mut own, mut range) = (None, None);
            for attribute in message.attributes {
                match attribute {
                    AddressAttribute::Local(address) => own = Some(address),
                    // On a cable with two ends, that of the other one.
                    AddressAttribute::Address(address) => range = Some(address),
                    _ => {}
                }
            }
            let Some(range) = range.or(own) else { continue };
            let prefix = Prefix::new(range, message.header.prefix_len);
            link.addresses.extend(prefix.map(|prefix| (own.unwrap_or(range), prefix)));
        }
        Ok(links)
    }
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link { name: String::new(), kind: Kind::Outside, bridge: None, addresses: Vec::new() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.bridge = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = match kind {
                            InfoKind::Veth | InfoKind::Netkit | InfoKind::Tun => Kind::Inside,
                            InfoKind::Bridge => Kind::Bridge,
                            InfoKind::Vxlan => Kind::Tunnel,
                            _ => Kind::Outside,
                        };
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn local_default(family: Family, table: u32) -> RouteMessage {
    match family {
        // As `ip route` does: a local IPv4 route is of scope host.
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
            .scope(RouteScope::Host)
            .kind(RouteType::Local)
            .protocol(OURS)
            .table_id(table)
            .output_interface(LOOPBACK)
            .build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .kind(RouteType::Local)
            .protocol(OURS)
            .table_id(table)
            .output_interface(LOOPBACK)
            .build(),
    }
}

fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == OURS
}

fn table_of(route: &RouteMessage) -> u32 {
    let named = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    named.unwrap_or(route.header.table.into())
}

fn rule(family: Family, marks: Marks, table: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family.code();
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::FwMark(marks.answers),
        RuleAttribute::FwMask(marks.mask),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(OURS),
    ];
    rule
}

/// The next of a list. There is none of a family that this host does not speak, or in a table that nobody has used.
fn or_nothing<T>(next: Result<Option<T>, rtnetlink::Error>, what: &str) -> io::Result<Option<T>> {
    match next {
        Ok(next) => Ok(next),
        Err(error) => match failed(what, &error) {
            error if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Unsupported) => Ok(None),
            error => Err(error),
        },
    }
}
