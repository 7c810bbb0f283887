//! WireGuard devices: their keys and peers, by generic netlink (`include/uapi/linux/wireguard.h` of the kernel).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use nerve::model::PublicKey;
use ring::rand::{SecureRandom, SystemRandom};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use zeroize::Zeroizing;

use super::wire::{Answers, Body, Kernel, array, attributes};

/// The family of generic netlink that tells the numbers of the others, its question, and the attributes of that (`GENL_ID_CTRL`, …).
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Commands.
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
/// Attributes of a device.
const INDEX: u16 = 1;
const PRIVATE_KEY: u16 = 3;
const DEVICE_KEY: u16 = 4;
const LISTEN_PORT: u16 = 6;
const PEERS: u16 = 8;
/// Attributes of a peer.
const PEER_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const ENDPOINT: u16 = 4;
const KEEPALIVE: u16 = 5;
const LAST_HANDSHAKE: u16 = 6;
const ALLOWED: u16 = 9;
/// Flags of a peer.
const REMOVE: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
/// Attributes of a range that a peer may have packets of.
const FAMILY: u16 = 1;
const ADDRESS: u16 = 2;
const LENGTH: u16 = 3;
const INET: u16 = 2;
const INET6: u16 = 10;
/// Peers in one message.
const AT_ONCE: usize = 64;
/// A peer that was not heard for so long is looked for at the address of its record (WireGuard's `REJECT_AFTER_TIME`).
const SILENT: Duration = Duration::from_secs(180);
/// How often a peer is spoken to whose key is new, until it answers; in seconds.
const PROBE: u16 = 1;

/// A peer as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) endpoint: SocketAddr,
    /// The one address that its packets have.
    pub(super) inner: Ipv6Addr,
    /// It is to be spoken to, so that it is known whether it knows this key.
    pub(super) probe: bool,
}

/// What the kernel has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Device {
    key: Option<PublicKey>,
    peers: BTreeMap<PublicKey, Seen>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Seen {
    endpoint: Option<SocketAddr>,
    keepalive: u16,
    /// Since 1970; none: never.
    handshake: Duration,
    allowed: BTreeSet<(IpAddr, u8)>,
}

/// A connection to the kernel's WireGuard.
pub(super) struct WireGuard {
    kernel: Kernel,
    family: u16,
}

impl WireGuard {
    /// Opens one. The kernel loads what it takes.
    ///
    /// # Errors
    /// It has no WireGuard.
    pub(super) fn open() -> io::Result<Self> {
        let mut kernel = Kernel::open(NETLINK_GENERIC)?;
        let mut body = Body::new(&[GET_FAMILY, 1, 0, 0]);
        body.put(FAMILY_NAME, b"wireguard\0");
        let answers = kernel.request(CONTROL, 0, &body)?;
        let family = answers.iter().find_map(|answer| {
            let mut found = attributes(answer.get(4..)?);
            found.find_map(|(kind, value)| (kind == FAMILY_ID).then(|| array(value, 0))?)
        });
        let family = family.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { kernel, family: u16::from_ne_bytes(family) })
    }

    /// Gives a device a private key, which nobody but the kernel knows from then on, and its port. Tells the public one.
    pub(super) fn set_key(&mut self, index: u32, port: u16) -> io::Result<PublicKey> {
        let mut private = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *private).map_err(|_| io::Error::other("there is no randomness"))?;
        // A number of the curve (RFC 7748, section 5).
        private[0] &= 248;
        private[31] = private[31] & 127 | 64;
        let mut body = set(index);
        body.put(PRIVATE_KEY, &*private);
        body.put(LISTEN_PORT, &port.to_ne_bytes());
        self.kernel.request(self.family, 0, &body)?;
        self.read(index)?
            .key
            .ok_or_else(|| io::Error::other("the kernel does not tell the key that it was given"))
    }

    /// Makes a device's peers these. Tells those that have been heard.
    ///
    /// # Errors
    /// The kernel refuses, or ([`io::ErrorKind::InvalidData`]) the device has another key.
    pub(super) fn ensure(
        &mut self,
        index: u32,
        key: PublicKey,
        wanted: &BTreeMap<PublicKey, Peer>,
    ) -> io::Result<BTreeSet<PublicKey>> {
        let there = self.read(index)?;
        if there.key != Some(key) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "somebody has given the link another key",
            ));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let gone = there.peers.keys().filter(|key| !wanted.contains_key(*key)).map(|key| (*key, None));
        let changed = wanted
            .iter()
            .filter(|(key, peer)| there.peers.get(*key).is_none_or(|seen| !is_as(seen, peer, now)));
        let changes: Vec<(PublicKey, Option<&Peer>)> =
            gone.chain(changed.map(|(key, peer)| (*key, Some(peer)))).collect();
        for some in changes.chunks(AT_ONCE) {
            let mut body = set(index);
            body.put_nested(PEERS, |body| {
                for (key, peer) in some {
                    body.put_nested(0, |body| write(body, *key, *peer, there.peers.get(key), now));
                }
            });
            self.kernel.request(self.family, 0, &body)?;
        }
        let heard = there.peers.iter().filter(|(_, seen)| !seen.handshake.is_zero());
        Ok(heard.map(|(key, _)| *key).filter(|key| wanted.contains_key(key)).collect())
    }

    fn read(&mut self, index: u32) -> io::Result<Device> {
        let mut body = Body::new(&[GET_DEVICE, 1, 0, 0]);
        body.put(INDEX, &index.to_ne_bytes());
        self.kernel.list(self.family, &body).map(|answers| device(&answers))
    }
}

fn set(index: u32) -> Body {
    let mut body = Body::new(&[SET_DEVICE, 1, 0, 0]);
    body.put(INDEX, &index.to_ne_bytes());
    body
}

/// Is a peer as it is to be? One that is heard from elsewhere than its record says is answered there.
fn is_as(seen: &Seen, wanted: &Peer, now: Duration) -> bool {
    seen.allowed == [(IpAddr::V6(wanted.inner), 128)].into()
        && seen.keepalive == keepalive(wanted)
        && (seen.endpoint == Some(wanted.endpoint) || !is_silent(seen, now))
}

fn is_silent(seen: &Seen, now: Duration) -> bool {
    now.saturating_sub(seen.handshake) >= SILENT
}

fn keepalive(peer: &Peer) -> u16 {
    if peer.probe { PROBE } else { 0 }
}

/// A peer to be added or changed, or `None`: removed.
fn write(body: &mut Body, key: PublicKey, peer: Option<&Peer>, seen: Option<&Seen>, now: Duration) {
    body.put(PEER_KEY, &key.0);
    let Some(peer) = peer else { return body.put(PEER_FLAGS, &REMOVE.to_ne_bytes()) };
    body.put(PEER_FLAGS, &REPLACE_ALLOWED.to_ne_bytes());
    if seen.is_none_or(|seen| is_silent(seen, now)) {
        body.put(ENDPOINT, &socket_address(peer.endpoint));
    }
    body.put(KEEPALIVE, &keepalive(peer).to_ne_bytes());
    body.put_nested(ALLOWED, |body| {
        body.put_nested(0, |body| {
            body.put(FAMILY, &INET6.to_ne_bytes());
            body.put(ADDRESS, &peer.inner.octets());
            body.put(LENGTH, &[128]);
        });
    });
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(v4) => [&INET.to_ne_bytes()[..], &port, &v4.octets(), &[0; 8]].concat(),
        IpAddr::V6(v6) => [&INET6.to_ne_bytes()[..], &port, &[0; 4], &v6.octets(), &[0; 4]].concat(),
    }
}

fn read_socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(array(bytes, 2)?);
    let address = match u16::from_ne_bytes(array(bytes, 0)?) {
        INET => IpAddr::from(array::<4>(bytes, 4)?),
        INET6 => IpAddr::from(array::<16>(bytes, 8)?),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// A device as the kernel tells it: in several messages where it has many peers, and a peer twice where it begins in one and ends in the next.
fn device(answers: &Answers) -> Device {
    let mut device = Device::default();
    for (kind, value) in answers.iter().filter_map(|answer| answer.get(4..)).flat_map(attributes) {
        match kind {
            DEVICE_KEY => device.key = array(value, 0).map(PublicKey),
            PEERS => attributes(value).for_each(|(_, peer)| read_peer(&mut device.peers, peer)),
            _ => {}
        }
    }
    device
}

fn read_peer(peers: &mut BTreeMap<PublicKey, Seen>, peer: &[u8]) {
    let key = attributes(peer).find_map(|(kind, value)| (kind == PEER_KEY).then(|| array(value, 0))?);
    let Some(key) = key.map(PublicKey) else { return };
    let seen = peers.entry(key).or_default();
    for (kind, value) in attributes(peer) {
        match kind {
            ENDPOINT => seen.endpoint = read_socket_address(value),
            KEEPALIVE => seen.keepalive = array(value, 0).map_or(0, u16::from_ne_bytes),
            LAST_HANDSHAKE => {
                let seconds = array(value, 0).map_or(0, i64::from_ne_bytes);
                seen.handshake = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
            }
            ALLOWED => seen.allowed.extend(attributes(value).filter_map(|(_, range)| read_range(range))),
            _ => {}
        }
    }
}

fn read_range(range: &[u8]) -> Option<(IpAddr, u8)> {
    let (mut address, mut length) = (None, None);
    for (kind, value) in attributes(range) {
        match (kind, value.len()) {
            (ADDRESS, 4) => address = array::<4>(value, 0).map(IpAddr::from),
            (ADDRESS, _) => address = array::<16>(value, 0).map(IpAddr::from),
            (LENGTH, _) => length = value.first().copied(),
            _ => {}
        }
    }
    Some((address?, length?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(probe: bool) -> Peer {
        Peer { endpoint: "192.0.2.1:51882".parse().unwrap(), inner: "fd00::7".parse().unwrap(), probe }
    }

    fn seen(handshake: u64) -> Seen {
        let allowed = [("fd00::7".parse().unwrap(), 128)].into();
        let endpoint = Some("192.0.2.1:51882".parse().unwrap());
        Seen { endpoint, keepalive: 0, handshake: Duration::from_secs(handshake), allowed }
    }

    #[test]
    fn a_peer_that_roams_is_left_alone_while_it_is_heard() {
        let now = Duration::from_secs(1000);
        let away = |handshake| Seen { endpoint: Some("192.0.2.9:7".parse().unwrap()), ..seen(handshake) };
        assert!(is_as(&seen(0), &peer(false), now) && is_as(&away(990), &peer(false), now));
        assert!(!is_as(&away(0), &peer(false), now) && !is_as(&away(800), &peer(false), now));
        assert!(!is_as(&seen(990), &peer(true), now), "it is not spoken to");
        let wide = Seen { allowed: [("fd00::".parse().unwrap(), 64)].into(), ..seen(990) };
        assert!(!is_as(&wide, &peer(false), now), "it may send what is another's");
    }

    #[test]
    fn a_peer_reads_as_it_is_written() {
        for endpoint in ["192.0.2.1:51882", "[2001:db8::1]:7"] {
            let address: SocketAddr = endpoint.parse().unwrap();
            assert_eq!(read_socket_address(&socket_address(address)), Some(address));
        }
        assert_eq!(read_socket_address(&[2, 0, 1]), None);
    }
}
