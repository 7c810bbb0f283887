//! The two programs of a network: out of a container's link into the tunnel, and out of the tunnel into a container (pure).
//!
//! They decide as the packet filter's rules of [`fast_path`](super::super::fast_path) do, but for the plainest packets alone: no options of
//! IPv4, of IPv6 TCP, UDP or ICMP at once after the header. Whatever they do not send on goes on to those rules.
//!
//! A frame for another node gets the MAC that the map of peers has of the subnet that its address is in. A frame for a container here
//! gets its MAC and is what has come in by the container's own interface, without bridge and link between.

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use nerve::model::{Mac, Prefix};

use super::code::{Code, Helper, If, Label, Register, Size};
use crate::sys::bpf::Instruction;
use Register::{Frame, R0, R1, R2, R3, R6, R7, R8};

/// An address as the maps have it: of IPv6, or mapped to it.
pub(super) type Key = [u8; 16];
/// What the map of peers has of each, in bytes: a MAC, and two of nothing.
pub(super) const PEER: usize = 8;
/// The same of containers: also the index of the link.
pub(super) const CONTAINER: usize = 12;

/// What the programs of a network are made from. While it stays the same, so do they.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::overlay) struct Shape {
    /// The index of the VXLAN device.
    pub(in crate::overlay) tunnel: u32,
    /// Its MAC, which is the bridge's as well.
    pub(in crate::overlay) mac: Mac,
    pub(in crate::overlay) ranges: Vec<Range>,
    /// The largest packet that the network passes on this node.
    pub(in crate::overlay) mtu: u32,
}

/// A range of the network, and this node's subnet of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::overlay) struct Range {
    pub(in crate::overlay) whole: Prefix,
    pub(in crate::overlay) own: Prefix,
}

/// An address as a key.
pub(super) fn key(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// A peer as the map has it.
pub(super) fn peer_value(Mac([a, b, c, d, e, f]): Mac) -> [u8; PEER] {
    [a, b, c, d, e, f, 0, 0]
}

/// A container as the map has it.
pub(super) fn container_value(Mac([a, b, c, d, e, f]): Mac, link: u32) -> [u8; CONTAINER] {
    let [g, h, i, j] = link.to_ne_bytes();
    [a, b, c, d, e, f, 0, 0, g, h, i, j]
}

/// The index of its link.
pub(super) fn link_of([.., a, b, c, d]: &[u8; CONTAINER]) -> u32 {
    u32::from_ne_bytes([*a, *b, *c, *d])
}

/// From a container here to another node; `peers` has the MAC of each node by its subnet.
pub(super) fn outward(shape: &Shape, peers: RawFd) -> io::Result<Vec<Instruction>> {
    Writer::new(shape, Direction::Outward, peers).write()
}

/// From another node to a container here; `containers` has the MAC and the link of each by its address.
pub(super) fn inward(shape: &Shape, containers: RawFd) -> io::Result<Vec<Instruction>> {
    Writer::new(shape, Direction::Inward, containers).write()
}

/// Of `struct __sk_buff`.
mod context {
    pub(super) const LENGTH: i16 = 0;
    /// 0: for this host.
    pub(super) const PACKET_TYPE: i16 = 4;
    pub(super) const PROTOCOL: i16 = 16;
    pub(super) const VLAN_PRESENT: i16 = 20;
    pub(super) const DATA: i16 = 76;
    pub(super) const DATA_END: i16 = 80;
}

const ETHERNET: i16 = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u32 = 6;
const UDP: u32 = 17;
const ICMPV6: u32 = 58;
const SYN: u32 = 0x02;
/// Where TCP has its flags.
const FLAGS: i16 = 13;
/// `TCX_NEXT`: others decide.
const NEXT: i32 = -1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Outward,
    Inward,
}

/// R6 is the packet, R7 its first byte, R8 the index of a container's link.
struct Writer<'a> {
    code: Code,
    /// Where others decide.
    next: Label,
    shape: &'a Shape,
    direction: Direction,
    map: RawFd,
}

impl<'a> Writer<'a> {
    fn new(shape: &'a Shape, direction: Direction, map: RawFd) -> Self {
        let mut code = Code::default();
        let next = code.label();
        Self { code, next, shape, direction, map }
    }

    fn write(mut self) -> io::Result<Vec<Instruction>> {
        let (v4, v6, next) = (self.code.label(), self.code.label(), self.next);
        self.code.copy(R6, R1);
        self.code.load(Size::Word, R1, (R6, context::VLAN_PRESENT));
        self.code.jump_if(R1, If::NotEqual, 0, next);
        if self.direction == Direction::Inward {
            self.code.load(Size::Word, R1, (R6, context::PACKET_TYPE));
            self.code.jump_if(R1, If::NotEqual, 0, next);
        }
        self.code.load(Size::Word, R1, (R6, context::PROTOCOL));
        self.code.jump_if(R1, If::Equal, u32::from(IPV4.to_be()), v4);
        self.code.jump_if(R1, If::Equal, u32::from(IPV6.to_be()), v6);
        self.code.jump(next);
        self.code.place(v4);
        self.v4();
        self.code.place(v6);
        self.v6();
        self.code.place(next);
        self.code.set(R0, NEXT);
        self.code.exit();
        self.code.finish()
    }

    fn v4(&mut self) {
        const VERSION: i16 = ETHERNET;
        const FRAGMENT: i16 = ETHERNET + 6;
        const TTL: i16 = ETHERNET + 8;
        const PROTOCOL: i16 = ETHERNET + 9;
        const CHECKSUM: i16 = ETHERNET + 10;
        const FROM: i16 = ETHERNET + 12;
        const TO: i16 = ETHERNET + 16;
        const END: i16 = ETHERNET + 20;
        let (next, plain, small_enough) = (self.next, self.code.label(), self.code.label());
        self.see(END);
        self.byte_is_not(VERSION, 0x45, next);
        self.code.load(Size::Byte, R1, (R7, TTL));
        self.code.jump_if(R1, If::Less, 2, next);
        self.byte_is_not(PROTOCOL, TCP, plain);
        // What comes after the first fragment has no header of TCP.
        self.code.load(Size::Half, R1, (R7, FRAGMENT));
        self.code.jump_if(R1, If::Has, u32::from(0x1fff_u16.to_be()), plain);
        self.not_a_beginning(END + FLAGS);
        self.code.jump(small_enough);
        self.code.place(plain);
        self.not_too_large();
        self.code.place(small_enough);
        for range in self.ranges(true) {
            let other = self.code.label();
            let (from, to) = self.compared(range);
            self.code.load(Size::Word, R1, (R7, FROM));
            self.code.keep(R1, word(mask(from)));
            self.code.jump_if(R1, If::NotEqual, word(key(from.network())), other);
            self.code.load(Size::Word, R1, (R7, TO));
            self.code.keep(R1, word(to));
            self.code.store_number(Size::Double, (Frame, -16), 0);
            self.code.store_number(Size::Word, (Frame, -8), u32::from_ne_bytes([0, 0, 0xff, 0xff]));
            self.code.store(Size::Word, (Frame, -4), R1);
            self.look_up();
            self.direct();
            // RFC 1624, as `ip_decrease_ttl` of the kernel does it.
            let folded = self.code.label();
            self.code.load(Size::Half, R1, (R7, CHECKSUM));
            self.code.add_number(R1, i32::from(0x0100_u16.to_be()));
            self.code.jump_if(R1, If::Less, 0xffff, folded);
            self.code.add_number(R1, 1);
            self.code.place(folded);
            self.code.store(Size::Half, (R7, CHECKSUM), R1);
            self.count_down(TTL);
            self.send();
            self.code.place(other);
        }
        self.code.jump(next);
    }

    fn v6(&mut self) {
        const VERSION: i16 = ETHERNET;
        const PROTOCOL: i16 = ETHERNET + 6;
        const HOPS: i16 = ETHERNET + 7;
        const FROM: i16 = ETHERNET + 8;
        const TO: i16 = ETHERNET + 24;
        const END: i16 = ETHERNET + 40;
        let (next, plain, small_enough) = (self.next, self.code.label(), self.code.label());
        self.see(END);
        self.code.load(Size::Byte, R1, (R7, VERSION));
        self.code.keep(R1, 0xf0);
        self.code.jump_if(R1, If::NotEqual, 0x60, next);
        self.code.load(Size::Byte, R1, (R7, HOPS));
        self.code.jump_if(R1, If::Less, 2, next);
        self.code.load(Size::Byte, R1, (R7, PROTOCOL));
        self.code.jump_if(R1, If::Equal, UDP, plain);
        self.code.jump_if(R1, If::Equal, ICMPV6, plain);
        self.code.jump_if(R1, If::NotEqual, TCP, next);
        self.not_a_beginning(END + FLAGS);
        self.code.jump(small_enough);
        self.code.place(plain);
        self.not_too_large();
        self.code.place(small_enough);
        for range in self.ranges(false) {
            let other = self.code.label();
            let (from, to) = self.compared(range);
            let (network, masks) = (doubles(key(from.network())), [mask(from), to].map(doubles));
            for (at, half) in [(FROM, 0), (FROM + 8, 1)] {
                self.load_masked(at, masks[0][half]);
                self.code.set_double(R2, network[half]);
                self.code.jump_if_register(R1, If::NotEqual, R2, other);
            }
            for (at, half, place) in [(TO, 0, -16), (TO + 8, 1, -8)] {
                self.load_masked(at, masks[1][half]);
                self.code.store(Size::Double, (Frame, place), R1);
            }
            self.look_up();
            self.direct();
            self.count_down(HOPS);
            if self.direction == Direction::Inward {
                // A network card may have summed up the whole packet, and nothing in this header makes up for the change.
                self.code.copy(R1, R6);
                self.code.set(R2, i32::from(u16::from_ne_bytes([0xff, 0xfe])));
                self.code.call(Helper::ChecksumUpdate);
            }
            self.send();
            self.code.place(other);
        }
        self.code.jump(next);
    }

    fn ranges(&self, v4: bool) -> Vec<Range> {
        self.shape.ranges.iter().copied().filter(|range| range.own.is_ipv4() == v4).collect()
    }

    /// What the source is to be in, and which bits of the destination are looked up.
    fn compared(&self, range: Range) -> (Prefix, Key) {
        match self.direction {
            Direction::Outward => (range.own, mask(range.own)),
            Direction::Inward => (range.whole, [0xff; 16]),
        }
    }

    /// The first `length` bytes can be read from now on.
    fn see(&mut self, length: i16) {
        let seen = self.code.label();
        for is_again in [false, true] {
            self.code.load(Size::Word, R7, (R6, context::DATA));
            self.code.load(Size::Word, R2, (R6, context::DATA_END));
            self.code.copy(R3, R7);
            self.code.add_number(R3, i32::from(length));
            if is_again {
                self.code.jump_if_register(R3, If::Greater, R2, self.next);
            } else {
                self.code.jump_if_register(R3, If::AtMost, R2, seen);
                self.code.copy(R1, R6);
                self.code.set(R2, i32::from(length));
                self.code.call(Helper::PullData);
                self.code.jump_if(R0, If::NotEqual, 0, self.next);
            }
        }
        self.code.place(seen);
    }

    fn byte_is_not(&mut self, at: i16, number: u32, then: Label) {
        self.code.load(Size::Byte, R1, (R7, at));
        self.code.jump_if(R1, If::NotEqual, number, then);
    }

    /// Beginnings of connections are for others.
    fn not_a_beginning(&mut self, flags: i16) {
        self.see(flags + 1);
        self.code.load(Size::Byte, R1, (R7, flags));
        self.code.jump_if(R1, If::Has, SYN, self.next);
    }

    /// What is larger than the network passes here, its sender is told, by others.
    fn not_too_large(&mut self) {
        if self.direction == Direction::Inward {
            self.code.load(Size::Word, R1, (R6, context::LENGTH));
            self.code.jump_if(R1, If::Greater, self.shape.mtu + ETHERNET.unsigned_abs() as u32, self.next);
        }
    }

    fn load_masked(&mut self, at: i16, mask: u64) {
        match mask {
            0 => self.code.set(R1, 0),
            u64::MAX => self.code.load(Size::Double, R1, (R7, at)),
            _ => {
                self.code.load(Size::Double, R1, (R7, at));
                self.code.set_double(R2, mask);
                self.code.keep_those_of(R1, R2);
            }
        }
    }

    /// What the map has of the key on the stack is at R0.
    fn look_up(&mut self) {
        self.code.set_map(R1, self.map);
        self.code.copy(R2, Frame);
        self.code.add_number(R2, -16);
        self.code.call(Helper::MapLookup);
        self.code.jump_if_nothing(R0, self.next);
    }

    /// The frame is from this node's MAC to that at R0.
    fn direct(&mut self) {
        for (size, at) in [(Size::Word, 0), (Size::Half, 4)] {
            self.code.load(size, R1, (R0, at));
            self.code.store(size, (R7, at), R1);
        }
        let [a, b, c, d, e, f] = self.shape.mac.0;
        self.code.store_number(Size::Word, (R7, 6), u32::from_ne_bytes([a, b, c, d]));
        self.code.store_number(Size::Half, (R7, 10), u32::from(u16::from_ne_bytes([e, f])));
        if self.direction == Direction::Inward {
            self.code.load(Size::Word, R8, (R0, 8));
        }
    }

    fn count_down(&mut self, at: i16) {
        self.code.load(Size::Byte, R1, (R7, at));
        self.code.add_number(R1, -1);
        self.code.store(Size::Byte, (R7, at), R1);
    }

    fn send(&mut self) {
        let helper = match self.direction {
            Direction::Outward => {
                self.code.set(R1, self.shape.tunnel.cast_signed());
                Helper::Redirect
            }
            Direction::Inward => {
                self.code.copy(R1, R8);
                Helper::RedirectPeer
            }
        };
        self.code.set(R2, 0);
        self.code.call(helper);
        self.code.exit();
    }
}

/// The bits of a key that are a prefix's.
fn mask(of: Prefix) -> Key {
    let length = u32::from(of.length()) + if of.is_ipv4() { 96 } else { 0 };
    u128::MAX.checked_shl(128 - length).unwrap_or(0).to_be_bytes()
}

/// The last of a key as it is read from a packet: its bytes are in the network's order, whatever this host's is.
fn word(of: Key) -> u32 {
    let [.., a, b, c, d] = of;
    u32::from_ne_bytes([a, b, c, d])
}

/// The same of both halves.
fn doubles(of: Key) -> [u64; 2] {
    [0, 8].map(|first| u64::from_ne_bytes(std::array::from_fn(|at| of[first + at])))
}
