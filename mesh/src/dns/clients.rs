//! Sets of clients: those whose addresses mean nothing outside a site, and ranges that are told.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use nerve::model::Prefix;

/// Clients by their addresses; at most [`Clients::MOST`] members, which are looked through one by one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clients {
    private: bool,
    ranges: Arc<[Prefix]>,
}

/// What a set of clients is told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    /// Addresses that are not globally routable (loopback, RFC 1918, RFC 6598, link-local, RFC 4193, documentation and
    /// benchmark networks).
    Private,
    /// A range.
    Range(Prefix),
}

/// Why a list is no set of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has {given} ranges, and each query may be compared with all of them; write {most} or fewer", most = Clients::MOST)]
pub struct TooManyClients {
    given: usize,
}

impl Clients {
    /// The most members.
    pub const MOST: usize = 64;

    /// Those without a globally routable address.
    #[must_use]
    pub fn private() -> Self {
        Self { private: true, ranges: Arc::default() }
    }

    /// Those of any member.
    ///
    /// # Errors
    /// They are too many.
    pub fn new(members: &[Member]) -> Result<Self, TooManyClients> {
        if members.len() > Self::MOST {
            return Err(TooManyClients { given: members.len() });
        }
        let ranges = members.iter().filter_map(|member| match member {
            Member::Private => None,
            Member::Range(range) => Some(*range),
        });
        Ok(Self { private: members.contains(&Member::Private), ranges: ranges.collect() })
    }

    /// Is this one of them?
    #[must_use]
    pub fn contains(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.private && is_private(client) || self.ranges.iter().any(|range| range.contains(client))
    }

    /// What they are told by.
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        let private = self.private.then_some(Member::Private);
        private.into_iter().chain(self.ranges.iter().copied().map(Member::Range))
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private => f.pad("private"),
            Self::Range(range) => range.fmt(f),
        }
    }
}

impl FromStr for Member {
    type Err = <Prefix as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "private" { Ok(Self::Private) } else { text.parse().map(Self::Range) }
    }
}

fn is_private(client: IpAddr) -> bool {
    match client {
        IpAddr::V4(ip) => !is_global_v4(ip),
        IpAddr::V6(ip) => !is_global_v6(ip),
    }
}

/// The IANA IPv4 special-purpose registry (RFC 6890), as far as a client can have such an address.
fn is_global_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let benchmark = a == 198 && (18..20).contains(&b);
    !(ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_documentation()
        || shared
        || benchmark)
}

fn is_global_v6(ip: Ipv6Addr) -> bool {
    let documentation = ip.segments()[..2] == [0x2001, 0xdb8];
    !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local() || documentation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(members: &[&str]) -> Clients {
        Clients::new(&members.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn private_is_what_is_not_globally_routable() {
        for private in
            ["127.0.0.1", "10.1.2.3", "100.64.0.1", "192.0.2.7", "::1", "fd00::1", "::ffff:10.0.0.1"]
        {
            assert!(Clients::private().contains(private.parse().unwrap()), "{private}");
        }
        for global in ["8.8.8.8", "100.128.0.1", "2606:4700::1", "::ffff:8.8.8.8"] {
            assert!(!Clients::private().contains(global.parse().unwrap()), "{global}");
        }
    }

    #[test]
    fn ranges_hold_those_in_them_and_nobody_else() {
        let some = clients(&["8.8.0.0/16", "2606:4700::/32"]);
        for (client, is_in) in [
            ("8.8.8.8", true),
            ("::ffff:8.8.8.8", true),
            ("8.9.0.0", false),
            ("2606:4700::1", true),
            ("2606:4701::", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(some.contains(client.parse().unwrap()), is_in, "{client}");
        }
        let both = clients(&["8.8.0.0/16", "private"]);
        assert!(["8.8.8.8", "127.0.0.1"].iter().all(|client| both.contains(client.parse().unwrap())));
        assert!(!clients(&[]).contains("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn members_are_read_as_they_are_shown_and_bounded() {
        let shown: Vec<_> =
            clients(&["10.0.0.0/8", "private"]).members().map(|member| member.to_string()).collect();
        assert_eq!(shown, ["private", "10.0.0.0/8"]);
        assert!("10.0.0.1/8".parse::<Member>().is_err() && "public".parse::<Member>().is_err());
        assert!(Clients::new(&[Member::Private; Clients::MOST]).is_ok());
        let error = Clients::new(&[Member::Private; Clients::MOST + 1]).unwrap_err().to_string();
        assert!(error.contains("65 ranges") && error.contains("64 or fewer"), "{error}");
    }
}
