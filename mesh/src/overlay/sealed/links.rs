//! The links that encrypt, and what keeps a network's packets off all others while nothing leads to where they are to go.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use nerve::model::{Cipher, Prefix, PublicKey};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkWireguard, LinkXfrm, RouteMessageBuilder};

use super::choice::{RANGE_LENGTH, alias, inner, read_alias};
use crate::overlay::messages::OURS;
use crate::overlay::netlink::{Netlink, failed, name_of, or_gone, or_none, route_ip};

/// What the names of links begin with, by what encrypts there.
pub(in crate::overlay) const WIREGUARD: &str = "plxw";
pub(in crate::overlay) const ESP: &str = "plxx";
/// The number that the kernel knows the first `xfrm` link of ours by: "PLX", and those of the others follow.
const FIRST_NUMBER: u32 = 0x504c_5800;
/// Of routes that hold nothing but what no other leads anywhere.
const LAST: u32 = 1 << 30;

/// A link of ours that encrypts, as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SealedLink {
    pub(super) index: u32,
    /// Is it up, with that MTU?
    pub(super) is_up: bool,
    pub(super) mtu: u32,
    /// Its key and since when; `None`: it was never finished.
    pub(super) key: Option<(PublicKey, u64)>,
    is_of_kind: bool,
}

/// How many keys a node may have at a time: with ESP, each life of the agent has one of its own.
pub(super) fn slots(cipher: Cipher) -> u8 {
    match cipher {
        Cipher::WireGuard => 2,
        Cipher::Esp => 4,
    }
}

/// The name of a link.
pub(super) fn name(cipher: Cipher, slot: u8) -> String {
    match cipher {
        Cipher::WireGuard => format!("{WIREGUARD}{slot}"),
        Cipher::Esp => format!("{ESP}{slot}"),
    }
}

/// The number of an `xfrm` link.
pub(super) fn number(slot: u8) -> u32 {
    FIRST_NUMBER + u32::from(slot)
}

/// Is a name that of a link that encrypts?
pub(in crate::overlay) fn is_sealed(link: &str) -> bool {
    Cipher::ALL.into_iter().any(|cipher| (0..slots(cipher)).any(|slot| name(cipher, slot) == link))
}

impl Netlink {
    /// Our links that encrypt, by cipher and slot.
    pub(super) async fn sealed_links(&self) -> io::Result<BTreeMap<(Cipher, u8), SealedLink>> {
        let mut links = BTreeMap::new();
        let mut listed = self.handle.link().get().execute();
        while let Some(message) = listed.try_next().await.map_err(|e| failed("list the links", &e))? {
            for cipher in Cipher::ALL {
                let slot = (0..slots(cipher)).find(|slot| name_of(&message) == Some(&name(cipher, *slot)));
                links.extend(slot.map(|slot| ((cipher, slot), sealed_link(cipher, &message))));
            }
        }
        Ok(links)
    }

    /// Makes one, which has no key yet and is down.
    ///
    /// # Errors
    /// Somebody else has the name, or the kernel has no such links.
    pub(super) async fn add_sealed(&self, cipher: Cipher, slot: u8, mtu: u32) -> io::Result<u32> {
        let name = name(cipher, slot);
        let message = match cipher {
            Cipher::WireGuard => LinkWireguard::new(&name).mtu(mtu).build(),
            Cipher::Esp => LinkMessageBuilder::<LinkXfrm>::new(&name).if_id(number(slot)).mtu(mtu).build(),
        };
        self.add_link(&name, message).await
    }

    /// Says whose key it is, gives it the key's address and sets it up.
    pub(super) async fn finish_sealed(
        &self,
        index: u32,
        name: &str,
        (key, since): (PublicKey, u64),
    ) -> io::Result<()> {
        let mut message = LinkUnspec::new_with_index(index).up().build();
        message.attributes.push(LinkAttribute::IfAlias(alias(key, since)));
        let set = self.handle.link().set(message).execute().await;
        set.map_err(|e| failed(&format!("set {name} up"), &e))?;
        self.ensure_sealed_address(index, name, key).await
    }

    async fn ensure_sealed_address(&self, index: u32, name: &str, key: PublicKey) -> io::Result<()> {
        let address = (IpAddr::V6(inner(key)), RANGE_LENGTH);
        self.ensure_addresses(index, name, [address].into()).await
    }

    /// Puts right what somebody has changed of one.
    pub(super) async fn adjust_sealed(
        &self,
        name: &str,
        link: &SealedLink,
        key: PublicKey,
        mtu: u32,
    ) -> io::Result<()> {
        if !link.is_up || link.mtu != mtu {
            let message = LinkUnspec::new_with_index(link.index).mtu(mtu).up().build();
            let set = self.handle.link().set(message).execute().await;
            set.map_err(|e| failed(&format!("set MTU and state of {name}"), &e))?;
        }
        self.ensure_sealed_address(link.index, name, key).await
    }

    /// Has nothing that is for these ranges leave by another way while no route leads there, and for no other ones.
    /// With `keep`, others stay.
    pub(in crate::overlay) async fn ensure_held(
        &self,
        ranges: &BTreeSet<Prefix>,
        keep: bool,
    ) -> io::Result<()> {
        let there = self.held_ranges().await?;
        for range in ranges.difference(&there) {
            let added = self.handle.route().add(held_route(*range)).execute().await;
            added.map_err(|e| failed(&format!("hold what is for {range}"), &e))?;
        }
        for range in there.difference(ranges).filter(|_| !keep) {
            or_gone(self.handle.route().del(held_route(*range)).execute().await)
                .map_err(|e| failed(&format!("let go of what is for {range}"), &e))?;
        }
        Ok(())
    }

    async fn held_ranges(&self) -> io::Result<BTreeSet<Prefix>> {
        let mut ranges = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut asked = RouteMessage::default();
            asked.header.address_family = family;
            asked.header.protocol = OURS;
            let mut listed = self.handle.route().get(asked).execute();
            while let Some(message) = or_none(listed.try_next().await, "list routes")? {
                if message.header.protocol != OURS || message.header.kind != RouteType::Unreachable {
                    continue;
                }
                let to = message.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Destination(address) => route_ip(address),
                    _ => None,
                });
                ranges.extend(to.and_then(|to| Prefix::new(to, message.header.destination_prefix_length)));
            }
        }
        Ok(ranges)
    }
}

fn sealed_link(cipher: Cipher, message: &LinkMessage) -> SealedLink {
    let kind = match cipher {
        Cipher::WireGuard => InfoKind::Wireguard,
        Cipher::Esp => InfoKind::Xfrm,
    };
    let is_up = message.header.flags.contains(LinkFlags::Up);
    let mut link = SealedLink { index: message.header.index, is_up, mtu: 0, key: None, is_of_kind: false };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.key = read_alias(alias),
            LinkAttribute::LinkInfo(infos) => link.is_of_kind = infos.contains(&LinkInfo::Kind(kind.clone())),
            _ => {}
        }
    }
    link.key = link.key.filter(|_| link.is_of_kind);
    link
}

fn held_route(range: Prefix) -> RouteMessage {
    let mut message = match range.network() {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4, range.length())
            .priority(LAST)
            .protocol(OURS)
            .build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6, range.length())
            .priority(LAST)
            .protocol(OURS)
            .build(),
    };
    message.header.kind = RouteType::Unreachable;
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_encrypts_is_known_by_its_name_and_its_number() {
        for (link, sealed) in [
            ("plxw0", true),
            ("plxw1", true),
            ("plxw2", false),
            ("plxx3", true),
            ("plxv7", false),
            ("plxw", false),
        ] {
            assert_eq!(is_sealed(link), sealed, "{link}");
        }
        assert_ne!(number(0), number(1));
    }
}
