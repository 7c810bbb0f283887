//! Names that mean nothing outside a host or a site, and must not leak: they are answered here, unless a route names them.
//!
//! `localhost` and the loopback addresses have their answers (RFC 6761 section 6.3); of the others there is none. The list is that of
//! unbound's defaults, and `local`, which is multicast DNS's and which systemd-resolved keeps as well: RFC 6761
//! (`invalid`, `test`), RFC 6762 (`local`), RFC 7686 (`onion`), RFC 9476 (`alt`), RFC 9462 (`resolver.arpa`), and the reverse zones
//! of RFC 6303 and RFC 7793. `home.arpa` is not in it: the resolver of a home network has it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use tokio::time::Instant;

use super::answer::Relayed;
use crate::dns::suffix::Suffix;
use crate::dns::wire::{self, Question, flag, rcode};

/// How long clients may keep such an answer. Short, because a route may come.
const TTL: u32 = 300;
const A: u16 = 1;
const SOA: u16 = 6;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const LOCALHOST: &[u8] = b"\x09localhost\0";

/// What there is under a name that is answered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    /// The loopback addresses.
    Localhost,
    /// The names of addresses, of which the first address of the range is `localhost`.
    Loopback,
    /// Nothing.
    Empty,
    /// Not even the name itself.
    Missing,
}

const EMPTY: &[&str] = &[
    "invalid",
    "test",
    "onion",
    "local",
    "alt",
    "resolver.arpa",
    "0.in-addr.arpa",
    "10.in-addr.arpa",
    "168.192.in-addr.arpa",
    "254.169.in-addr.arpa",
    "2.0.192.in-addr.arpa",
    "100.51.198.in-addr.arpa",
    "113.0.203.in-addr.arpa",
    "255.255.255.255.in-addr.arpa",
    "d.f.ip6.arpa",
    "8.e.f.ip6.arpa",
    "9.e.f.ip6.arpa",
    "a.e.f.ip6.arpa",
    "b.e.f.ip6.arpa",
    "8.b.d.0.1.0.0.2.ip6.arpa",
    "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
];
const LOOPBACK: &[&str] =
    &["127.in-addr.arpa", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa"];
const FIRST_LOOPBACK: &[u8] = b"\x011\x010\x010\x03127\x07in-addr\x04arpa\0";

static ZONES: LazyLock<HashMap<Suffix, Special>> = LazyLock::new(|| {
    let shared = (64..128).map(|n| format!("{n}.100.in-addr.arpa"));
    let private = (16..32).map(|n| format!("{n}.172.in-addr.arpa"));
    let ranges = shared.chain(private).map(|zone| (zone, Special::Empty));
    let empty = EMPTY.iter().map(|zone| ((*zone).to_owned(), Special::Empty));
    let loopback = LOOPBACK.iter().map(|zone| ((*zone).to_owned(), Special::Loopback));
    let all = empty.chain(ranges).chain(loopback).chain([("localhost".to_owned(), Special::Localhost)]);
    all.filter_map(|(zone, special)| Some((zone.parse().ok()?, special))).collect()
});

/// What this name is, if the zone begins with it.
pub(super) fn zone(name: &[u8]) -> Option<Special> {
    ZONES.get(name).copied()
}

impl Special {
    /// The answer to a question whose name's last octets, from `apex` on, are the zone's.
    pub(super) fn answer(self, question: &Question, apex: usize) -> Option<Relayed> {
        let name = question.name();
        let found: Option<Vec<u8>> = match (self, question.kind()) {
            (Self::Localhost, A) => Some(Ipv4Addr::LOCALHOST.octets().to_vec()),
            (Self::Localhost, AAAA) => Some(Ipv6Addr::LOCALHOST.octets().to_vec()),
            (Self::Loopback, PTR) if is_first_loopback(name, apex) => Some(LOCALHOST.to_vec()),
            _ => None,
        };
        let is_there = match self {
            Self::Localhost => true,
            // Names that others stand below are there (RFC 8020).
            Self::Loopback => apex == 0 || FIRST_LOOPBACK.ends_with(name),
            Self::Empty => apex == 0,
            Self::Missing => false,
        };
        let soa_is_asked = apex == 0 && is_there && question.kind() == SOA;
        let code = if is_there { rcode::NO_ERROR } else { rcode::NX_DOMAIN };
        let mut message = wire::query(0, flag::RESPONSE | flag::RECURSION_AVAILABLE | code, question, None);
        match found {
            Some(data) => {
                record(&mut message, 0, question.kind(), &data);
                wire::put_u16(&mut message, 6, 1);
            }
            None => {
                let mut data = pointer(apex).to_vec();
                // Of nobody (RFC 6303 section 3).
                data.extend(b"\x06nobody\x07invalid\0");
                [1, 3600, 1200, 604_800, TTL].iter().for_each(|field| data.extend(field.to_be_bytes()));
                record(&mut message, apex, SOA, &data);
                wire::put_u16(&mut message, if soa_is_asked { 6 } else { 8 }, 1);
            }
        }
        Relayed::new(message, Instant::now())
    }
}

/// `127.0.0.1` or `::1`.
fn is_first_loopback(name: &[u8], apex: usize) -> bool {
    name == FIRST_LOOPBACK || apex == 0 && name.ends_with(b"\x03ip6\x04arpa\0")
}

/// Points into the question's name.
fn pointer(at: usize) -> [u8; 2] {
    let at = u16::try_from(wire::HEADER + at).unwrap_or(0);
    (0xc000 | at).to_be_bytes()
}

fn record(message: &mut Vec<u8>, owner: usize, kind: u16, data: &[u8]) {
    message.extend(pointer(owner));
    for field in [kind, 1] {
        message.extend(field.to_be_bytes());
    }
    message.extend(TTL.to_be_bytes());
    message.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
    message.extend(data);
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, ResponseCode};

    use super::*;
    use crate::dns::suffix::ends;

    fn asked(name: &str, kind: u16) -> Option<(ResponseCode, Vec<String>, bool)> {
        let suffix: Suffix = name.parse().unwrap();
        let mut octets = suffix.as_bytes().to_vec();
        octets.extend(kind.to_be_bytes());
        octets.extend([0, 1]);
        let question = Question::new(&octets).unwrap();
        let whole = question.name().len();
        let found = ends(question.name()).find_map(|end| Some((whole - end.len(), zone(end)?)));
        let (apex, special) = found?;
        let answer = special.answer(&question, apex).unwrap();
        let message = Message::from_vec(&answer.message).unwrap();
        let data = message.answers.iter().map(|record| record.data.to_string()).collect();
        Some((message.metadata.response_code, data, message.authorities.len() == 1))
    }

    #[test]
    fn the_loopback_has_names_and_addresses() {
        let says = |name, kind, data: &str| {
            assert_eq!(
                asked(name, kind),
                Some((ResponseCode::NoError, vec![data.to_owned()], false)),
                "{name}"
            );
        };
        says("localhost", A, "127.0.0.1");
        says("a.b.localhost", AAAA, "::1");
        says("1.0.0.127.in-addr.arpa", PTR, "localhost.");
        says(LOOPBACK[1], PTR, "localhost.");
    }

    #[test]
    fn there_is_nothing_else() {
        for name in
            ["x.invalid", "abc.onion", "printer.local", "4.3.2.10.in-addr.arpa", "1.16.172.in-addr.arpa"]
                .into_iter()
                .chain([
                    "1.64.100.in-addr.arpa",
                    "2.0.0.127.in-addr.arpa",
                    "1.8.e.f.ip6.arpa",
                    "9.127.in-addr.arpa",
                ])
        {
            assert_eq!(asked(name, PTR), Some((ResponseCode::NXDomain, Vec::new(), true)), "{name}");
        }
        for (name, kind) in [("localhost", 15), ("10.in-addr.arpa", PTR), ("0.127.in-addr.arpa", PTR)] {
            assert_eq!(asked(name, kind), Some((ResponseCode::NoError, Vec::new(), true)), "{name}");
        }
        assert_eq!(asked("onion", SOA).unwrap().1.len(), 1);
        for name in ["example.com", "8.8.8.8.in-addr.arpa", "32.172.in-addr.arpa", "notlocalhost", "arpa"] {
            assert_eq!(asked(name, PTR), None, "{name}");
        }
        assert_eq!(ZONES.len(), EMPTY.len() + LOOPBACK.len() + 64 + 16 + 1, "each of them is a name");
    }
}
