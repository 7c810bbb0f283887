//! Which clients are proxies in front of this one: they must begin with a PROXY protocol header, and are believed.

use std::fmt;
use std::str::FromStr;

use nerve::model::Prefix;

use super::peer::Peer;

/// Some clients that are proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustedProxy {
    /// Whoever comes from there.
    At(Prefix),
    /// Whoever comes by a unix socket. Who may is decided by the socket's permissions.
    Unix,
}

impl TrustedProxy {
    /// Is this client one of them?
    pub(super) fn is(self, peer: Peer) -> bool {
        match (self, peer) {
            (Self::At(range), Peer::Ip(address)) => range.contains(address.ip()),
            (Self::Unix, Peer::Unix) => true,
            (Self::At(_), Peer::Unix) | (Self::Unix, Peer::Ip(_)) => false,
        }
    }
}

impl FromStr for TrustedProxy {
    type Err = <Prefix as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "unix" { Ok(Self::Unix) } else { text.parse().map(Self::At) }
    }
}

impl fmt::Display for TrustedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(range) => range.fmt(f),
            Self::Unix => f.pad("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_for_addresses_and_unix_is_for_those_who_have_none() {
        let at = Peer::Ip("192.0.2.9:40000".parse().unwrap());
        for (text, is_at, is_unix) in
            [("192.0.2.0/24", true, false), ("198.51.100.0/24", false, false), ("unix", false, true)]
        {
            let trusted: TrustedProxy = text.parse().unwrap();
            assert_eq!((trusted.is(at), trusted.is(Peer::Unix)), (is_at, is_unix), "{text}");
            assert_eq!(trusted.to_string(), text);
        }
        assert!("Unix".parse::<TrustedProxy>().is_err());
    }
}
