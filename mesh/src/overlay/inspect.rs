//! Is what is attached still as it was made? Asks the kernel, on the host and in the container, and changes nothing.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use nerve::model::{Mac, Prefix};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::attach::{AttachError, Attached, Attachments, attached, veth};
use super::messages::local_address;
use super::netlink::{failed, or_none, with_netlink};
use super::veth::{ContainerLink, Veth};
use crate::netns::Namespace;

/// The interface of a container as its kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Seen {
    mac: Option<Mac>,
    is_up: bool,
    addresses: BTreeSet<(IpAddr, u8)>,
    /// Where to, and by which gateway.
    routes: BTreeSet<(Prefix, IpAddr)>,
}

impl Attachments {
    /// What of an attachment is not as it was made, a sentence each; `None`: there is none of that name.
    pub(super) async fn check(&self, id: &str) -> Result<Option<(Attached, Vec<String>)>, AttachError> {
        let Some(record) = self.record(id) else { return Ok(None) };
        let place = self.place_of(&record.network).await?;
        let wanted = veth(&record, &place, self.ranges(&record.network)?);
        let link = with_netlink(async |netlink| netlink.container_link(&wanted.link).await).await;
        let link = link.map_err(AttachError::Kernel)?;
        let mut problems = on_host(&wanted, place.bridge, link);
        if record.details.unfinished {
            problems.push("it is being attached".to_owned());
        }
        if wanted.addresses.len() < record.addresses.len() {
            problems.push("it has addresses of a subnet that is no longer this node's".to_owned());
        }
        let path = &record.details.namespace;
        match Namespace::open(path) {
            Ok(namespace) => {
                let name = wanted.interface.clone();
                let look = move || namespace.block_on(|| look(name));
                let looked = tokio::task::spawn_blocking(look).await;
                let seen = looked.unwrap_or_else(|error| Err(io::Error::other(error)));
                problems.extend(inside(&wanted, seen.map_err(AttachError::Kernel)?.as_ref()));
            }
            Err(error) => problems.push(format!("its namespace {} is gone: {error}", path.display())),
        }
        Ok(Some((attached(id, &record), problems)))
    }
}

fn on_host(wanted: &Veth, bridge: u32, link: Option<ContainerLink>) -> Vec<String> {
    let Some(link) = link else { return vec![format!("its link {} on the host is gone", wanted.link)] };
    let mut problems = Vec::new();
    if !link.is_up {
        problems.push(format!("its link {} on the host is down", wanted.link));
    }
    if link.bridge != Some(bridge) {
        problems.push(format!("its link {} on the host is not on the network's bridge", wanted.link));
    }
    problems
}

fn inside(wanted: &Veth, seen: Option<&Seen>) -> Vec<String> {
    let name = &wanted.interface;
    let Some(seen) = seen else { return vec![format!("it has no interface {name}")] };
    let mut problems = Vec::new();
    if seen.mac != Some(wanted.mac) {
        problems.push(format!("the MAC of {name} is not {}", wanted.mac));
    }
    if !seen.is_up {
        problems.push(format!("{name} is down"));
    }
    for (address, length, gateway) in &wanted.addresses {
        if !seen.addresses.contains(&(*address, *length)) {
            problems.push(format!("{name} has not the address {address}/{length}"));
        }
        let ranges = wanted.ranges.iter().filter(|range| range.is_ipv4() == address.is_ipv4());
        let lacking = ranges.filter(|range| !seen.routes.contains(&(**range, *gateway)));
        problems.extend(lacking.map(|range| format!("it has no route to {range} via {gateway}")));
    }
    problems
}

/// The interface of this name in the namespace of the calling thread.
async fn look(name: String) -> io::Result<Option<Seen>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::select! {
        seen = seen(&handle, &name) => seen,
        () = connection => Err(io::Error::other("the kernel ended the netlink connection")),
    }
}

async fn seen(handle: &Handle, name: &str) -> io::Result<Option<Seen>> {
    let mut links = handle.link().get().execute();
    let (mut seen, mut index) = (Seen::default(), None);
    while let Some(message) = links.try_next().await.map_err(|e| failed("list the container's links", &e))? {
        if !message.attributes.contains(&LinkAttribute::IfName(name.to_owned())) {
            continue;
        }
        index = Some(message.header.index);
        seen.is_up = message.header.flags.contains(LinkFlags::Up);
        seen.mac = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(address) => address.as_slice().try_into().ok().map(Mac),
            _ => None,
        });
    }
    let Some(index) = index else { return Ok(None) };
    let mut addresses = handle.address().get().execute();
    while let Some(message) = or_none(addresses.try_next().await, "list the container's addresses")? {
        let address = local_address(&message.attributes).filter(|_| message.header.index == index);
        seen.addresses.extend(address.map(|address| (address, message.header.prefix_len)));
    }
    for asked in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let mut routes = handle.route().get(asked).execute();
        while let Some(message) = or_none(routes.try_next().await, "list the container's routes")? {
            seen.routes.extend(route(&message, index));
        }
    }
    Ok(Some(seen))
}

/// Where a route over this link leads to, and by which gateway; `None`: it is not over this link, or without one.
fn route(message: &RouteMessage, over: u32) -> Option<(Prefix, IpAddr)> {
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    let (mut to, mut via, mut link) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let to = Prefix::new(to?, message.header.destination_prefix_length)?;
    Some((to, via?)).filter(|_| link == Some(over))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Veth {
        Veth {
            link: "plxe1".to_owned(),
            interface: "eth0".to_owned(),
            mac: Mac([2, 0, 0, 0, 0, 7]),
            mtu: 1450,
            programs: false,
            addresses: vec![("10.42.3.7".parse().unwrap(), 24, "10.42.3.1".parse().unwrap())],
            ranges: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
        }
    }

    fn as_wanted() -> Seen {
        Seen {
            mac: Some(wanted().mac),
            is_up: true,
            addresses: [("10.42.3.7".parse().unwrap(), 24), ("fe80::7".parse().unwrap(), 64)].into(),
            routes: [("10.42.0.0/16".parse().unwrap(), "10.42.3.1".parse().unwrap())].into(),
        }
    }

    #[test]
    fn what_is_as_it_was_made_has_no_problem() {
        assert_eq!(inside(&wanted(), Some(&as_wanted())), Vec::<String>::new());
        let link = ContainerLink {
            index: 7,
            bridge: Some(3),
            is_up: true,
            passes: true,
            mtu: 1450,
            leads_away: true,
        };
        assert_eq!(on_host(&wanted(), 3, Some(link)), Vec::<String>::new());
    }

    #[test]
    fn whatever_is_missing_in_a_container_is_named() {
        let lost = |change: fn(&mut Seen)| {
            let mut seen = as_wanted();
            change(&mut seen);
            inside(&wanted(), Some(&seen))
        };
        assert_eq!(lost(|seen| seen.is_up = false), ["eth0 is down"]);
        assert_eq!(lost(|seen| seen.mac = None), ["the MAC of eth0 is not 02:00:00:00:00:07"]);
        assert_eq!(lost(|seen| seen.addresses.clear()), ["eth0 has not the address 10.42.3.7/24"]);
        assert_eq!(lost(|seen| seen.routes.clear()), ["it has no route to 10.42.0.0/16 via 10.42.3.1"]);
        assert_eq!(inside(&wanted(), None), ["it has no interface eth0"]);
    }

    #[test]
    fn whatever_is_missing_on_the_host_is_named() {
        assert_eq!(on_host(&wanted(), 3, None), ["its link plxe1 on the host is gone"]);
        let astray = ContainerLink {
            index: 7,
            bridge: None,
            is_up: false,
            passes: false,
            mtu: 1450,
            leads_away: true,
        };
        let problems = on_host(&wanted(), 3, Some(astray));
        assert_eq!(
            problems,
            [
                "its link plxe1 on the host is down",
                "its link plxe1 on the host is not on the network's bridge"
            ]
        );
    }
}
