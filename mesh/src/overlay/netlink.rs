//! The kernel's links, routes, neighbours and forwarding entries, read and changed by netlink. Its types stop here.
//!
//! Ours are the links with names of ours, everything on them, and routes with our protocol number: they are found again after a
//! crash, and nobody else's is ever touched. The connection is a future that moves while something else is awaited: whoever opens
//! one polls both.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt, TryStreamExt};
use nerve::model::{Mac, Prefix, Vni};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVxlan, RouteMessageBuilder};

use super::messages::{OURS, local_address};
use super::plan::{Entry, Links, Place};
pub(super) use crate::netlink::failed;

/// The routing table that every host has (`RT_TABLE_MAIN` of the kernel).
const MAIN: u32 = 254;
/// Requests that are under way at once; the kernel answers one after the other.
pub(super) const AT_ONCE: usize = 64;

/// An open connection to the kernel.
pub(super) struct Netlink {
    pub(super) handle: Handle,
}

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) is_up: bool,
    pub(super) mtu: u32,
    pub(super) mac: Option<Mac>,
    pub(super) kind: LinkKind,
}

/// What a link is, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LinkKind {
    Bridge,
    Vxlan { vni: u32, port: u16, local: Option<IpAddr>, learns: bool },
    Other,
}

impl LinkKind {
    /// The tunnel of a network.
    pub(super) fn of_vxlan(wanted: &Links) -> Self {
        Self::Vxlan { vni: wanted.vni.get(), port: wanted.port, local: wanted.end(), learns: false }
    }
}

impl Link {
    /// Has it the state, the MTU and the MAC that a network's links have?
    pub(super) fn is_set_as(&self, wanted: &Links) -> bool {
        self.is_up && self.mtu == wanted.mtu && self.mac == Some(wanted.mac)
    }
}

/// The indexes of a network's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Indexes {
    pub(super) bridge: u32,
    pub(super) vxlan: u32,
}

impl Netlink {
    /// Opens one; the future must be polled for as long as it is used, and ends when the kernel ends it.
    pub(super) fn open() -> io::Result<(impl Future<Output = ()> + Send, Self)> {
        // Strict, so that a request for what is on one link is answered with that alone.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        Ok((connection, Self { handle }))
    }

    /// Our links, by name: those of networks that are no more as well.
    pub(super) async fn links(&self) -> io::Result<BTreeMap<String, Link>> {
        let mut links = BTreeMap::new();
        let mut listed = self.handle.link().get().execute();
        while let Some(message) = listed.try_next().await.map_err(|e| failed("list the links", &e))? {
            if let Some(name) = name_of(&message).filter(|name| is_ours(name)) {
                links.insert(name.to_owned(), link(&message));
            }
        }
        Ok(links)
    }

    /// Makes a network's links what they are to be. A VXLAN device of another VNI, port or address is replaced, since those
    /// cannot be changed. `programs`: are to see what comes in by it.
    pub(super) async fn ensure_links(&self, wanted: &Links, programs: bool) -> io::Result<Indexes> {
        let there = self.links().await?;
        let (bridge, vxlan) = (wanted.bridge(), wanted.vxlan());
        let bridge_index = match there.get(&bridge) {
            Some(link) if link.kind == LinkKind::Bridge => {
                self.adjust(&bridge, link, wanted).await?;
                link.index
            }
            Some(_) => return Err(taken(&bridge)),
            None => {
                // Of its own, or it would have the lowest of its ports: the gateway's would change as containers come and go.
                let message = LinkBridge::new(&bridge).address(wanted.mac.0.to_vec());
                let message = message.mtu(wanted.mtu).up().build();
                self.add_link(&bridge, message).await?
            }
        };
        self.ensure_addresses(bridge_index, &bridge, wanted.bridge_addresses()).await?;
        let kind = LinkKind::of_vxlan(wanted);
        let vxlan_index = match there.get(&vxlan) {
            Some(link) if link.kind == kind => {
                self.adjust(&vxlan, link, wanted).await?;
                link.index
            }
            Some(link) if matches!(link.kind, LinkKind::Vxlan { .. }) => {
                self.remove_link(link.index).await?;
                self.add_vxlan(&vxlan, wanted, programs).await?
            }
            Some(_) => return Err(taken(&vxlan)),
            None => self.add_vxlan(&vxlan, wanted, programs).await?,
        };
        self.ensure_addresses(vxlan_index, &vxlan, wanted.vxlan_addresses()).await?;
        Ok(Indexes { bridge: bridge_index, vxlan: vxlan_index })
    }

    async fn add_vxlan(&self, name: &str, wanted: &Links, programs: bool) -> io::Result<u32> {
        let message = vxlan_message(name, wanted);
        if !programs {
            return self.add_link(name, message.up().build()).await;
        }
        let index = self.add_link(name, message.build()).await?;
        self.set_up_with_place(index, name).await?;
        Ok(index)
    }

    /// Sets a link up that has a place for programs by then, if this kernel has such places at all.
    pub(super) async fn set_up_with_place(&self, index: u32, name: &str) -> io::Result<()> {
        if let Err(error) = self.make_place(index).await {
            tracing::info!(link = name, %error, "this kernel makes no place for programs at the link; rules send its packets on; set overlay.fast_path to \"filter\" where that is to stay so");
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        let set = self.handle.link().set(up).execute().await;
        set.map_err(|e| in_the_way(failed(&format!("set {name} up"), &e)))
    }

    pub(super) async fn add_link(&self, name: &str, message: LinkMessage) -> io::Result<u32> {
        let added = self.handle.link().add(message).execute().await;
        added.map_err(|e| in_the_way(failed(&format!("make the link {name}"), &e)))?;
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await.map_err(|e| failed(&format!("find the link {name}"), &e))? {
            Some(message) => Ok(message.header.index),
            None => {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("the link {name} was removed at once")))
            }
        }
    }

    async fn adjust(&self, name: &str, link: &Link, wanted: &Links) -> io::Result<()> {
        if link.is_set_as(wanted) {
            return Ok(());
        }
        let mut message = LinkUnspec::new_with_index(link.index).mtu(wanted.mtu).up();
        if link.mac != Some(wanted.mac) {
            message = message.address(wanted.mac.0.to_vec());
        }
        let set = self.handle.link().set(message.build()).execute().await;
        set.map_err(|e| in_the_way(failed(&format!("set MTU, MAC and state of {name}"), &e)))
    }

    /// Removes a link, with everything on it.
    pub(super) async fn remove_link(&self, index: u32) -> io::Result<()> {
        let removed = self.handle.link().del(index).execute().await;
        or_gone(removed).map_err(|e| failed("remove a link", &e))
    }

    /// Gives a link these addresses, and takes all others but IPv6's own of the link.
    pub(super) async fn ensure_addresses(
        &self,
        index: u32,
        link: &str,
        mut lacking: BTreeSet<(IpAddr, u8)>,
    ) -> io::Result<()> {
        let mut obsolete = Vec::new();
        let mut listed = self.handle.address().get().set_link_index_filter(index).execute();
        while let Some(message) = listed.try_next().await.map_err(|e| failed("list addresses", &e))? {
            let Some(address) = local_address(&message.attributes) else { continue };
            let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            if !lacking.remove(&(address, message.header.prefix_len)) && !is_link_local {
                obsolete.push(message);
            }
        }
        for message in obsolete {
            or_gone(self.handle.address().del(message).execute().await)
                .map_err(|e| failed(&format!("take an address from {link}"), &e))?;
        }
        for (address, length) in lacking {
            let mut request = self.handle.address().add(index, address, length);
            if address.is_ipv6() {
                // The subnet is this node's alone: there is nobody to ask whether the address is taken.
                request.message_mut().header.flags |=
                    rtnetlink::packet_route::address::AddressHeaderFlags::Nodad;
            }
            request.execute().await.map_err(|e| failed(&format!("give {address} to {link}"), &e))?;
        }
        Ok(())
    }

    /// What peers have on a VXLAN device.
    pub(super) async fn entries(&self, vxlan: u32) -> io::Result<BTreeSet<Entry>> {
        let mut entries = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut asked = self.handle.neighbours().get().set_address_family(family);
            asked.message_mut().attributes.push(NeighbourAttribute::IfIndex(vxlan));
            let mut listed = asked.execute();
            while let Some(message) = or_none(listed.try_next().await, "list neighbours")? {
                let is_permanent = message.header.state == NeighbourState::Permanent;
                entries
                    .extend(neighbour(&message).filter(|_| message.header.ifindex == vxlan && is_permanent));
            }
            let mut asked = RouteMessage::default();
            asked.header.address_family = family;
            asked.header.protocol = OURS;
            asked.attributes.push(RouteAttribute::Oif(vxlan));
            let mut listed = self.handle.route().get(asked).execute();
            while let Some(message) = or_none(listed.try_next().await, "list routes")? {
                if message.header.protocol == OURS && message.attributes.contains(&RouteAttribute::Oif(vxlan))
                {
                    entries.extend(route(&message));
                }
            }
        }
        let mut asked = self.handle.neighbours().get().set_address_family(AddressFamily::Bridge);
        asked.message_mut().header.ifindex = vxlan;
        let mut listed = asked.execute();
        while let Some(message) = or_none(listed.try_next().await, "list forwarding entries")? {
            if message.header.ifindex == vxlan {
                entries.extend(forward(&message));
            }
        }
        Ok(entries)
    }

    /// Adds these, or replaces what stands in their place. They are sent without waiting for one another's answers, and worked off
    /// in their order.
    pub(super) async fn add(&self, vxlan: u32, entries: &[Entry]) -> io::Result<()> {
        let requests: Vec<_> = entries.iter().map(|entry| self.add_one(vxlan, *entry)).collect();
        let mut requests = futures_util::stream::iter(requests).buffered(AT_ONCE);
        while let Some(done) = requests.next().await {
            done?;
        }
        Ok(())
    }

    async fn add_one(&self, vxlan: u32, entry: Entry) -> io::Result<()> {
        let added = match entry {
            Entry::Forward { mac, to, by } => {
                let mut request = self.handle.neighbours().add_bridge(vxlan, &mac.0).destination(to);
                request.message_mut().attributes.extend(by.map(NeighbourAttribute::IfIndex));
                request.flags(NeighbourFlags::Own).replace().execute().await
            }
            Entry::Neighbour { gateway, mac } => {
                let request = self.handle.neighbours().add(vxlan, gateway).link_layer_address(&mac.0);
                request.replace().execute().await
            }
            Entry::Route { .. } | Entry::Return { .. } | Entry::Direct { .. } => {
                let request = self.handle.route().add(route_message(vxlan, entry));
                request.replace().execute().await
            }
        };
        added.map_err(|e| failed(&format!("set {entry}"), &e))
    }

    /// Removes these; those that are gone already are no error.
    pub(super) async fn remove(&self, vxlan: u32, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            let removed = match *entry {
                Entry::Forward { mac, to, by } => {
                    let mut message = NeighbourMessage::default();
                    message.header.family = AddressFamily::Bridge;
                    message.header.ifindex = vxlan;
                    message.header.flags = NeighbourFlags::Own;
                    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
                    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(to)));
                    message.attributes.extend(by.map(NeighbourAttribute::IfIndex));
                    self.handle.neighbours().del(message).execute().await
                }
                Entry::Neighbour { gateway, .. } => {
                    let mut message = NeighbourMessage::default();
                    message.header.family = family(gateway);
                    message.header.ifindex = vxlan;
                    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(gateway)));
                    self.handle.neighbours().del(message).execute().await
                }
                Entry::Route { .. } | Entry::Return { .. } | Entry::Direct { .. } => {
                    self.handle.route().del(route_message(vxlan, *entry)).execute().await
                }
            };
            or_gone(removed).map_err(|e| failed(&format!("remove {entry}"), &e))?;
        }
        Ok(())
    }
}

/// Does something on a connection of its own.
pub(super) async fn with_netlink<T>(work: impl AsyncFnOnce(&Netlink) -> io::Result<T>) -> io::Result<T> {
    let (connection, netlink) = Netlink::open()?;
    tokio::select! {
        done = work(&netlink) => done,
        () = connection => Err(io::Error::other("the kernel ended the netlink connection")),
    }
}

fn vxlan_message(name: &str, wanted: &Links) -> LinkMessageBuilder<LinkVxlan> {
    let message = LinkVxlan::new(name, wanted.vni.get()).port(wanted.port).learning(false);
    let message = match wanted.end() {
        Some(IpAddr::V4(v4)) => message.local(v4),
        Some(IpAddr::V6(v6)) => message.local6(v6),
        // Of IPv6, with the address of the link that a packet leaves by.
        None => message.local6(Ipv6Addr::UNSPECIFIED),
    };
    message.address(wanted.mac.0.to_vec()).mtu(wanted.mtu)
}

fn route_message(vxlan: u32, entry: Entry) -> RouteMessage {
    let (gateway, subnet, link, table) = match entry {
        Entry::Route { subnet, gateway, source } => (gateway, Some((subnet, source)), vxlan, MAIN),
        Entry::Direct { subnet, via, link, source } => (via, Some((subnet, source)), link, MAIN),
        Entry::Return { table, gateway } => (gateway, None, vxlan, table),
        Entry::Forward { .. } | Entry::Neighbour { .. } => return RouteMessage::default(),
    };
    match gateway {
        IpAddr::V4(gateway) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).onlink();
            let route = route.output_interface(link).protocol(OURS).table_id(table);
            match subnet.map(|(subnet, source)| (subnet.network(), subnet.length(), source)) {
                Some((IpAddr::V4(network), length, IpAddr::V4(source))) => {
                    route.destination_prefix(network, length).pref_source(source).build()
                }
                _ => route.build(),
            }
        }
        IpAddr::V6(gateway) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).onlink();
            let route = route.output_interface(link).protocol(OURS).table_id(table);
            match subnet.map(|(subnet, source)| (subnet.network(), subnet.length(), source)) {
                Some((IpAddr::V6(network), length, IpAddr::V6(source))) => {
                    route.destination_prefix(network, length).pref_source(source).build()
                }
                _ => route.build(),
            }
        }
    }
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        is_up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: None,
        kind: LinkKind::Other,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(address) => link.mac = address.as_slice().try_into().ok().map(Mac),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
            _ => {}
        }
    }
    link
}

fn kind(infos: &[LinkInfo]) -> LinkKind {
    if infos.contains(&LinkInfo::Kind(InfoKind::Bridge)) {
        return LinkKind::Bridge;
    }
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    });
    let Some(data) = data else { return LinkKind::Other };
    let (mut of_vni, mut of_port, mut of_local, mut learns) = (0, 0, None, false);
    for info in data {
        match info {
            InfoVxlan::Id(vni) => of_vni = *vni,
            InfoVxlan::Port(port) => of_port = *port,
            InfoVxlan::Local(v4) => of_local = Some(IpAddr::V4(*v4)),
            InfoVxlan::Local6(v6) => of_local = Some(IpAddr::V6(*v6)),
            InfoVxlan::Learning(learning) => learns = *learning,
            _ => {}
        }
    }
    LinkKind::Vxlan { vni: of_vni, port: of_port, local: of_local, learns }
}

fn neighbour(message: &NeighbourMessage) -> Option<Entry> {
    let (gateway, mac) = neighbour_parts(message);
    Some(Entry::Neighbour { gateway: gateway?, mac: mac? })
}

/// The place of a neighbour or of a forwarding entry. A neighbour that goes has no MAC any more.
pub(super) fn neighbour_place(message: &NeighbourMessage) -> Option<Place> {
    let (gateway, mac) = neighbour_parts(message);
    match message.header.family {
        AddressFamily::Bridge => mac.map(Place::Forward),
        _ => gateway.map(Place::Neighbour),
    }
}

fn neighbour_parts(message: &NeighbourMessage) -> (Option<IpAddr>, Option<Mac>) {
    let (mut gateway, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => gateway = ip(address),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    (gateway, mac)
}

fn forward(message: &NeighbourMessage) -> Option<Entry> {
    let (to, mac) = neighbour_parts(message);
    let by = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::IfIndex(link) => Some(*link),
        _ => None,
    });
    Some(Entry::Forward { mac: mac?, to: to?, by })
}

pub(super) fn route(message: &RouteMessage) -> Option<Entry> {
    let (mut network, mut via, mut from, mut table) = (None, None, None, message.header.table.into());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(named) => table = *named,
            RouteAttribute::Destination(address) => network = route_ip(address),
            RouteAttribute::Gateway(address) => via = route_ip(address),
            RouteAttribute::PrefSource(address) => from = route_ip(address),
            _ => {}
        }
    }
    let gateway = via?;
    if table != MAIN && network.is_none() {
        return Some(Entry::Return { table, gateway });
    }
    let subnet = Prefix::new(network?, message.header.destination_prefix_length)?;
    // One without a source is not as it is to be, and is replaced.
    Some(Entry::Route { subnet, gateway, source: from.unwrap_or(gateway) })
}

fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        NeighbourAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        // Of a forwarding entry, whose family says nothing of its destination's.
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
        },
        _ => None,
    }
}

pub(super) fn route_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(super) fn name_of(message: &LinkMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// Bridges and VXLAN devices of networks: a prefix of ours and a VNI.
pub(super) fn is_ours(name: &str) -> bool {
    ["plxb", "plxv"]
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(|vni| vni.parse::<Vni>().is_ok()))
}

/// What a VXLAN device meets that somebody else has the port or the number of, with what to do.
fn in_the_way(error: io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the UDP port of the tunnels (overlay.port) is somebody else's: `ss -lunp` shows whose; end that, or take another port \
             on every node"
        }
        io::ErrorKind::AlreadyExists => {
            "is there another VXLAN device with this number and port (`ip -d link show type vxlan`)?"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}; {advice}"))
}

fn taken(name: &str) -> io::Error {
    let what = format!(
        "there is a link {name} that is not of the kind that this network needs; remove it (ip link del {name})"
    );
    io::Error::new(io::ErrorKind::AlreadyExists, what)
}

/// What is gone already needs no removing.
pub(super) fn or_gone(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if is_gone(&message.to_io()) => Ok(()),
        result => result,
    }
}

fn is_gone(error: &io::Error) -> bool {
    const ESRCH: i32 = 3;
    const ENODEV: i32 = 19;
    const EADDRNOTAVAIL: i32 = 99;
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(ESRCH | ENODEV | EADDRNOTAVAIL))
}

/// The next of a list. There is none of a family that this host does not speak, and on a link that is gone.
pub(super) fn or_none<T>(next: Result<Option<T>, rtnetlink::Error>, what: &str) -> io::Result<Option<T>> {
    match next {
        Ok(next) => Ok(next),
        Err(error) => match failed(what, &error) {
            error if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            error => Err(error),
        },
    }
}
