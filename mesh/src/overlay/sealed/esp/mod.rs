//! IPsec's associations and policies behind our `xfrm` links, by netlink (`include/uapi/linux/xfrm.h` of the kernel).
//!
//! What is sent on such a link and has no policy with an association is dropped by the kernel, and so is what comes to it in the clear.
//! Ours are those with the number (`if_id`) of a link of ours; nobody else's is touched.

mod keys;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use nerve::model::PublicKey;
use rtnetlink::sys::protocols::NETLINK_XFRM;
use zeroize::Zeroizing;

pub(super) use keys::Private;

use super::wire::{Body, Kernel, array, attributes};

/// Kinds of messages.
const NEW_STATE: u16 = 0x10;
const REMOVE_STATE: u16 = 0x11;
const GET_STATE: u16 = 0x12;
const NEW_POLICY: u16 = 0x13;
const REMOVE_POLICY: u16 = 0x14;
const GET_POLICY: u16 = 0x15;
/// `NLM_F_CREATE` and `NLM_F_EXCL`.
const CREATE: u16 = 0x400 | 0x200;
/// Attributes.
const TEMPLATES: u16 = 5;
const CIPHER: u16 = 18;
const REPLAY: u16 = 23;
const LINK: u16 = 31;
/// Lengths of structures, and where what is read of them is.
const STATE: usize = 224;
const STATE_NUMBER: usize = 56 + 16;
const STATE_FAMILY: usize = 212;
const STATE_PACKETS: usize = 160 + 8;
const POLICY: usize = 168;
const POLICY_DIRECTION: usize = 160;
const SELECTOR: usize = 56;
const ESP: u8 = 50;
const TUNNEL: u8 = 1;
/// 64-bit sequence numbers (`XFRM_STATE_ESN`).
const EXTENDED: u8 = 128;
/// How far packets may overtake each other, in packets.
const WINDOW: u32 = 1024;
/// Directions of policies.
const IN: u8 = 0;
const OUT: u8 = 1;
const INET: u16 = 2;
const INET6: u16 = 10;

/// A peer's key, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peer {
    pub(super) key: PublicKey,
    pub(super) outer: IpAddr,
    pub(super) inner: Ipv6Addr,
}

/// A link of ours: its number, its key, and the node's addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) link: u32,
    pub(super) outer: IpAddr,
    pub(super) inner: Ipv6Addr,
}

/// What a link has of peers.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Those that packets can be sent to.
    pub(super) ready: BTreeSet<PublicKey>,
    /// Those that packets have come from.
    pub(super) heard: BTreeSet<PublicKey>,
    /// An association that was made before is gone. It must not be made again: this key is to be another one.
    pub(super) is_spent: bool,
}

/// Each direction of the associations with a peer's key.
type Made = BTreeMap<PublicKey, Pair>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    out: Policy,
    back: Policy,
}

/// A key of this agent's, and the associations that were made with it.
pub(super) struct Secret {
    private: Private,
    made: Made,
}

impl Secret {
    pub(super) fn new(private: Private) -> Self {
        Self { private, made: Made::new() }
    }
}

/// One direction with a peer, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Policy {
    direction: u8,
    link: u32,
    /// Inside.
    source: Ipv6Addr,
    destination: Ipv6Addr,
    /// Outside.
    from: IpAddr,
    to: IpAddr,
    /// Of the association.
    number: u32,
}

/// Where an association of the kernel is found again.
type Place = (IpAddr, u32);

/// A connection to the kernel's IPsec.
pub(super) struct Esp(Kernel);

impl Esp {
    pub(super) fn open() -> io::Result<Self> {
        Kernel::open(NETLINK_XFRM).map(Self)
    }

    /// Can this kernel encrypt and decrypt so? Makes an association that leads nowhere, and removes it.
    pub(super) fn check(&mut self, link: u32) -> io::Result<()> {
        let nobody = IpAddr::from([192, 0, 2, 1]);
        let any = Ipv6Addr::UNSPECIFIED;
        let number = u32::MAX - link % 256;
        let policy =
            Policy { direction: OUT, link, source: any, destination: any, from: nobody, to: nobody, number };
        self.add_state(&policy, &[0; 36])?;
        self.remove_state((nobody, number))
    }

    /// Makes what there is of a link's associations what these peers need. Without a secret, as after a restart of the agent, none is made.
    pub(super) fn ensure(
        &mut self,
        end: End,
        secret: Option<&mut Secret>,
        peers: &[Peer],
    ) -> io::Result<Found> {
        let (states, policies) = (self.states(end.link)?, self.policies(end.link)?);
        let mut found = Found::default();
        let Some(Secret { private, made }) = secret else {
            return self.keep(end, peers, &states, &policies);
        };
        for peer in peers.iter().filter(|peer| peer.outer.is_ipv4() == end.outer.is_ipv4()) {
            let pair = match made.get(&peer.key).copied() {
                Some(pair) => {
                    if [pair.out, pair.back].iter().any(|one| !states.contains_key(&(one.to, one.number))) {
                        found.is_spent = true;
                        continue;
                    }
                    pair
                }
                None => {
                    let agreed = private.agree(peer.key, false).zip(private.agree(peer.key, true));
                    let Some((out, back)) = agreed else { continue };
                    let pair = Pair::new(end, peer, (out.number, back.number));
                    // Receiving goes first, and what was begun is not begun again.
                    made.insert(peer.key, pair);
                    self.add_state(&pair.back, &back.key)?;
                    self.add_state(&pair.out, &out.key)?;
                    pair
                }
            };
            for policy in [pair.back, pair.out] {
                if !policies.contains(&(policy.direction, policy.source, policy.destination)) {
                    self.add_policy(&policy)?;
                }
            }
            found.ready.insert(peer.key);
            if states.get(&(pair.back.to, pair.back.number)).is_some_and(|packets| *packets > 0) {
                found.heard.insert(peer.key);
            }
        }
        let wanted: BTreeSet<PublicKey> = peers.iter().map(|peer| peer.key).collect();
        let gone: Vec<Pair> =
            made.iter().filter(|(key, _)| !wanted.contains(key)).map(|(_, pair)| *pair).collect();
        for one in gone.iter().flat_map(|pair| [pair.out, pair.back]) {
            // It stays among what was made: such a peer's key is not agreed with twice.
            if states.contains_key(&(one.to, one.number)) {
                self.remove_policy((one.direction, one.source, one.destination), end.link)?;
                self.remove_state((one.to, one.number))?;
            }
        }
        Ok(found)
    }

    /// What another life of the agent has made goes on for peers that are still there.
    fn keep(
        &mut self,
        end: End,
        peers: &[Peer],
        states: &BTreeMap<Place, u64>,
        policies: &BTreeSet<Selected>,
    ) -> io::Result<Found> {
        let mut found = Found::default();
        let inner: BTreeSet<Ipv6Addr> = peers.iter().map(|peer| peer.inner).collect();
        for peer in peers {
            let has = |to: IpAddr| states.keys().any(|(other, _)| *other == to);
            if policies.contains(&(OUT, end.inner, peer.inner)) && has(peer.outer) {
                found.ready.insert(peer.key);
            }
        }
        for policy in policies {
            let other = if policy.0 == OUT { policy.2 } else { policy.1 };
            if !inner.contains(&other) {
                self.remove_policy(*policy, end.link)?;
            }
        }
        Ok(found)
    }

    /// Removes everything of these links.
    pub(super) fn clear(&mut self, links: impl IntoIterator<Item = u32>) -> io::Result<usize> {
        let mut count = 0;
        for link in links {
            for policy in self.policies(link)? {
                self.remove_policy(policy, link)?;
            }
            for place in self.states(link)?.into_keys() {
                self.remove_state(place)?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// The associations of a link, with the packets that each has seen.
    fn states(&mut self, link: u32) -> io::Result<BTreeMap<Place, u64>> {
        let answers = self.0.list(GET_STATE, &Body::new(&[0; STATE]))?;
        let state = |answer: &[u8]| {
            let is_of_link = attributes(answer.get(STATE..)?).any(|(kind, value)| is_link(kind, value, link));
            let to = match u16::from_ne_bytes(array(answer, STATE_FAMILY)?) {
                INET => IpAddr::from(array::<4>(answer, SELECTOR)?),
                _ => IpAddr::from(array::<16>(answer, SELECTOR)?),
            };
            let place = (to, u32::from_be_bytes(array(answer, STATE_NUMBER)?));
            let packets = u64::from_ne_bytes(array(answer, STATE_PACKETS)?);
            is_of_link.then_some((place, packets))
        };
        Ok(answers.iter().filter_map(|answer| state(answer)).collect())
    }

    fn policies(&mut self, link: u32) -> io::Result<BTreeSet<Selected>> {
        let answers = self.0.list(GET_POLICY, &Body::new(&[0; POLICY]))?;
        let policy = |answer: &[u8]| {
            let is_of_link =
                attributes(answer.get(POLICY..)?).any(|(kind, value)| is_link(kind, value, link));
            let (to, from) = (array::<16>(answer, 0)?, array::<16>(answer, 16)?);
            let direction = *answer.get(POLICY_DIRECTION)?;
            is_of_link.then_some((direction, Ipv6Addr::from(from), Ipv6Addr::from(to)))
        };
        Ok(answers.iter().filter_map(|answer| policy(answer)).collect())
    }

    fn add_state(&mut self, policy: &Policy, key: &[u8; 36]) -> io::Result<()> {
        let mut info = Zeroizing::new(Vec::with_capacity(STATE));
        info.extend(selector(None));
        info.extend(id(policy.to, policy.number));
        info.extend(address(policy.from));
        info.extend(lifetime());
        info.extend([0; 32 + 12 + 4]);
        info.extend(policy.link.to_ne_bytes());
        info.extend(family(policy.from).to_ne_bytes());
        info.extend([TUNNEL, 0, EXTENDED]);
        info.resize(STATE, 0);
        let mut body = Body::new(&info);
        let mut cipher = Zeroizing::new(Vec::with_capacity(64 + 8 + key.len()));
        cipher.extend_from_slice(b"rfc4106(gcm(aes))");
        cipher.resize(64, 0);
        // In bits: the key with its salt, and the check value.
        cipher.extend_from_slice(&288_u32.to_ne_bytes());
        cipher.extend_from_slice(&128_u32.to_ne_bytes());
        cipher.extend_from_slice(key);
        body.put(CIPHER, &cipher);
        let words = WINDOW / 32;
        let mut replay: Vec<u8> =
            [words, 0, 0, 0, 0, WINDOW].iter().flat_map(|field| field.to_ne_bytes()).collect();
        replay.resize(replay.len() + WINDOW as usize / 8, 0);
        body.put(REPLAY, &replay);
        body.put(LINK, &policy.link.to_ne_bytes());
        self.0.request(NEW_STATE, CREATE, &body).map(drop)
    }

    fn remove_state(&mut self, (to, number): Place) -> io::Result<()> {
        let mut info = address(to).to_vec();
        info.extend(number.to_be_bytes());
        info.extend(family(to).to_ne_bytes());
        info.extend([ESP, 0]);
        or_gone(self.0.request(REMOVE_STATE, 0, &Body::new(&info)))
    }

    fn add_policy(&mut self, policy: &Policy) -> io::Result<()> {
        let mut info = selector(Some((policy.source, policy.destination)));
        info.extend(lifetime());
        info.extend([0; 32 + 8]);
        info.extend([policy.direction, 0, 0, 0]);
        info.resize(POLICY, 0);
        let mut body = Body::new(&info);
        let mut template = id(policy.to, policy.number).to_vec();
        template.extend(family(policy.from).to_ne_bytes());
        template.extend([0; 2]);
        template.extend(address(policy.from));
        template.extend(policy.link.to_ne_bytes());
        // Required, with whatever algorithm the association has.
        template.extend([TUNNEL, 0, 0, 0]);
        template.extend([0xff; 12]);
        body.put(TEMPLATES, &template);
        body.put(LINK, &policy.link.to_ne_bytes());
        self.0.request(NEW_POLICY, CREATE, &body).map(drop)
    }

    fn remove_policy(&mut self, (direction, source, destination): Selected, link: u32) -> io::Result<()> {
        let mut info = selector(Some((source, destination)));
        info.extend([0; 4]);
        info.extend([direction, 0, 0, 0]);
        let mut body = Body::new(&info);
        body.put(LINK, &link.to_ne_bytes());
        or_gone(self.0.request(REMOVE_POLICY, 0, &body))
    }
}

/// What a policy is about: its direction, and the addresses inside.
type Selected = (u8, Ipv6Addr, Ipv6Addr);

impl Pair {
    fn new(end: End, peer: &Peer, (out, back): (u32, u32)) -> Self {
        let End { link, outer, inner } = end;
        Self {
            out: Policy {
                direction: OUT,
                link,
                source: inner,
                destination: peer.inner,
                from: outer,
                to: peer.outer,
                number: out,
            },
            back: Policy {
                direction: IN,
                link,
                source: peer.inner,
                destination: inner,
                from: peer.outer,
                to: outer,
                number: back,
            },
        }
    }
}

fn is_link(kind: u16, value: &[u8], link: u32) -> bool {
    kind == LINK && array(value, 0) == Some(link.to_ne_bytes())
}

fn or_gone<T>(done: io::Result<T>) -> io::Result<()> {
    const ESRCH: i32 = 3;
    match done {
        Err(error) if error.raw_os_error() == Some(ESRCH) || error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        done => done.map(drop),
    }
}

/// `xfrm_address_t`.
fn address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn family(address: IpAddr) -> u16 {
    if address.is_ipv4() { INET } else { INET6 }
}

/// `struct xfrm_selector`: packets of IPv6 from one address to another, or all of them.
fn selector(between: Option<(Ipv6Addr, Ipv6Addr)>) -> Vec<u8> {
    let (source, destination) = between.unwrap_or((Ipv6Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED));
    let length = if between.is_some() { 128 } else { 0 };
    let mut bytes = [destination.octets(), source.octets()].concat();
    // Ports.
    bytes.extend([0; 8]);
    bytes.extend(INET6.to_ne_bytes());
    bytes.extend([length, length]);
    bytes.resize(SELECTOR, 0);
    bytes
}

/// `struct xfrm_id`.
fn id(to: IpAddr, number: u32) -> [u8; 24] {
    let mut bytes = [0; 24];
    for (to, from) in bytes.iter_mut().zip(address(to).into_iter().chain(number.to_be_bytes()).chain([ESP])) {
        *to = from;
    }
    bytes
}

/// `struct xfrm_lifetime_cfg`: it never ends by itself.
fn lifetime() -> Vec<u8> {
    [[0xff; 32], [0; 32]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layouts that a 64-bit kernel has.
    #[test]
    fn structures_have_the_kernels_lengths() {
        let v6 = Ipv6Addr::LOCALHOST;
        assert_eq!(selector(Some((v6, v6))).len(), SELECTOR);
        assert_eq!(id(IpAddr::V6(v6), 7).len(), 24);
        assert_eq!(lifetime().len(), 64);
        assert_eq!(SELECTOR + 24 + 16 + 64 + 32 + 12 + 4 + 4, STATE_FAMILY);
        assert_eq!(SELECTOR + 64 + 32 + 8, POLICY_DIRECTION);
    }

    #[test]
    fn one_direction_is_the_others_at_the_other_end() {
        let (here, there) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let (inner, other) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let key = PublicKey([1; 32]);
        let at_a = Pair::new(
            End { link: 7, outer: here, inner },
            &Peer { key, outer: there, inner: other },
            (300, 400),
        );
        let at_b = Pair::new(
            End { link: 7, outer: there, inner: other },
            &Peer { key, outer: here, inner },
            (400, 300),
        );
        assert_eq!(Policy { direction: IN, ..at_a.out }, at_b.back);
        assert_eq!(Policy { direction: IN, ..at_b.out }, at_a.back);
    }
}
