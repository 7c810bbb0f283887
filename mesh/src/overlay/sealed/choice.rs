//! Which keys of two nodes packets between them are encrypted with, and when a key has served (pure).
//!
//! A node that has a new key receives with it before anybody is told, and goes on with the old one. Whoever learns of it sets it up as
//! well. A pair of keys by which something has come is known at both ends: only then is it sent by, so nothing is lost.

use std::net::Ipv6Addr;
use std::time::Duration;

use nerve::model::{Cipher, NodeKey, PublicKey};
use ring::digest::{SHA256, digest};

/// The addresses inside: of our own links alone (a unique local prefix, RFC 4193).
pub(super) const RANGE: [u8; 8] = [0xfd, 0x50, 0x6c, 0x65, 0x78, 0x75, 0x73, 0x00];
/// How many bits of an address say that it is one of these.
pub(super) const RANGE_LENGTH: u8 = 64;
/// A key that is not needed any more is kept for so long, for whoever has not heard of the next one.
const OVERLAP: Duration = Duration::from_secs(600);

/// A key of this node: that of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) cipher: Cipher,
    /// Of the link's name.
    pub(super) slot: u8,
    /// Of the link.
    pub(super) index: u32,
    pub(super) key: PublicKey,
    /// In seconds since 1970.
    pub(super) since: u64,
}

/// What is known of a pair of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Contact {
    /// Nothing can be sent by it.
    None,
    /// Nothing has come by it yet.
    Ready,
    Heard,
}

/// The address inside that a key has.
pub(super) fn inner(key: PublicKey) -> Ipv6Addr {
    let mut address = [0; 16];
    let hashed = digest(&SHA256, &key.0);
    for (to, from) in address.iter_mut().zip(RANGE.iter().chain(hashed.as_ref())) {
        *to = *from;
    }
    Ipv6Addr::from(address)
}

/// The keys to send to a peer by, each the oldest first; `None`: there are none.
///
/// WireGuard is sent by where both have shaken hands. With ESP there is no such thing: a peer that has a new key receives with it, so that is
/// taken at once, and the own one once something has come by it.
pub(super) fn choose<'a>(
    owns: &'a [Own],
    keys: &'a [NodeKey],
    contact: impl Fn(&Own, &NodeKey) -> Contact,
) -> Option<(&'a Own, &'a NodeKey)> {
    let best = |own: &Own| keys.iter().map(|key| contact(own, key)).max().unwrap_or(Contact::None);
    let heard = owns.iter().rev().find(|own| best(own) == Contact::Heard);
    let own = heard.or_else(|| owns.iter().find(|own| best(own) == Contact::Ready))?;
    let least = match own.cipher {
        Cipher::WireGuard => best(own),
        Cipher::Esp => Contact::Ready,
    };
    keys.iter().rev().find(|key| contact(own, key) >= least).map(|key| (own, key))
}

/// Is it time for a new key?
pub(super) fn is_due(newest: Option<&Own>, lifetime: Duration, now: u64) -> bool {
    newest.is_none_or(|own| age(own, now) >= lifetime)
}

/// Has a key that is not the newest and that nothing is sent by served?
pub(super) fn has_served(newest: &Own, lifetime: Duration, now: u64) -> bool {
    age(newest, now) >= OVERLAP.min(lifetime / 2)
}

/// How old a key is.
pub(super) fn age(own: &Own, now: u64) -> Duration {
    Duration::from_secs(now.saturating_sub(own.since))
}

/// What a link's alias says: its key, and since when.
pub(super) fn alias(key: PublicKey, since: u64) -> String {
    format!("plexus {key} {since}")
}

/// The opposite.
pub(super) fn read_alias(alias: &str) -> Option<(PublicKey, u64)> {
    let (key, since) = alias.strip_prefix("plexus ")?.split_once(' ')?;
    Some((key.parse().ok()?, since.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(cipher: Cipher, number: u8) -> Own {
        let key = PublicKey([number; 32]);
        Own { cipher, slot: number, index: number.into(), key, since: number.into() }
    }

    fn key(cipher: Cipher, number: u8) -> NodeKey {
        NodeKey { cipher, key: PublicKey([number; 32]), port: 0, since: 0 }
    }

    /// The numbers of what is chosen, where these pairs were heard, and those can be sent by.
    fn chosen(cipher: Cipher, heard: &[(u8, u8)], ready: &[(u8, u8)]) -> Option<(u8, u8)> {
        let (owns, keys) = ([1, 2].map(|own_| own(cipher, own_)), [11, 12].map(|of| key(cipher, of)));
        let contact = |own: &Own, key: &NodeKey| {
            let pair = (own.key.0[0], key.key.0[0]);
            match (heard.contains(&pair), ready.contains(&pair)) {
                (true, _) => Contact::Heard,
                (_, true) => Contact::Ready,
                _ => Contact::None,
            }
        };
        choose(&owns, &keys, contact).map(|(own, key)| (own.key.0[0], key.key.0[0]))
    }

    #[test]
    fn what_is_new_is_sent_by_once_it_is_known_at_both_ends() {
        const ALL: [(u8, u8); 4] = [(1, 11), (1, 12), (2, 11), (2, 12)];
        for (heard, wireguard, esp) in [
            (&[][..], (1, 12), (1, 12)),
            (&[(1, 11)], (1, 11), (1, 12)),
            (&[(1, 11), (1, 12)], (1, 12), (1, 12)),
            (&[(1, 11), (2, 11)], (2, 11), (2, 12)),
            (&ALL, (2, 12), (2, 12)),
        ] {
            assert_eq!(chosen(Cipher::WireGuard, heard, &ALL), Some(wireguard), "{heard:?}");
            assert_eq!(chosen(Cipher::Esp, heard, &ALL), Some(esp), "{heard:?}");
        }
    }

    #[test]
    fn what_cannot_be_sent_by_is_not_chosen() {
        assert_eq!(chosen(Cipher::Esp, &[], &[(2, 11)]), Some((2, 11)), "the old key is another life's");
        assert_eq!(chosen(Cipher::Esp, &[], &[]), None);
    }

    #[test]
    fn a_key_ends_after_the_next_one_has_been_there_for_a_while() {
        let (newest, hour) = (own(Cipher::Esp, 100), Duration::from_secs(3600));
        assert!(
            !is_due(Some(&newest), hour, 3699) && is_due(Some(&newest), hour, 3700) && is_due(None, hour, 0)
        );
        assert!(!has_served(&newest, hour, 699) && has_served(&newest, hour, 700));
        assert!(has_served(&newest, Duration::from_secs(20), 110));
        assert_eq!(age(&newest, 7), Duration::ZERO, "a clock that was set back");
    }

    #[test]
    fn an_alias_reads_as_it_is_written_and_an_address_is_of_the_range() {
        let key = PublicKey([7; 32]);
        assert_eq!(read_alias(&alias(key, 9)), Some((key, 9)));
        assert_eq!([read_alias("plexus"), read_alias("plexus x 9"), read_alias("")], [None; 3]);
        assert!(inner(key).octets().starts_with(&RANGE) && inner(key) != inner(PublicKey([8; 32])));
    }
}
