//! Probes between agents: does a packet of this size come back, through the tunnel and beneath it?
//!
//! A probe is a UDP datagram that the other agent sends back as it is. `echo` answers, on this node's gateways and on its own
//! address; `ask` asks. What a probe has told is judged elsewhere. An answer is never longer than the question, goes to peers
//! alone, and is never answered itself: nobody is flooded with them, and two agents never talk to each other for ever.

mod ask;
mod echo;
mod targets;

use std::net::IpAddr;

pub use ask::Outcome;
pub use targets::{Path, Peer, Prober, Underlay, Way};

pub(super) use echo::start;

/// What every probe begins with.
const MAGIC: [u8; 4] = *b"plxp";
/// Magic, kind and token.
const HEAD: usize = 4 + 1 + 8;
/// UDP's header (RFC 768).
const UDP_HEADER: u32 = 8;

/// What a probe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// To be answered.
    Question,
    /// To be answered without a UDP checksum.
    BareQuestion,
    Answer,
    /// Asks whether a question with this token has come, by whatever way: the answer is the next one if it has not.
    Inquiry,
    NotHeard,
}

/// A probe without what fills it up to its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    kind: Kind,
    /// Says which question an answer belongs to.
    token: u64,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Question, Self::BareQuestion, Self::Answer, Self::Inquiry, Self::NotHeard];

    fn number(self) -> u8 {
        match self {
            Self::Question => 1,
            Self::BareQuestion => 2,
            Self::Answer => 3,
            Self::Inquiry => 4,
            Self::NotHeard => 5,
        }
    }
}

impl Message {
    /// `None`: it is no probe, or of a kind that this version does not know.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (head, _) = bytes.split_first_chunk::<HEAD>()?;
        let (magic, rest) = head.split_first_chunk::<4>()?;
        let (number, token) = rest.split_first()?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.number() == *number)?;
        (*magic == MAGIC).then_some(Self { kind, token: u64::from_be_bytes(token.try_into().ok()?) })
    }

    /// Over the beginning of `bytes`, as far as there is room.
    fn write(self, bytes: &mut [u8]) {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&MAGIC);
        head[4] = self.kind.number();
        head[5..].copy_from_slice(&self.token.to_be_bytes());
        let length = bytes.len().min(HEAD);
        bytes[..length].copy_from_slice(&head[..length]);
    }
}

/// The port that probes go to, beside that of the tunnels: both are the same on every node.
#[must_use]
pub fn port(tunnels: u16) -> u16 {
    tunnels.checked_add(1).unwrap_or(tunnels - 1)
}

/// The IP header of a packet between such addresses.
fn ip_header(address: IpAddr) -> u32 {
    if address.is_ipv4() { super::plan::IPV4_HEADER } else { super::plan::IPV6_HEADER }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_probe_is_not_taken_for_one() {
        let mut bytes = [0; HEAD];
        Message { kind: Kind::Question, token: 7 }.write(&mut bytes);
        for wrong in [&bytes[..HEAD - 1], b"", b"plxq\x01\0\0\0\0\0\0\0\0", b"plxp\x06\0\0\0\0\0\0\0\0"] {
            assert_eq!(Message::read(wrong), None);
        }
    }

    #[test]
    fn the_port_is_beside_that_of_the_tunnels() {
        assert_eq!((port(4789), port(65535)), (4790, 65534));
    }

    proptest! {
        #[test]
        fn a_probe_of_any_size_reads_as_it_was_written(token: u64, size in HEAD..2000, kind in 0..5_usize) {
            let kind = Kind::ALL[kind];
            let mut bytes = vec![0xa5; size];
            Message { kind, token }.write(&mut bytes);
            prop_assert_eq!(Message::read(&bytes), Some(Message { kind, token }));
        }
    }
}
