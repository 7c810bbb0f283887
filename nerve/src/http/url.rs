//! Where an API is: `http://host:port`, `https://host:port`, `unix:///path`, with a path that stands before all others.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::document::{FromValue, Mismatch, Value};
use crate::model::UnixPath;

const HTTP: NonZeroU16 = NonZeroU16::MIN.saturating_add(79);
const HTTPS: NonZeroU16 = NonZeroU16::MIN.saturating_add(442);

/// Where an API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub(super) at: At,
    /// What stands before every path: empty, or with a slash before it and none behind.
    pub(super) base: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    Unix(UnixPath),
    /// A name or an address, without brackets.
    Host {
        host: String,
        port: NonZeroU16,
        tls: bool,
    },
}

impl Url {
    /// A unix socket.
    #[must_use]
    pub fn unix(path: UnixPath) -> Self {
        Self { at: At::Unix(path), base: String::new() }
    }

    /// HTTP at an address, by its usual port.
    #[must_use]
    pub fn http(address: IpAddr) -> Self {
        Self { at: At::Host { host: address.to_string(), port: HTTP, tls: false }, base: String::new() }
    }

    /// What stands before the path of every request: empty, or with a slash before it and none behind.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What it is asked as: the `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        match &self.at {
            At::Unix(_) => "localhost".to_owned(),
            At::Host { host, port, tls } => {
                let host = Bracketed(host);
                let usual = if *tls { HTTPS } else { HTTP };
                if *port == usual { host.to_string() } else { format!("{host}:{port}") }
            }
        }
    }

    /// The name or address of its host; `None`: it is on this one.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match &self.at {
            At::Unix(_) => None,
            At::Host { host, .. } => Some(host),
        }
    }

    /// Is it spoken to by TLS?
    #[must_use]
    pub fn is_secure(&self) -> bool {
        matches!(self.at, At::Host { tls: true, .. })
    }
}

/// A text as it may stand in a path or a query (RFC 3986): what is not unreserved there is escaped.
#[must_use]
pub fn encoded(text: &str) -> String {
    let octet = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(octet).collect()
}

struct Bracketed<'a>(&'a str);

impl fmt::Display for Bracketed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(self.0) }
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?} {why}");
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        let tls = match scheme {
            "unix" => {
                return UnixPath::new(rest).map(Self::unix).map_err(|error| format!("{text:?}: {error}"));
            }
            // What Docker calls it.
            "http" | "tcp" => false,
            "https" => true,
            _ => return Err(wrong("is neither http://, https:// nor unix://")),
        };
        let (authority, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (address, port) =
                    rest.split_once(']').ok_or_else(|| wrong("has a bracket that is not closed"))?;
                address.parse::<Ipv6Addr>().map_err(|_| wrong("has no address in its brackets"))?;
                (address, port.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_bracketed = authority.starts_with('[');
        if host.is_empty() || host.len() > 253 || !(is_bracketed || host.chars().all(is_host)) {
            return Err(wrong("names no host"));
        }
        let usual = if tls { HTTPS } else { HTTP };
        let port = port.map_or(Ok(usual), str::parse);
        let port = port.map_err(|_| wrong("has no port from 1 to 65535"))?;
        if base.contains(|c: char| c.is_ascii_control() || c.is_whitespace() || "?#".contains(c)) {
            return Err(wrong("has more than a path"));
        }
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { at: At::Host { host: host.to_owned(), port, tls }, base })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Unix(path) => write!(f, "unix://{path}"),
            At::Host { host, port, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                write!(f, "{scheme}://{}:{port}{}", Bracketed(host), self.base)
            }
        }
    }
}

impl Serialize for Url {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromValue for Url {
    fn expected() -> String {
        "a URL such as \"http://127.0.0.1:8500\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.parse_text(&Self::expected())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_unreserved_is_escaped() {
        assert_eq!(encoded("a-b_c.d~9"), "a-b_c.d~9");
        assert_eq!(encoded("tag:a b/ä&="), "tag%3Aa%20b%2F%C3%A4%26%3D");
        assert_eq!(Url::http([192, 0, 2, 1].into()), "http://192.0.2.1".parse().unwrap());
    }

    #[test]
    fn a_url_is_a_socket_or_a_host_with_a_port_and_a_path_before_all_others() {
        for (text, shown, authority) in [
            ("http://a.example", "http://a.example:80", "a.example"),
            ("https://a.example/", "https://a.example:443", "a.example"),
            ("https://[2001:db8::1]:8501/proxy/", "https://[2001:db8::1]:8501/proxy", "[2001:db8::1]:8501"),
            ("tcp://192.0.2.1:2375", "http://192.0.2.1:2375", "192.0.2.1:2375"),
            ("unix:///run/docker.sock", "unix:///run/docker.sock", "localhost"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!((url.to_string().as_str(), url.authority().as_str()), (shown, authority));
            assert_eq!(shown.parse::<Url>().unwrap(), url);
        }
        for bad in [
            "a.example",
            "ftp://a",
            "http://",
            "http://a:0",
            "http://a:x",
            "http://a b",
            "http://[a]:1",
            "http://[::1",
            "http://a/b?c",
            "unix://x",
        ] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }
}
