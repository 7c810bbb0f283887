//! An upstream as it is written: `192.0.2.53`, `192.0.2.53:5353`, `tcp://192.0.2.53`, `tls://192.0.2.53#dns.example.com`.
//!
//! An address and never a name: what looks names up cannot look up whom to ask. The name behind `#` is what the
//! certificate is to be for (RFC 7858 with a name that is configured, RFC 8310 section 8.1); without one it is to be for the address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::suffix::check_labels;

/// The port of DNS over UDP and TCP.
pub(super) const PORT: u16 = 53;
/// The port of DNS over TLS (RFC 7858 section 3.1).
const TLS_PORT: u16 = 853;

/// An upstream: where it is, and how it is spoken with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamAddress {
    pub(super) at: SocketAddr,
    pub(super) transport: Transport,
}

/// How an upstream is spoken with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Transport {
    /// UDP, and TCP for what does not fit.
    Udp,
    Tcp,
    /// TLS, with a certificate for this name; without one, for the address.
    Tls(Option<Box<str>>),
}

/// Why a text is no upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no upstream: {rule}; write an address such as 192.0.2.53, 192.0.2.53:5353, tcp://192.0.2.53 or \
     tls://192.0.2.53#dns.example.com"
)]
pub struct UpstreamError {
    text: String,
    rule: String,
}

impl UpstreamAddress {
    /// A server that is asked over UDP, as resolv.conf has them.
    #[must_use]
    pub fn udp(at: SocketAddr) -> Self {
        Self { at, transport: Transport::Udp }
    }
}

impl From<SocketAddr> for UpstreamAddress {
    fn from(at: SocketAddr) -> Self {
        Self::udp(at)
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Udp => write!(f, "{}", self.at),
            Transport::Tcp => write!(f, "tcp://{}", self.at),
            Transport::Tls(None) => write!(f, "tls://{}", self.at),
            Transport::Tls(Some(name)) => write!(f, "tls://{}#{name}", self.at),
        }
    }
}

impl FromStr for UpstreamAddress {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let refuse =
            |rule: &str| UpstreamError { text: text.chars().take(120).collect(), rule: rule.to_owned() };
        let (scheme, rest) = text.split_once("://").unwrap_or(("udp", text));
        let (address, name) = match rest.split_once('#') {
            Some((address, name)) => (address, Some(name)),
            None => (rest, None),
        };
        let (transport, port) = match (scheme, name) {
            ("tls", None) => (Transport::Tls(None), TLS_PORT),
            ("tls", Some(name)) => {
                let name = name.to_ascii_lowercase();
                check_labels(&name).map_err(|rule| refuse(&format!("{name:?} is no host name: {rule}")))?;
                (Transport::Tls(Some(name.into())), TLS_PORT)
            }
            ("udp" | "tcp", Some(_)) => return Err(refuse("only a server of TLS shows a name")),
            ("udp", None) => (Transport::Udp, PORT),
            ("tcp", None) => (Transport::Tcp, PORT),
            _ => return Err(refuse("it is neither udp, tcp nor tls")),
        };
        let Some(at) = socket_address(address, port) else {
            return Err(refuse("there is no IP address in it (a name would have to be looked up itself)"));
        };
        if at.port() == 0 || at.ip().is_unspecified() || at.ip().is_multicast() {
            return Err(refuse("nobody can be asked there"));
        }
        Ok(Self { at, transport })
    }
}

/// `192.0.2.1`, `192.0.2.1:53`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:53`.
fn socket_address(text: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let ip = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    ip.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_upstream_is_an_address_and_a_way_to_speak_with_it() {
        for (text, shown) in [
            ("192.0.2.53", "192.0.2.53:53"),
            ("192.0.2.53:5353", "192.0.2.53:5353"),
            ("udp://2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("tcp://[2001:db8::1]:54", "tcp://[2001:db8::1]:54"),
            ("tls://192.0.2.53", "tls://192.0.2.53:853"),
            ("tls://192.0.2.53:443#DNS.Example.com", "tls://192.0.2.53:443#dns.example.com"),
            ("tls://[2001:db8::1]#a", "tls://[2001:db8::1]:853#a"),
        ] {
            let read: UpstreamAddress = text.parse().unwrap();
            assert_eq!(read.to_string(), shown);
            assert_eq!(shown.parse::<UpstreamAddress>().unwrap(), read);
        }
    }

    #[test]
    fn what_is_none_is_refused_with_its_reason() {
        for (text, rule) in [
            ("dns.example.com", "no IP address"),
            ("https://192.0.2.1", "neither udp, tcp nor tls"),
            ("192.0.2.1#name", "only a server of TLS"),
            ("tls://192.0.2.1#a..b", "no host name"),
            ("192.0.2.1:0", "nobody can be asked"),
            ("0.0.0.0", "nobody can be asked"),
            ("", "no IP address"),
        ] {
            let error = text.parse::<UpstreamAddress>().unwrap_err().to_string();
            assert!(error.contains(rule) && error.contains("is no upstream"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused(text in "(tls://|tcp://)?[0-9a-f.:#\\[\\]]{0,30}") {
            if let Ok(read) = text.parse::<UpstreamAddress>() {
                prop_assert_eq!(read.to_string().parse::<UpstreamAddress>(), Ok(read));
            }
        }
    }
}
