//! A published port, or a range of them: what nodes listen on for a service.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::{PortName, Prefix};

/// The transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            other => Err(format!("{other:?} is no protocol: it is \"tcp\" or \"udp\"")),
        }
    }
}

/// The most ports that one range may have: each is a socket on every node and thread.
const LONGEST_RANGE: u16 = 1024;

/// Ports that follow one another: `8080`, `8000-8010`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

/// Which nodes open a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// Every node; it leads to all instances.
    #[default]
    Ingress,
    /// Nodes that run an instance; it leads to the instances of its own node.
    Host,
}

/// A port, or a range of ports, that nodes listen on for a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The port on every node; of a range the first.
    pub port: NonZeroU16,
    /// The last port of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<NonZeroU16>,
    /// Its transport.
    #[serde(default)]
    pub protocol: Protocol,
    /// Which port of the instances it leads to, by name or number. Unless said, a single port leads to their main port,
    /// and each port of a range to the same port of the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PortName>,
    /// It is opened on addresses within these only, and so only on nodes that have one; empty: on all that a node
    /// publishes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Prefix>,
    /// Which nodes open it.
    #[serde(default, skip_serializing_if = "PublishMode::is_default")]
    pub mode: PublishMode,
}

impl PortRange {
    /// From the first to the last; `None` if they are in the wrong order or more than a range may have.
    #[must_use]
    pub fn new(first: NonZeroU16, last: NonZeroU16) -> Option<Self> {
        let length = last.get().checked_sub(first.get())?;
        (length < LONGEST_RANGE).then_some(Self { first, last })
    }

    /// The first port.
    #[must_use]
    pub fn first(self) -> NonZeroU16 {
        self.first
    }

    /// The last port; the first again where there is only one.
    #[must_use]
    pub fn last(self) -> NonZeroU16 {
        self.last
    }

    /// Every port of it.
    pub fn ports(self) -> impl Iterator<Item = NonZeroU16> {
        (self.first.get()..=self.last.get()).filter_map(NonZeroU16::new)
    }

    /// Is there a port in both?
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl From<NonZeroU16> for PortRange {
    fn from(port: NonZeroU16) -> Self {
        Self { first: port, last: port }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last != self.first {
            write!(f, "-{}", self.last)?;
        }
        Ok(())
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |part: &str| part.parse::<NonZeroU16>().ok();
        let range = match text.split_once('-') {
            Some((first, last)) => {
                port(first).zip(port(last)).and_then(|(first, last)| Self::new(first, last))
            }
            None => port(text).map(Self::from),
        };
        range.ok_or_else(|| {
            format!("{text:?} is no port from 1 to 65535, nor a range FIRST-LAST of at most {LONGEST_RANGE}")
        })
    }
}

impl PublishMode {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for PublishMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ingress => "ingress",
            Self::Host => "host",
        })
    }
}

impl FromStr for PublishMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ingress" => Ok(Self::Ingress),
            "host" => Ok(Self::Host),
            other => Err(format!("{other:?} is no mode: it is \"ingress\" or \"host\"")),
        }
    }
}

impl PublishedPort {
    /// These ports over this transport, on every node, to where [`PublishedPort::target`] says that they lead unless
    /// said.
    #[must_use]
    pub fn new(range: PortRange, protocol: Protocol) -> Self {
        let through = (range.last() != range.first()).then_some(range.last());
        Self {
            port: range.first(),
            through,
            protocol,
            target: None,
            addresses: Vec::new(),
            mode: PublishMode::default(),
        }
    }

    /// Its ports. Of a record that no version of this program writes (a range that is too long or ends before it begins)
    /// the first.
    #[must_use]
    pub fn range(&self) -> PortRange {
        self.through.and_then(|last| PortRange::new(self.port, last)).unwrap_or_else(|| self.port.into())
    }

    /// Where one of its ports leads: a port of the instances by name or number, or their main port.
    #[must_use]
    pub fn target_of(&self, port: NonZeroU16) -> Option<PortName> {
        let same = || self.through.and_then(|_| PortName::new(&port.to_string()).ok());
        self.target.clone().or_else(same)
    }

    /// Is it about the same ports and transport, whatever else differs?
    #[must_use]
    pub fn is_about(&self, range: PortRange, protocol: Protocol) -> bool {
        self.protocol == protocol && self.range() == range
    }

    /// Would a node that opens both have to listen twice on one port?
    #[must_use]
    pub fn collides(&self, other: &Self) -> bool {
        let any = self.addresses.is_empty() || other.addresses.is_empty();
        self.protocol == other.protocol
            && self.range().overlaps(other.range())
            && (any || self.addresses.iter().any(|a| other.addresses.iter().any(|b| a.overlaps(b))))
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.range())?;
        if let Some(target) = &self.target {
            write!(f, ":{target}")?;
        }
        write!(f, "/{}", self.protocol)?;
        for (at, address) in self.addresses.iter().enumerate() {
            write!(f, "{}{address}", if at == 0 { "@" } else { "+" })?;
        }
        if self.mode == PublishMode::Host {
            write!(f, " (host)")?;
        }
        Ok(())
    }
}

impl FromStr for PublishedPort {
    type Err = String;

    /// Reads `8080`, `8080/udp`, `8080:metrics`, `8080:80`, `8000-8010`, `8000-8010:metrics/tcp`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, protocol) = match text.split_once('/') {
            Some((rest, protocol)) => (rest, protocol.parse()?),
            None => (text, Protocol::Tcp),
        };
        let (ports, target) = match rest.split_once(':') {
            Some((ports, name)) => (ports, Some(target(name)?)),
            None => (rest, None),
        };
        let range: PortRange = ports.parse().map_err(|why| {
            format!("{text:?} is no published port: write PORT[-LAST][:PORT-NAME][/tcp|/udp]; {why}")
        })?;
        // A range of one: whoever writes it means the same port, as in every range.
        let same =
            (target.is_none() && ports.contains('-')).then(|| PortName::new(&range.first().to_string()));
        let target = target.or_else(|| same.filter(|_| range.first() == range.last())?.ok());
        Ok(Self { target, ..Self::new(range, protocol) })
    }
}

/// A port of the instances, by its name or number.
fn target(text: &str) -> Result<PortName, String> {
    if text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<NonZeroU16>().is_err() {
        return Err(format!("{text:?} is no port of the instances: a number is from 1 to 65535"));
    }
    PortName::new(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn port(text: &str) -> PublishedPort {
        text.parse().unwrap()
    }

    #[test]
    fn published_ports_read_as_they_print() {
        for text in [
            "8080/tcp",
            "53/udp",
            "9090:metrics/tcp",
            "8000-8010/tcp",
            "8000-8010:metrics/udp",
            "80:8080/tcp",
        ] {
            assert_eq!(port(text).to_string(), text);
        }
        assert_eq!(port("8080").to_string(), "8080/tcp");
        for bad in
            ["", "0", "65536", "80/sctp", "80:Bad_Name", "x", "9-8", "1-2000", "80:0", "80:70000", "80-"]
        {
            assert!(bad.parse::<PublishedPort>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_range_leads_to_the_same_ports_unless_said() {
        let name = |text: &str| Some(PortName::new(text).unwrap());
        let at = |number| NonZeroU16::new(number).unwrap();
        assert_eq!(port("8000-8010").target_of(at(8003)), name("8003"));
        assert_eq!(port("8000-8010:metrics").target_of(at(8003)), name("metrics"));
        assert_eq!(port("8000-8000").target_of(at(8000)), name("8000"));
        assert_eq!(port("8000").target_of(at(8000)), None);
        assert_eq!(port("8000-8010").range().ports().count(), 11);
    }

    #[test]
    fn a_port_of_an_older_agent_is_one_of_every_node() {
        let read: PublishedPort = serde_json::from_str(r#"{"port":8080}"#).unwrap();
        assert_eq!(read, port("8080"));
        assert_eq!(serde_json::to_string(&read).unwrap(), r#"{"port":8080,"protocol":"tcp"}"#);
        let broken: PublishedPort = serde_json::from_str(r#"{"port":8080,"through":1}"#).unwrap();
        assert_eq!(broken.range().ports().count(), 1);
    }

    fn published() -> impl Strategy<Value = PublishedPort> {
        let addresses = proptest::collection::vec(
            prop_oneof![Just("192.0.2.0/24"), Just("192.0.2.7"), Just("198.51.100.1"), Just("fd00::/8")],
            0..3,
        );
        (1..40_u16, 0..5_u16, any::<bool>(), addresses).prop_map(|(first, more, udp, addresses)| {
            let at = |number| NonZeroU16::new(number).unwrap();
            let range = PortRange::new(at(first), at(first + more)).unwrap();
            let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            PublishedPort { addresses, ..PublishedPort::new(range, protocol) }
        })
    }

    proptest! {
        #[test]
        fn two_collide_when_a_port_and_an_address_are_in_both(a in published(), b in published()) {
            let addresses = ["192.0.2.7", "192.0.2.8", "198.51.100.1", "fd00::1", "203.0.113.1"];
            let covers = |p: &PublishedPort, ip: &str| p.addresses.is_empty() || p.addresses.iter().any(|a| a.contains(ip.parse().unwrap()));
            let shared = a.protocol == b.protocol
                && a.range().ports().any(|p| b.range().ports().any(|q| p == q))
                && addresses.iter().any(|ip| covers(&a, ip) && covers(&b, ip));
            prop_assert_eq!(a.collides(&b), shared);
            prop_assert_eq!(b.collides(&a), shared);
        }
    }
}
