//! The kernel's routes, read by netlink. Its types go to the rooms' own netlink files and no further.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use nerve::model::Prefix;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder, new_connection};

use super::{Kind, Route};
use crate::netlink::failed;

/// Every route of every table, on a connection of its own.
///
/// # Errors
/// The kernel does not tell.
pub async fn read() -> io::Result<Vec<Route>> {
    let (connection, handle, _) = new_connection()?;
    tokio::select! {
        routes = list(&handle) => routes,
        () = connection => Err(io::Error::other("the kernel ended the netlink connection")),
    }
}

/// Every route of every table: `ip route show table all`, `ip -6 route show table all`.
pub(crate) async fn list(handle: &Handle) -> io::Result<Vec<Route>> {
    let names = link_names(handle).await?;
    let mut routes = Vec::new();
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    for family in [v4, v6] {
        let mut listed = handle.route().get(family).execute();
        while let Some(message) = listed.try_next().await.map_err(|e| failed("list the routes", &e))? {
            routes.extend(route(&message, &names));
        }
    }
    Ok(routes)
}

/// Where a route leads; all of its family for a default route.
pub(crate) fn destination_of(message: &RouteMessage) -> Option<Prefix> {
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    Prefix::new(address.unwrap_or(any), message.header.destination_prefix_length)
}

async fn link_names(handle: &Handle) -> io::Result<HashMap<u32, String>> {
    let mut names = HashMap::new();
    let mut links = handle.link().get().execute();
    while let Some(message) = links.try_next().await.map_err(|e| failed("list the interfaces", &e))? {
        let name = message.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        names.extend(name.map(|name| (message.header.index, name)));
    }
    Ok(names)
}

fn route(message: &RouteMessage, names: &HashMap<u32, String>) -> Option<Route> {
    let kind = match message.header.kind {
        RouteType::Local => Kind::Local,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => {
            Kind::Refuses
        }
        _ => Kind::Forwards,
    };
    let device = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => names.get(index).cloned(),
        _ => None,
    });
    let protocol = message.header.protocol.into();
    Some(Route { destination: destination_of(message)?, kind, device, protocol })
}
