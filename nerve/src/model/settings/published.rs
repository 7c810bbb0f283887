//! A published port: one that every node listens on for a service.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::PortName;

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

/// A port that every node listens on for a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The port on every node.
    pub port: NonZeroU16,
    /// Its transport.
    #[serde(default)]
    pub protocol: Protocol,
    /// Which named port of the instances it leads to; their main port unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PortName>,
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.port)?;
        if let Some(target) = &self.target {
            write!(f, ":{target}")?;
        }
        write!(f, "/{}", self.protocol)
    }
}

impl FromStr for PublishedPort {
    type Err = String;

    /// Reads `8080`, `8080/udp`, `8080:metrics`, `8080:metrics/tcp`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, protocol) = match text.split_once('/') {
            Some((rest, protocol)) => (rest, protocol.parse()?),
            None => (text, Protocol::Tcp),
        };
        let (port, target) = match rest.split_once(':') {
            Some((port, name)) => (port, Some(PortName::new(name).map_err(|e| e.to_string())?)),
            None => (rest, None),
        };
        let port = port.parse().map_err(|_| {
            format!(
                "{text:?} is no published port: write PORT[:PORT-NAME][/tcp|/udp] with PORT from 1 to 65535"
            )
        })?;
        Ok(Self { port, protocol, target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_read_as_they_print() {
        for text in ["8080/tcp", "53/udp", "9090:metrics/tcp"] {
            assert_eq!(text.parse::<PublishedPort>().unwrap().to_string(), text);
        }
        assert_eq!("8080".parse::<PublishedPort>().unwrap().to_string(), "8080/tcp");
        for bad in ["", "0", "65536", "80/sctp", "80:Bad_Name", "x"] {
            assert!(bad.parse::<PublishedPort>().is_err(), "{bad}");
        }
    }
}
