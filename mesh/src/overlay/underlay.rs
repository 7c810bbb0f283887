//! The network beneath: the link that this node's address is on, what is known of the ways to peers, and routes that lead to them
//! without a tunnel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use futures_util::stream::{self, StreamExt};
use nerve::model::Prefix;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType};

use super::messages::{OURS, local_address};
use super::netlink::{AT_ONCE, Netlink, failed, link, name_of, or_none, route};
use super::plan::{Beneath, Entry};

/// Of a link whose MTU is not known.
const USUAL_MTU: u32 = 1500;

/// The link that this node's address is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Underlay {
    pub(super) mtu: u32,
    /// `None` where nobody else is on that link, as far as its addresses say.
    pub(super) beneath: Option<Beneath>,
}

impl Netlink {
    /// Reads it.
    pub(super) async fn underlay(&self, address: IpAddr) -> io::Result<Underlay> {
        let mut on = None;
        let mut listed = self.handle.address().get().execute();
        while let Some(message) = listed.try_next().await.map_err(|e| failed("list the addresses", &e))? {
            if local_address(&message.attributes) == Some(address) {
                on = Some((message.header.index, message.header.prefix_len));
            }
        }
        let Some((index, length)) = on else { return Ok(Underlay { mtu: USUAL_MTU, beneath: None }) };
        let mut found = self.handle.link().get().match_index(index).execute();
        let Some(message) = found.try_next().await.map_err(|e| failed("read a link", &e))? else {
            return Ok(Underlay { mtu: USUAL_MTU, beneath: None });
        };
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let range = Prefix::new(address, length).filter(|range| range.length() < whole);
        let beneath = range.zip(name_of(&message));
        let beneath = beneath.map(|(range, name)| Beneath { index, name: name.to_owned(), range });
        Ok(Underlay { mtu: link(&message).mtu, beneath })
    }

    /// The least MTU that the kernel knows of on the ways to these, and on whose: of the link that leads there, of the route
    /// (`ip route … mtu N`), or because a router said so.
    pub(super) async fn narrowest(&self, peers: BTreeSet<IpAddr>) -> io::Result<Option<(u32, IpAddr)>> {
        let mut links = BTreeMap::new();
        let mut listed = self.handle.link().get().execute();
        while let Some(message) = listed.try_next().await.map_err(|e| failed("list the links", &e))? {
            links.insert(message.header.index, link(&message).mtu);
        }
        let asked = stream::iter(peers).map(async |peer| Some((self.path_mtu(peer, &links).await?, peer)));
        let known: Vec<(u32, IpAddr)> =
            asked.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;
        Ok(known.into_iter().min())
    }

    /// `ip route get ADDRESS`; nothing where there is no way.
    async fn path_mtu(&self, address: IpAddr, links: &BTreeMap<u32, u32>) -> Option<u32> {
        let mut asked = RouteMessage::default();
        let (family, length, destination) = match address {
            IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
        };
        (asked.header.address_family, asked.header.destination_prefix_length) = (family, length);
        asked.attributes.push(RouteAttribute::Destination(destination));
        let mut answer = std::pin::pin!(self.handle.route().get(asked).execute());
        let found = answer.try_next().await.ok()??;
        let told = found.attributes.iter().filter_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => links.get(index).copied(),
            RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
                RouteMetric::Mtu(mtu) => Some(*mtu),
                _ => None,
            }),
            _ => None,
        });
        told.filter(|mtu| *mtu > 0).min()
    }

    /// Our routes that lead neither to a network's tunnel nor to its bridge, but to peers on a link of the underlay.
    pub(super) async fn direct_routes(&self) -> io::Result<BTreeSet<Entry>> {
        let ours: BTreeSet<u32> = self.links().await?.values().map(|link| link.index).collect();
        let mut routes = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut asked = RouteMessage::default();
            asked.header.address_family = family;
            asked.header.protocol = OURS;
            let mut listed = self.handle.route().get(asked).execute();
            while let Some(message) = or_none(listed.try_next().await, "list routes")? {
                let is_ours = message.header.protocol == OURS && message.header.kind == RouteType::Unicast;
                let link = message.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
                let Some(link) = link.filter(|link| is_ours && !ours.contains(link)) else { continue };
                if let Some(Entry::Route { subnet, gateway, source }) = route(&message) {
                    routes.insert(Entry::Direct { subnet, via: gateway, link, source });
                }
            }
        }
        Ok(routes)
    }
}
