//! A copy of a service, as a place beside the store tells of it; and what it is in the catalog.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use nerve::model::{
    Health, Instance, InstanceId, NodeName, PortName, Region, ServiceName, Tag, Weight, Zone,
};
use serde::{Deserialize, Serialize};

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name that is looked up when it is told, and again from time to time.
    Name(Arc<str>),
}

impl Host {
    /// The name, where it is one.
    pub(super) fn name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Where it is.
    pub host: Host,
    /// Its port.
    pub port: NonZeroU16,
    /// Further ports by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<PortName, NonZeroU16>,
    /// What it is called there.
    pub name: Option<String>,
    /// Its number among those of its place, where the place counts them: the first to come has the lowest.
    pub number: Option<u64>,
    /// Its share of the traffic.
    pub weight: Weight,
    /// Marks for filters.
    pub tags: BTreeSet<Tag>,
    /// Free data.
    pub labels: BTreeMap<String, String>,
    /// It gets traffic only while none of the others can be had.
    pub backup: bool,
    /// Where it stands.
    pub region: Option<Region>,
    /// Where in the region.
    pub zone: Option<Zone>,
    /// What the place says of it; passing where it says nothing.
    pub health: Health,
}

impl Server {
    /// One of which nothing more is known.
    #[must_use]
    pub fn at(host: Host, port: NonZeroU16) -> Self {
        Self {
            host,
            port,
            ports: BTreeMap::new(),
            name: None,
            number: None,
            weight: Weight::default(),
            tags: BTreeSet::new(),
            labels: BTreeMap::new(),
            backup: false,
            region: None,
            zone: None,
            health: Health::Passing,
        }
    }

    /// What it is in the catalog, at one of its addresses.
    pub(super) fn instance(&self, service: &ServiceName, address: IpAddr) -> Option<Instance> {
        let at = SocketAddr::new(address, self.port.get());
        // The address is its identity: a name may be that of several, or be lacking.
        let id = InstanceId::new(&at.to_string().replace(['[', ']'], "")).ok()?;
        let node =
            NodeName::new(&address.to_string().replace(['.', ':'], "-").trim_matches('-').replace("--", "-"))
                .ok()?;
        let mut labels = self.labels.clone();
        if let Some(name) = &self.name {
            labels.entry("name".to_owned()).or_insert_with(|| name.clone());
        }
        if let Some(number) = self.number {
            labels.entry("id".to_owned()).or_insert_with(|| number.to_string());
        }
        Some(Instance {
            service: service.clone(),
            id,
            node,
            address,
            port: Some(self.port),
            socket: None,
            ports: self.ports.clone(),
            tags: self.tags.clone(),
            labels,
            weight: self.weight,
            backup: self.backup,
            region: self.region.clone(),
            zone: self.zone.clone(),
            health: self.health,
            health_reason: String::new(),
            draining: false,
        })
    }
}

/// `host:port`, with brackets around an address of IPv6.
impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no host:port");
        let (host, port) = text.trim().rsplit_once(':').ok_or_else(wrong)?;
        Ok(Self::at(host.parse()?, port.parse().map_err(|_| wrong())?))
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = plain.parse() {
            return Ok(Self::Address(address));
        }
        let is_name = !plain.is_empty()
            && plain.len() <= 253
            && plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if is_name { Ok(Self::Name(plain.into())) } else { Err(format!("{text:?} is no host")) }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_server_s_identity_and_what_it_is_called_travels_along() {
        for (text, id, node) in [
            ("192.0.2.7:80", "192.0.2.7:80", "192-0-2-7"),
            ("[2001:db8::7]:80", "2001:db8::7:80", "2001-db8-7"),
            ("[::1]:80", "::1:80", "1"),
        ] {
            let server = Server { name: Some("web-07".to_owned()), ..text.parse().unwrap() };
            let Host::Address(address) = server.host else { panic!("{text}") };
            let instance = server.instance(&"web".parse().unwrap(), address).unwrap();
            assert_eq!((instance.id.as_str(), instance.node.as_str()), (id, node));
            assert_eq!((instance.labels["name"].as_str(), server.to_string()), ("web-07", text.to_owned()));
        }
        let named: Server = "a_1.example.com:80".parse().unwrap();
        assert_eq!(named.host, Host::Name("a_1.example.com".into()));
        for bad in ["192.0.2.7", ":80", "a b:80", "192.0.2.7:0", "192.0.2.7:http"] {
            assert!(bad.parse::<Server>().is_err(), "{bad}");
        }
    }
}
