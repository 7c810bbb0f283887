//! Where clients reach a container: its address on a network of the mesh, its own address whatever network that is of, or its ports as
//! the node has published them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::Serialize;

use super::inspected::{Container, Port};
use crate::document::{FromValue, Mismatch, Value};
use crate::source::labels::Reached;

/// Which address of a container is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DockerAddress {
    /// The one on a network of the mesh; a container on none is no instance.
    Overlay,
    /// Its own, on whatever network, where other nodes have routes to it.
    Container,
    /// The node's, at the ports that Docker has published.
    Published,
}

impl FromStr for DockerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "overlay" => Ok(Self::Overlay),
            "container" => Ok(Self::Container),
            "published" => Ok(Self::Published),
            _ => Err(format!("{text:?} is none of {}", Self::expected())),
        }
    }
}

impl fmt::Display for DockerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlay => "overlay",
            Self::Container => "container",
            Self::Published => "published",
        })
    }
}

impl FromValue for DockerAddress {
    fn expected() -> String {
        "\"overlay\", \"container\" or \"published\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.parse_text(&Self::expected())
    }
}

/// Where a container is on a network.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) address: IpAddr,
    pub(super) aliases: &'a [String],
}

/// How a container is reached.
#[derive(Debug)]
pub(super) struct Reach<'a> {
    /// By what Docker calls the network.
    pub(super) places: BTreeMap<&'a str, Place<'a>>,
    /// The ports that it may be an instance by, and where they are; of one that is reached directly they are its own.
    pub(super) ports: BTreeMap<Port, Option<(IpAddr, NonZeroU16)>>,
    /// Those over TCP that are published, where that is how it is reached.
    published: Option<BTreeMap<NonZeroU16, (IpAddr, NonZeroU16)>>,
}

impl<'a> Reach<'a> {
    /// `networks` are the ids of those of the mesh, `node` is this node's address.
    pub(super) fn of(
        container: &'a Container,
        by: DockerAddress,
        networks: &BTreeSet<String>,
        node: IpAddr,
    ) -> Self {
        let connected = container.networks().filter_map(|(name, on)| {
            let address = match by {
                DockerAddress::Published => node,
                _ => on.address.parse().ok()?,
            };
            let is_reached = by != DockerAddress::Overlay || networks.contains(&on.network);
            is_reached.then(|| (name, Place { address, aliases: on.aliases.as_deref().unwrap_or_default() }))
        });
        let places = connected.collect();
        if by != DockerAddress::Published || container.is_on_host() {
            let ports = container.exposed().map(|port| (port, None)).collect();
            return Self { places, ports, published: None };
        }
        let ports = container.published(node);
        let over_tcp = ports.iter().filter(|(port, _)| !port.is_udp).map(|(port, at)| (port.number, *at));
        let published = Some(over_tcp.collect());
        Self { places, ports: ports.into_iter().map(|(port, at)| (port, Some(at))).collect(), published }
    }

    /// The lowest one over TCP.
    pub(super) fn main_port(&self) -> Option<NonZeroU16> {
        self.ports.keys().filter(|port| !port.is_udp).map(|port| port.number).min()
    }

    /// Where ports that labels name are reached.
    pub(super) fn reached(&self) -> Reached<'_> {
        self.published.as_ref().map_or(Reached::Directly, Reached::Published)
    }
}
