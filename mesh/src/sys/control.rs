//! Socket addresses and control messages as the kernel has them, byte by byte: no pointer, no cast.
//!
//! The layouts are the kernel's own (`struct sockaddr_in`, `sockaddr_in6`, `cmsghdr`, `in_pktinfo`, `in6_pktinfo`), not those of a
//! C library, of which some pad them differently.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use rustix::net::AddressFamily;

/// What stands before the data of a control message: its length as a word, its level, its type.
const HEAD: usize = WORD + 8;
const WORD: usize = size_of::<usize>();

/// An address of this host that a datagram came to or leaves from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Local {
    /// IPv4 as a mapped address where it came through an IPv6 socket; it goes back the same way.
    pub(crate) address: IpAddr,
    /// The interface's number where the address says nothing without it (link-local), else 0: routing decides.
    pub(crate) interface: u32,
}

/// Room for an address of either family.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Name(pub(super) [u8; Self::ROOM]);

/// Room for control messages.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control {
    pub(super) bytes: [u8; Self::ROOM],
    pub(super) used: usize,
}

/// What the control messages of a received datagram say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Which of our addresses it came to.
    pub(super) to: Option<Local>,
    /// It is several datagrams in a row, each of so many bytes but the last.
    pub(super) segment: Option<usize>,
    /// How many the socket could not hold, since it was opened.
    pub(super) missed: Option<u32>,
}

impl Name {
    pub(super) const ROOM: usize = 32;
    pub(super) const EMPTY: Self = Self([0; Self::ROOM]);

    /// An address, and how many bytes it takes.
    pub(super) fn of(address: SocketAddr) -> (Self, usize) {
        let mut name = Self::EMPTY;
        let bytes = &mut name.0;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&AddressFamily::INET.as_raw().to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                (name, 16)
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&AddressFamily::INET6.as_raw().to_ne_bytes());
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                (name, 28)
            }
        }
    }

    /// The address that the kernel wrote; `None`: of another family, or none at all.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        let bytes = &self.0;
        let port = u16::from_be_bytes(at(bytes, 2)?);
        match AddressFamily::from_raw(u16::from_ne_bytes(at(bytes, 0)?)) {
            AddressFamily::INET => {
                Some(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from(at::<4>(bytes, 4)?), port)))
            }
            AddressFamily::INET6 => {
                let address = Ipv6Addr::from(at::<16>(bytes, 8)?);
                // The flow label is one packet's and no part of who sent it.
                let scope = u32::from_ne_bytes(at(bytes, 24)?);
                Some(SocketAddr::V6(SocketAddrV6::new(address, port, 0, scope)))
            }
            _ => None,
        }
    }
}

impl Control {
    /// Packet information of IPv6 (36 bytes with its head, rounded up), segment size and missed count, and some to spare.
    const ROOM: usize = 128;
    pub(super) const EMPTY: Self = Self { bytes: [0; Self::ROOM], used: 0 };

    /// Leave from this address (ip(7), `IP_PKTINFO`; ipv6(7), `IPV6_PKTINFO`).
    pub(super) fn push_source(&mut self, source: Local) {
        match source.address {
            IpAddr::V4(address) => {
                let mut info = [0; 12];
                info[..4].copy_from_slice(&source.interface.to_ne_bytes());
                info[4..8].copy_from_slice(&address.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            IpAddr::V6(address) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&address.octets());
                info[16..].copy_from_slice(&source.interface.to_ne_bytes());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// Leave as datagrams of so many bytes each (udp(7), `UDP_SEGMENT`).
    pub(super) fn push_segment(&mut self, size: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let (length, space) = (HEAD + data.len(), aligned(HEAD + data.len()));
        let Some(place) = self.bytes.get_mut(self.used..self.used + space) else { return };
        place[..WORD].copy_from_slice(&length.to_ne_bytes());
        place[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        place[WORD + 4..HEAD].copy_from_slice(&kind.to_ne_bytes());
        place[HEAD..length].copy_from_slice(data);
        place[length..].fill(0);
        self.used += space;
    }

    /// What the kernel wrote into the first `used` bytes.
    pub(super) fn said(&self) -> Said {
        let mut said = Said::default();
        let mut rest = self.bytes.get(..self.used).unwrap_or_default();
        while let Some((level, kind, data, after)) = next(rest) {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => said.to = source_v4(data),
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => said.to = source_v6(data),
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    said.segment = at(data, 0).map(i32::from_ne_bytes).and_then(|size| size.try_into().ok());
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => said.missed = at(data, 0).map(u32::from_ne_bytes),
                _ => {}
            }
            rest = after;
        }
        said
    }
}

/// Level, type and data of the first message, and what is behind it.
fn next(bytes: &[u8]) -> Option<(i32, i32, &[u8], &[u8])> {
    let length = usize::from_ne_bytes(at(bytes, 0)?);
    let level = i32::from_ne_bytes(at(bytes, WORD)?);
    let kind = i32::from_ne_bytes(at(bytes, WORD + 4)?);
    let data = bytes.get(HEAD..length)?;
    Some((level, kind, data, bytes.get(aligned(length)..).unwrap_or_default()))
}

/// The second address: not where the datagram was sent to, which may be a broadcast, but where an answer comes from.
fn source_v4(info: &[u8]) -> Option<Local> {
    Some(Local { address: Ipv4Addr::from(at::<4>(info, 4)?).into(), interface: 0 })
}

fn source_v6(info: &[u8]) -> Option<Local> {
    let address = Ipv6Addr::from(at::<16>(info, 0)?);
    let interface = if address.is_unicast_link_local() { u32::from_ne_bytes(at(info, 16)?) } else { 0 };
    Some(Local { address: address.into(), interface })
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset + N)?.try_into().ok()
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(WORD)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_survives_the_kernels_form() {
        for text in ["192.0.2.1:53", "[2001:db8::1]:443", "[::ffff:192.0.2.1]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Name::of(address).0.address(), Some(address));
        }
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 7, 0, 3).into();
        assert_eq!(Name::of(scoped).0.address(), Some(scoped));
        assert_eq!(Name::EMPTY.address(), None);
    }

    proptest! {
        #[test]
        fn control_messages_of_any_bytes_are_read_within_their_bounds(
            bytes in proptest::collection::vec(any::<u8>(), Control::ROOM),
            used in 0..2 * Control::ROOM,
        ) {
            let mut control = Control::EMPTY;
            control.bytes.copy_from_slice(&bytes);
            control.used = used;
            let _ = control.said();
        }

        #[test]
        fn what_was_pushed_is_said(octets in any::<[u8; 16]>(), is_v4 in any::<bool>(), segment in any::<u16>()) {
            let mut control = Control::EMPTY;
            let address: IpAddr = if is_v4 {
                Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()
            } else {
                Ipv6Addr::from(octets).into()
            };
            control.push_segment(segment);
            control.push_source(Local { address, interface: 0 });
            // Only receivers hear UDP_GRO, only senders say UDP_SEGMENT: the second message is found behind the first.
            prop_assert_eq!(control.said().to, Some(Local { address, interface: 0 }));
        }
    }
}
