//! An instance: one running copy of a service, as it stands under `instances/<service>/<instance>`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::{Health, InstanceId, ListensOn, NodeName, PortName, Region, ServiceName, Tag, UnixPath, Zone};

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
#[serde(try_from = "Record", into = "Record")]
pub struct Instance {
    /// The service that it is a copy of.
    pub service: ServiceName,
    /// Unique in the service across the fleet.
    pub id: InstanceId,
    /// The node whose agent registered it.
    pub node: NodeName,
    /// Where it listens.
    pub address: IpAddr,
    /// Its main port; none where it listens on a unix socket alone.
    pub port: Option<NonZeroU16>,
    /// The unix socket of its node that it listens on: how that node's balancer connects to it.
    pub socket: Option<UnixPath>,
    /// Further ports by name.
    pub ports: BTreeMap<PortName, NonZeroU16>,
    /// Marks for filters (`v2`, `canary`).
    pub tags: BTreeSet<Tag>,
    /// Free key-value data that travels along.
    pub labels: BTreeMap<String, String>,
    /// Share of the traffic.
    pub weight: Weight,
    /// It gets traffic only while none of the others can be had.
    pub backup: bool,
    /// Where its node stands.
    pub region: Option<Region>,
    /// Where in the region.
    pub zone: Option<Zone>,
    /// As its checks see it.
    pub health: Health,
    /// Why it is not passing, or what is to be looked after, from the probe that decided it (`http GET /healthz: status 503`); empty when passing.
    pub health_reason: String,
    /// It finishes what it has and gets nothing new.
    pub draining: bool,
}

impl Instance {
    /// Where it listens.
    #[must_use]
    pub fn listens_on(&self) -> ListensOn {
        ListensOn { address: self.address, port: self.port, socket: self.socket.clone() }
    }

    /// The address of its main port.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        self.port.map(|port| SocketAddr::new(self.address, port.get()))
    }

    /// Can clients that are told its IP address connect to something there?
    #[must_use]
    pub fn has_ports(&self) -> bool {
        self.port.is_some() || !self.ports.is_empty()
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

/// As it stands in the store. Agents that know nothing of sockets read it too, keep a record's last good version when they
/// cannot, and must send nothing to a port that nobody listens on. So an instance without a port has the stand-in
/// [`Record::NO_PORT`] and is marked as draining for them; what is true stands in `socket_only`, which they leave out. Nor do they
/// know that there are warnings: for them such an instance passes.
#[derive(Serialize, Deserialize)]
struct Record {
    service: ServiceName,
    id: InstanceId,
    node: NodeName,
    address: IpAddr,
    port: NonZeroU16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    socket: Option<UnixPath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    socket_only: Option<SocketOnly>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    ports: BTreeMap<PortName, NonZeroU16>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    tags: BTreeSet<Tag>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    weight: Weight,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    backup: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    region: Option<Region>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<Zone>,
    #[serde(default)]
    health: Health,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    warning: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    health_reason: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    draining: bool,
}

/// It has no port; and whether it is drained.
#[derive(Serialize, Deserialize)]
struct SocketOnly {
    #[serde(default)]
    draining: bool,
}

impl Record {
    /// The port of the discard protocol (RFC 863).
    const NO_PORT: NonZeroU16 = NonZeroU16::new(9).unwrap();
}

impl From<Instance> for Record {
    fn from(instance: Instance) -> Self {
        let Instance { service, id, node, address, port, socket, ports, tags, labels, .. } = instance;
        let Instance { weight, backup, region, zone, health, health_reason, draining, .. } = instance;
        let socket_only = port.is_none().then_some(SocketOnly { draining });
        let (port, draining) = (port.unwrap_or(Self::NO_PORT), draining || port.is_none());
        let warning = health == Health::Warning;
        let health = if warning { Health::Passing } else { health };
        Self {
            service,
            id,
            node,
            address,
            port,
            socket,
            socket_only,
            ports,
            tags,
            labels,
            weight,
            backup,
            region,
            zone,
            health,
            warning,
            health_reason,
            draining,
        }
    }
}

/// A record that says nowhere where to connect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it has `socket_only` and no `socket`")]
struct ListensNowhere;

impl TryFrom<Record> for Instance {
    type Error = ListensNowhere;

    fn try_from(record: Record) -> Result<Self, ListensNowhere> {
        let Record { service, id, node, address, port, socket, socket_only, ports, .. } = record;
        let Record { tags, labels, weight, backup, region, zone, health, warning, health_reason, .. } =
            record;
        let draining = record.draining;
        if socket_only.is_some() && socket.is_none() {
            return Err(ListensNowhere);
        }
        let health = match health {
            Health::Passing if warning => Health::Warning,
            health => health,
        };
        let (port, draining) = match socket_only {
            None => (Some(port), draining),
            Some(SocketOnly { draining }) => (None, draining),
        };
        Ok(Self {
            service,
            id,
            node,
            address,
            port,
            socket,
            ports,
            tags,
            labels,
            weight,
            backup,
            region,
            zone,
            health,
            health_reason,
            draining,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<Instance, serde_json::Error> {
        serde_json::from_str(&format!(
            r#"{{"service":"web","id":"1","node":"a","address":"192.0.2.1","port":80{more}}}"#
        ))
    }

    #[test]
    fn a_record_of_an_instance_with_a_port_is_as_it_ever_was() {
        let instance = read("").unwrap();
        let written = serde_json::to_string(&instance).unwrap();
        assert_eq!(
            written,
            r#"{"service":"web","id":"1","node":"a","address":"192.0.2.1","port":80,"weight":100,"health":"passing"}"#
        );
        assert_eq!(serde_json::from_str::<Instance>(&written).unwrap(), instance);
    }

    #[test]
    fn who_knows_nothing_of_sockets_reads_that_an_instance_without_a_port_gets_nothing() {
        #[derive(Deserialize)]
        struct Earlier {
            port: NonZeroU16,
            #[serde(default)]
            draining: bool,
        }
        let both = read(r#","socket":"/run/app.sock""#).unwrap();
        for drained in [false, true] {
            let only = Instance { port: None, draining: drained, ..both.clone() };
            let written = serde_json::to_string(&only).unwrap();
            let earlier: Earlier = serde_json::from_str(&written).unwrap();
            assert!(earlier.draining && earlier.port == Record::NO_PORT, "{written}");
            assert_eq!(serde_json::from_str::<Instance>(&written).unwrap(), only, "{written}");
        }
        let earlier: Earlier = serde_json::from_str(&serde_json::to_string(&both).unwrap()).unwrap();
        assert_eq!((earlier.port.get(), earlier.draining), (80, false));
    }

    #[test]
    fn a_warning_is_read_as_passing_by_who_knows_of_none() {
        let warned = Instance { health: Health::Warning, ..read("").unwrap() };
        let written = serde_json::to_string(&warned).unwrap();
        assert!(written.contains(r#""health":"passing","warning":true"#), "{written}");
        assert_eq!(serde_json::from_str::<Instance>(&written).unwrap(), warned);
        assert_eq!(read(r#","health":"critical","warning":true"#).unwrap().health, Health::Critical);
    }

    #[test]
    fn what_listens_nowhere_is_refused() {
        assert!(read(r#","socket_only":{}"#).unwrap_err().to_string().contains("no `socket`"));
        assert!(read(r#","socket":"app.sock""#).unwrap_err().to_string().contains("write it absolute"));
    }
}
