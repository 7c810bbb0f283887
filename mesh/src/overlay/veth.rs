//! A container's link: a veth pair, one end on the network's bridge, the other one in the container's namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use futures_util::TryStreamExt;
use nerve::model::{Mac, Prefix};
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage, State};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::messages::LOOPBACK;
use super::netlink::{Netlink, failed, name_of, or_gone};
use crate::netns::Namespace;

/// The beginning of the names of links to containers.
pub(super) const LINK: &str = "plxe";

/// How long the kernel may take until packets pass a link both of whose ends are up.
const PASSES_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at that.
const PAUSE: Duration = Duration::from_millis(5);

/// A container's link as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContainerLink {
    pub(super) index: u32,
    pub(super) bridge: Option<u32>,
    pub(super) is_up: bool,
    /// Packets pass it. The kernel sees to that some time after both ends are up, which is long where it has many links to see to.
    pub(super) passes: bool,
    pub(super) mtu: u32,
    /// Its other end is in another namespace.
    pub(super) leads_away: bool,
}

/// By name.
pub(super) type ContainerLinks = BTreeMap<String, ContainerLink>;

/// What a container gets.
#[derive(Debug, Clone)]
pub(super) struct Veth {
    /// The end on this host.
    pub(super) link: String,
    /// The end in the container.
    pub(super) interface: String,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    /// A program is to see what the container sends.
    pub(super) programs: bool,
    /// With the length of the subnet, and its gateway.
    pub(super) addresses: Vec<(IpAddr, u8, IpAddr)>,
    /// What is behind the gateway whatever else the container is attached to.
    pub(super) ranges: Vec<Prefix>,
}

impl Netlink {
    /// Makes the pair: `ip link add LINK mtu MTU master BRIDGE up type veth peer name INTERFACE address MAC netns …`. Without a
    /// namespace, both ends stay on this host.
    pub(super) async fn add_veth(
        &self,
        veth: &Veth,
        bridge: u32,
        namespace: Option<&Namespace>,
    ) -> io::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(veth.interface.clone())
            .mtu(veth.mtu)
            .address(veth.mac.0.to_vec());
        let peer = match namespace {
            Some(namespace) => peer.setns_by_fd(namespace.as_raw_fd()),
            None => peer,
        };
        let peer = peer.build();
        let pair = LinkVeth::new(&veth.link, &veth.interface)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .mtu(veth.mtu)
            .controller(bridge);
        // A place for programs costs packets where it is made on a link that is up.
        let pair = if veth.programs { pair } else { pair.up() };
        let what = format!("make {} for the container, with its other end {}", veth.interface, veth.link);
        self.handle.link().add(pair.build()).execute().await.map_err(|e| failed(&what, &e))?;
        if veth.programs
            && let Some(link) = self.container_link(&veth.link).await?
        {
            self.set_up_with_place(link.index, &veth.link).await?;
        }
        Ok(())
    }

    /// The ends of containers' links on this host.
    pub(super) async fn container_links(&self) -> io::Result<ContainerLinks> {
        let mut links = ContainerLinks::new();
        let mut listed = self.handle.link().get().execute();
        while let Some(message) = listed.try_next().await.map_err(|e| failed("list the links", &e))? {
            if let Some(name) = name_of(&message).filter(|name| name.starts_with(LINK)) {
                links.insert(name.to_owned(), container_link(&message));
            }
        }
        Ok(links)
    }

    /// The end of one on this host.
    pub(super) async fn container_link(&self, link: &str) -> io::Result<Option<ContainerLink>> {
        let mut found = self.handle.link().get().match_name(link.to_owned()).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.map(|message| container_link(&message))),
            Err(error) => or_gone(Err(error)).map(|()| None).map_err(|e| failed(&format!("find {link}"), &e)),
        }
    }

    /// Waits until packets pass it: what is sent before is lost.
    pub(super) async fn wait_until_it_passes(&self, link: &str) -> io::Result<()> {
        let passes = async {
            while self.container_link(link).await?.is_some_and(|found| !found.passes) {
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        };
        tokio::time::timeout(PASSES_WITHIN, passes).await.unwrap_or_else(|_| {
            tracing::warn!(link, "no packets pass the link of a container yet");
            Ok(())
        })
    }

    /// Puts the end on this host on the bridge, where somebody took it away.
    pub(super) async fn enslave(&self, index: u32, bridge: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).controller(bridge).up().build();
        or_gone(self.handle.link().set(message).execute().await)
            .map_err(|e| failed("put a container's link on the bridge", &e))
    }
}

/// Gives the container's end its addresses and routes, and tells which: where to, and by which gateway. Blocks; runs on a thread
/// of its own in the namespace.
pub(super) fn set_up(namespace: &Namespace, veth: &Veth) -> io::Result<Vec<(Prefix, IpAddr)>> {
    namespace.block_on(|| async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::select! {
            done = inside(&handle, veth) => done,
            () = connection => Err(io::Error::other("the kernel ended the netlink connection")),
        }
    })
}

async fn inside(handle: &Handle, veth: &Veth) -> io::Result<Vec<(Prefix, IpAddr)>> {
    let name = &veth.interface;
    let mut routes = Vec::new();
    let mut found = handle.link().get().match_name(name.clone()).execute();
    let message = found.try_next().await.map_err(|e| failed(&format!("find {name} in the container"), &e))?;
    let index = message.map(|message| message.header.index).ok_or(io::ErrorKind::NotFound)?;
    for link in [LOOPBACK, index] {
        let up = LinkUnspec::new_with_index(link).up().build();
        handle.link().set(up).execute().await.map_err(|e| failed(&format!("set {name} up"), &e))?;
    }
    for (address, length, gateway) in &veth.addresses {
        let mut request = handle.address().add(index, *address, *length);
        if address.is_ipv6() {
            // It was given to nobody else: there is nobody to ask, and nothing to wait for.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(|e| failed(&format!("give {address} to {name}"), &e))?;
        for range in veth.ranges.iter().filter(|range| range.is_ipv4() == address.is_ipv4()) {
            let route = handle.route().add(route(Some(*range), *gateway, index)).replace().execute().await;
            route.map_err(|e| failed(&format!("add a route to {range}"), &e))?;
            routes.push((*range, *gateway));
        }
        let default = handle.route().add(route(None, *gateway, index)).execute().await;
        match default.map_err(|e| failed("add a default route", &e)) {
            // Of several networks, the first one leads to the rest of the world.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => {
                done?;
                routes.extend(everything(*gateway).map(|everything| (everything, *gateway)));
            }
        }
    }
    Ok(routes)
}

/// The range of all addresses of a family.
fn everything(of: IpAddr) -> Option<Prefix> {
    let first: IpAddr =
        if of.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Prefix::new(first, 0)
}

/// To a range, or to everything.
fn route(to: Option<Prefix>, gateway: IpAddr, index: u32) -> RouteMessage {
    match gateway {
        IpAddr::V4(gateway) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index);
            match to.map(|to| (to.network(), to.length())) {
                Some((IpAddr::V4(network), length)) => route.destination_prefix(network, length).build(),
                _ => route.build(),
            }
        }
        IpAddr::V6(gateway) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).output_interface(index);
            match to.map(|to| (to.network(), to.length())) {
                Some((IpAddr::V6(network), length)) => route.destination_prefix(network, length).build(),
                _ => route.build(),
            }
        }
    }
}

impl Netlink {
    /// Removes a container's link with both of its ends; one that is gone is no error.
    pub(super) async fn remove_veth(&self, link: &str) -> io::Result<()> {
        match self.container_link(link).await? {
            Some(found) => self.remove_link(found.index).await,
            None => Ok(()),
        }
    }
}

fn container_link(message: &LinkMessage) -> ContainerLink {
    let bridge = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(bridge) => Some(*bridge),
        _ => None,
    });
    let is_up = message.header.flags.contains(LinkFlags::Up);
    let passes = message.attributes.contains(&LinkAttribute::OperState(State::Up));
    let mtu = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let leads_away = message.attributes.iter().any(|one| matches!(one, LinkAttribute::LinkNetNsId(_)));
    ContainerLink {
        index: message.header.index,
        bridge,
        is_up,
        passes,
        mtu: mtu.unwrap_or_default(),
        leads_away,
    }
}
