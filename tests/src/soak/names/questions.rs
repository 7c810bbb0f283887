//! What is asked: names of every form, in any case, of any type, and what is no query at all.

use super::message::{kind, query, question};
use super::model::{DOMAIN, Group, SERVICES, TAGS, What, ZONES, address_of, id_of, name_of};
use crate::soak::random::Random;

/// Types, the common ones more often.
const KINDS: [u16; 12] = [
    kind::A,
    kind::A,
    kind::A,
    kind::A,
    kind::AAAA,
    kind::AAAA,
    kind::SRV,
    kind::SRV,
    kind::SRV,
    kind::ANY,
    kind::HTTPS,
    kind::TXT,
];
/// Copies that are asked for: more than there may be.
const COPIES: usize = 14;

/// A good question.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) what: What,
    pub(super) kind: u16,
    pub(super) name: String,
}

impl Question {
    /// Any.
    pub(super) fn any(random: &mut Random) -> Self {
        let service = random.below(SERVICES);
        let name = name_of(service);
        let copies = |group, all| What::Copies { service, group, all };
        let ports = |group, http| What::Ports { service, group, http };
        let kind = KINDS[random.below(KINDS.len())];
        let (tag, zone) = (TAGS[random.below(TAGS.len())], ZONES[random.below(ZONES.len())]);
        let number = random.below(COPIES);
        let address = address_of(service, number);
        let (what, left, kind) = match random.below(18) {
            0..=4 => (copies(Group::All, false), name, kind),
            5 => (copies(Group::All, false), format!("{name}.service"), kind),
            6 => (copies(Group::All, false), format!("{name}.service.dc1"), kind),
            7 => (copies(Group::All, true), format!("tasks.{name}"), kind),
            8 => (copies(Group::Tagged(tag), false), format!("{tag}.{name}.service"), kind),
            9 => (copies(Group::InZone(zone), false), format!("{name}.zone.{zone}"), kind),
            10 => (ports(Group::All, false), format!("_{name}._tcp"), kind),
            11 => (ports(Group::Tagged(tag), false), format!("_{name}._{tag}.service"), kind),
            12 => (ports(Group::All, true), format!("_http._tcp.{name}"), kind),
            13 => (What::Copy { service, number }, format!("{}.{name}", id_of(number)), kind),
            14 => {
                let std::net::IpAddr::V4(v4) = address_of(service, number % 4) else {
                    unreachable!("one of the first")
                };
                (What::Spelled(v4.into()), format!("{:08x}.addr", u32::from(v4)), kind)
            }
            15 => (What::Owner { service, address }, String::new(), kind::PTR),
            16 => (What::Missing, format!("no-{name}"), kind),
            _ => (What::Missing, format!("no.such.{name}"), kind),
        };
        let whole = match what {
            What::Owner { address, .. } => reverse(address),
            _ => format!("{left}.{DOMAIN}"),
        };
        Self { what, kind, name: in_any_case(&whole, random) }
    }

    /// What stands in a message.
    pub(super) fn octets(&self) -> Vec<u8> {
        question(&self.name, self.kind)
    }
}

fn reverse(address: std::net::IpAddr) -> String {
    match address {
        std::net::IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        std::net::IpAddr::V6(address) => {
            let digits = address.octets().into_iter().rev().flat_map(|octet| [octet & 0xf, octet >> 4]);
            let labels: Vec<String> = digits.map(|digit| format!("{digit:x}")).collect();
            format!("{}.ip6.arpa", labels.join("."))
        }
    }
}

/// Half of the questions are asked as they are.
fn in_any_case(name: &str, random: &mut Random) -> String {
    if random.below(2) == 0 {
        return name.to_owned();
    }
    let other = |letter: char| if random.below(2) == 0 { letter } else { letter.to_ascii_uppercase() };
    name.chars().map(other).collect()
}

/// How much a client says that it takes over UDP.
pub(super) fn payload(random: &mut Random) -> Option<u16> {
    [None, None, Some(512), Some(1232), Some(4096), Some(0)][random.below(6)]
}

/// Octets that may be a query, and more often are none.
pub(super) fn broken(id: u16, random: &mut Random) -> Vec<u8> {
    let mut octets = query(id, &Question::any(random).octets(), payload(random));
    let any = |random: &mut Random| u8::try_from(random.below(256)).unwrap_or(0);
    match random.below(5) {
        // The id stays, by which an answer is known.
        0 => octets.truncate(2 + random.below(octets.len() - 2)),
        1 => (0..=random.below(40)).for_each(|_| octets.push(any(random))),
        2 => octets[2..].fill_with(|| any(random)),
        _ => {
            for _ in 0..=random.below(4) {
                let at = 2 + random.below(octets.len() - 2);
                octets[at] = any(random);
            }
        }
    }
    octets
}
