//! DNS cookies (RFC 7873, RFC 9018): a client that shows the one it was given has been at its address, so what it is sent falls upon
//! nobody else.
//!
//! The secret is this agent's own, random, and lives no longer than the agent: who shows a cookie of another secret is
//! answered as whoever has none yet, with a new one, so a hand-over costs nobody an answer.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::siphash::{self, Key};

/// Octets of a client's part.
pub(in crate::dns) const CLIENT: usize = 8;
/// Octets of ours: a version, three of nothing, four of time, eight of hash (RFC 9018 section 4).
const SERVER: usize = 16;
/// Octets of it before the hash.
const HEAD: usize = 8;
/// A cookie as we give it: the client's part, ours behind it.
pub(in crate::dns) type Cookie = [u8; CLIENT + SERVER];

const VERSION: [u8; 4] = [1, 0, 0, 0];
/// Seconds that a cookie is good for, may be ahead of time, and is given again for (RFC 9018 section 4.3).
const GOOD_FOR: u32 = 3600;
const AHEAD: u32 = 300;
const RENEWED_AFTER: u32 = 1800;
/// Seconds that a secret is used. The one before it is good for as long as its last cookies.
const SECRET_FOR: u32 = 24 * 3600;

/// What a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dns) struct Sent {
    client: [u8; CLIENT],
    server: Server,
}

/// What it shows of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    /// Nothing: it knows none yet.
    None,
    /// What may be of this server.
    Shown([u8; SERVER]),
    /// What cannot be.
    Foreign,
}

/// What is to be thought of a client's cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    /// It has none of ours yet.
    New,
    /// It is ours, for this client, and recent.
    Valid,
    /// It is not.
    Invalid,
}

/// Makes cookies and knows them again.
#[derive(Debug)]
pub(super) struct Cookies {
    secrets: ArcSwap<Secrets>,
}

#[derive(Debug, Clone)]
struct Secrets {
    current: Key,
    before: Option<Key>,
    /// Seconds since 1970; compared as serial numbers are, so it may wrap.
    since: u32,
}

/// Makes cookies at one moment.
#[derive(Debug)]
pub(super) struct Signer {
    secrets: Arc<Secrets>,
    now: u32,
}

impl Sent {
    /// Reads the option's data; `None`: it has a length that no cookie has (RFC 7873 section 5.2.2).
    pub(in crate::dns) fn read(data: &[u8]) -> Option<Self> {
        let (client, server) = data.split_first_chunk()?;
        let server = match server.len() {
            0 => Server::None,
            SERVER => server.try_into().map_or(Server::Foreign, Server::Shown),
            8..=32 => Server::Foreign,
            _ => return None,
        };
        Some(Self { client: *client, server })
    }
}

impl Cookies {
    pub(super) fn new(now: u32) -> Self {
        let secrets = Secrets { current: rand::random(), before: None, since: now };
        Self { secrets: ArcSwap::from_pointee(secrets) }
    }

    pub(super) fn signer(&self, now: u32) -> Signer {
        Signer { secrets: self.secrets.load_full(), now }
    }

    /// Takes a new secret when it is time for one.
    pub(super) fn tidy(&self, now: u32) {
        let secrets = self.secrets.load();
        let age = now.wrapping_sub(secrets.since);
        if age >= SECRET_FOR {
            let next = Secrets { current: rand::random(), before: Some(secrets.current), since: now };
            self.secrets.store(Arc::new(next));
        } else if age > GOOD_FOR && secrets.before.is_some() {
            self.secrets.store(Arc::new(Secrets { before: None, ..Secrets::clone(&secrets) }));
        }
    }
}

impl Signer {
    /// What is to be thought of what was sent from this address, and the cookie that is said back.
    pub(super) fn judge(&self, sent: &Sent, client: IpAddr) -> (Worth, Cookie) {
        let Server::Shown(shown) = sent.server else {
            let worth = if sent.server == Server::None { Worth::New } else { Worth::Invalid };
            return (worth, self.make(sent, client));
        };
        let head: [u8; HEAD] = std::array::from_fn(|at| shown[at]);
        let [version, _, _, _, time @ ..] = head;
        let time = u32::from_be_bytes(time);
        let age = self.now.wrapping_sub(time);
        let is_recent = version == VERSION[0] && (age <= GOOD_FOR || time.wrapping_sub(self.now) <= AHEAD);
        // As numbers: how long it takes tells nothing of where they differ.
        let made_with = |key: &Key| {
            let expected = server_cookie(key, &sent.client, head, client);
            u128::from_ne_bytes(expected) == u128::from_ne_bytes(shown)
        };
        if !is_recent {
            return (Worth::Invalid, self.make(sent, client));
        }
        if made_with(&self.secrets.current) {
            // Given back as it is, so that most questions cost one hash.
            let cookie = if age <= RENEWED_AFTER && head.starts_with(&VERSION) {
                join(sent, shown)
            } else {
                self.make(sent, client)
            };
            return (Worth::Valid, cookie);
        }
        let worth =
            if self.secrets.before.as_ref().is_some_and(made_with) { Worth::Valid } else { Worth::Invalid };
        (worth, self.make(sent, client))
    }

    fn make(&self, sent: &Sent, client: IpAddr) -> Cookie {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&VERSION);
        head[4..].copy_from_slice(&self.now.to_be_bytes());
        join(sent, server_cookie(&self.secrets.current, &sent.client, head, client))
    }
}

fn join(sent: &Sent, server: [u8; SERVER]) -> Cookie {
    let mut cookie = [0; CLIENT + SERVER];
    cookie[..CLIENT].copy_from_slice(&sent.client);
    cookie[CLIENT..].copy_from_slice(&server);
    cookie
}

/// RFC 9018 section 4.4: what stands before the hash is hashed with both sides' names.
fn server_cookie(key: &Key, client_cookie: &[u8; CLIENT], head: [u8; HEAD], client: IpAddr) -> [u8; SERVER] {
    let mut data = [0; CLIENT + HEAD + 16];
    data[..CLIENT].copy_from_slice(client_cookie);
    data[CLIENT..CLIENT + HEAD].copy_from_slice(&head);
    let address = &mut data[CLIENT + HEAD..];
    let length = match client {
        IpAddr::V4(ip) => {
            address[..4].copy_from_slice(&ip.octets());
            4
        }
        IpAddr::V6(ip) => {
            address.copy_from_slice(&ip.octets());
            16
        }
    };
    let hash = siphash::hash(key, &data[..CLIENT + HEAD + length]);
    let mut cookie = [0; SERVER];
    cookie[..HEAD].copy_from_slice(&head);
    cookie[HEAD..].copy_from_slice(&hash.to_le_bytes());
    cookie
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_559_731_985;
    const CLIENT_PART: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    fn octets<const N: usize>(hex: &str) -> [u8; N] {
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
    }

    /// The examples of RFC 9018, appendix A.
    #[test]
    fn other_makes_of_servers_with_our_secret_would_make_the_same() {
        const FIRST: &str = "e5e973e5a6b2a43f48e7dc849e37bfcf";
        for (secret, client_cookie, client, expected) in [
            (FIRST, "2464c4abcf10c957", "198.51.100.100", "010000005cf79f111f8130c3eee29480"),
            (FIRST, "2464c4abcf10c957", "198.51.100.100", "010000005cf7a871d4a564a1442aca77"),
            (FIRST, "fc93fc62807ddb86", "203.0.113.203", "010000005cf7a9acf73a7810aca2381e"),
            // What is reserved counts as it came.
            (FIRST, "fc93fc62807ddb86", "203.0.113.203", "01abcdef5cf78f71a314227b6679ebf5"),
            (
                "445536bcd2513298075a5d379663c962",
                "22681ab97d52c298",
                "2001:db8:220:1:59de:d0f4:8769:82b8",
                "010000005cf7c609a6bb79d16625507a",
            ),
        ] {
            let client = client.parse().unwrap();
            let made = server_cookie(&octets(secret), &octets(client_cookie), octets(expected), client);
            assert_eq!(made, octets(expected), "{client}");
        }
    }

    fn sent(cookie: &Cookie) -> Sent {
        Sent::read(cookie).unwrap()
    }

    #[test]
    fn a_cookie_is_good_for_its_address_and_its_time() {
        let cookies = Cookies::new(NOW);
        let (here, there) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let (worth, cookie) = cookies.signer(NOW).judge(&Sent::read(&CLIENT_PART).unwrap(), here);
        assert_eq!(worth, Worth::New);
        assert_eq!(cookie[..8], CLIENT_PART);
        for (after, client, worth, is_same) in [
            (0, here, Worth::Valid, true),
            (1800, here, Worth::Valid, true),
            (1801, here, Worth::Valid, false),
            (3600, here, Worth::Valid, false),
            (3601, here, Worth::Invalid, false),
            (0, there, Worth::Invalid, false),
        ] {
            let judged = cookies.signer(NOW + after).judge(&sent(&cookie), client);
            assert_eq!((judged.0, judged.1 == cookie), (worth, is_same), "after {after} s from {client}");
        }
        // A clock that was set back.
        assert_eq!(cookies.signer(NOW - 300).judge(&sent(&cookie), here).0, Worth::Valid);
        assert_eq!(cookies.signer(NOW - 301).judge(&sent(&cookie), here).0, Worth::Invalid);
        let mut other = cookie;
        other[23] ^= 1;
        assert_eq!(cookies.signer(NOW).judge(&sent(&other), here).0, Worth::Invalid);
        assert_eq!(Cookies::new(NOW).signer(NOW).judge(&sent(&cookie), here).0, Worth::Invalid);
    }

    #[test]
    fn a_secret_goes_and_its_last_cookies_are_good_to_their_end() {
        let cookies = Cookies::new(NOW);
        let here = [192, 0, 2, 1].into();
        let last = NOW + SECRET_FOR - 1;
        let (_, cookie) = cookies.signer(last).judge(&Sent::read(&CLIENT_PART).unwrap(), here);
        cookies.tidy(last);
        assert_eq!(cookies.signer(last).judge(&sent(&cookie), here), (Worth::Valid, cookie));
        cookies.tidy(last + 1);
        let (worth, renewed) = cookies.signer(last + 1).judge(&sent(&cookie), here);
        assert_eq!((worth, renewed == cookie), (Worth::Valid, false), "of the new secret at once");
        assert_eq!(cookies.signer(last + 1).judge(&sent(&renewed), here).0, Worth::Valid);
        cookies.tidy(last + 3602);
        assert!(cookies.secrets.load().before.is_none());
    }

    #[test]
    fn lengths_that_no_cookie_has_are_refused() {
        for length in 0..64 {
            let is_one = length == 8 || (16..=40).contains(&length);
            assert_eq!(Sent::read(&vec![7; length]).is_some(), is_one, "{length}");
        }
    }
}
