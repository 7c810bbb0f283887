//! An instance: one running copy of a service, as it stands under `instances/<service>/<instance>`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::{Health, InstanceId, NodeName, PortName, ServiceName, Tag, Zone};

/// A share of the traffic relative to the other endpoints of a service; 1 to 65535, 100 unless said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Weight(pub NonZeroU16);

impl Default for Weight {
    fn default() -> Self {
        const HUNDRED: NonZeroU16 = NonZeroU16::new(100).unwrap();
        Self(HUNDRED)
    }
}

/// One running copy of a service. Leased: the record dies with the agent that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The service that it is a copy of.
    pub service: ServiceName,
    /// Unique in the service across the fleet.
    pub id: InstanceId,
    /// The node whose agent registered it.
    pub node: NodeName,
    /// Where it listens.
    pub address: IpAddr,
    /// Its main port.
    pub port: NonZeroU16,
    /// Further ports by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<PortName, NonZeroU16>,
    /// Marks for filters (`v2`, `canary`).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<Tag>,
    /// Free key-value data that travels along.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Share of the traffic.
    #[serde(default)]
    pub weight: Weight,
    /// Where its node stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// As its checks see it.
    #[serde(default)]
    pub health: Health,
    /// Why it is not passing, from the probe that decided it (`http GET /healthz: status 503`); empty when passing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub health_reason: String,
    /// It finishes what it has and gets nothing new.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

impl Instance {
    /// The address of its main port.
    #[must_use]
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port.get())
    }

    /// The number of a port: of one that it has by that name, or where the name is a number, that number. (RFC 6335
    /// wants a letter in every name of a port, so the two are never confused.)
    #[must_use]
    pub fn port_number(&self, port: &PortName) -> Option<NonZeroU16> {
        self.ports.get(port).copied().or_else(|| port.as_str().parse().ok())
    }

    /// The address of the port that [`Instance::port_number`] finds.
    #[must_use]
    pub fn named_socket_addr(&self, port: &PortName) -> Option<SocketAddr> {
        self.port_number(port).map(|p| SocketAddr::new(self.address, p.get()))
    }
}
