//! The layout of the store: the one place that spells paths.
//!
//! ```text
//! instances/<service>/<instance>   leased    one Instance, JSON
//! services/<service>               durable   ServiceSettings, JSON
//! nodes/<node>                     leased    one Node, JSON
//! vips/<ip>                        durable   one VipClaim, JSON: which service has the virtual address
//! networks/<network>               durable   one Network, JSON
//! subnets/<network>/<slot>         leased    one Subnet, JSON: which node holds that subnet of the network
//! rules/mesh                       durable   one RuleRecord, JSON: who may talk to whom
//! enrolment/tokens/<id>            durable   how often a join token was used
//! enrolment/nodes/<node>           durable   whose name that is, and until when
//! enrolment/revoked/<node>         durable   since when the node's certificates are refused
//! enrolment/trust/<node>           durable   which authorities the node believes, by what it says
//! enrolment/rotation/current       durable   how far one authority is replaced by another one
//! ```
//!
//! All of it stands below the store's prefix (`/plexus/v1` unless configured), which only the backends know.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{InstanceId, NetworkName, NodeName, ServiceName, Slot, TokenId};

/// Why a text is not a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is no store path: segments are not empty and are joined by single slashes")]
pub struct PathError {
    path: String,
}

/// A path below the store's prefix: non-empty segments joined by `/`, without a leading or trailing slash.
/// The empty path is the root and is only good as a directory.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(Arc<str>);

impl Path {
    /// Validates `text`.
    pub fn new(text: &str) -> Result<Self, PathError> {
        if text.is_empty() || text.split('/').any(str::is_empty) {
            return Err(PathError { path: text.chars().take(200).collect() });
        }
        Ok(Self(text.into()))
    }

    /// The directory that holds everything.
    #[must_use]
    pub fn root() -> Self {
        Self("".into())
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Does this path stand below `directory`?
    #[must_use]
    pub fn is_below(&self, directory: &Self) -> bool {
        directory.0.is_empty()
            || self.0.strip_prefix(&*directory.0).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
    }

    /// The prefix that all paths below this directory share, as etcd and the embedded store range over it.
    #[must_use]
    pub fn as_directory(&self) -> String {
        if self.0.is_empty() { String::new() } else { format!("{}/", self.0) }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// What a path means.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// One instance of a service.
    Instance(ServiceName, InstanceId),
    /// The settings of a service.
    Service(ServiceName),
    /// A node.
    Node(NodeName),
    /// A virtual address.
    Vip(IpAddr),
    /// An overlay network.
    Network(NetworkName),
    /// A subnet of a network, by its number.
    Subnet(NetworkName, Slot),
    /// Every rule of the mesh.
    Rules,
}

impl Key {
    /// The path that this key is written at.
    #[must_use]
    pub fn path(&self) -> Path {
        Path(match self {
            Self::Instance(service, id) => format!("instances/{service}/{id}").into(),
            Self::Service(service) => format!("services/{service}").into(),
            Self::Node(node) => format!("nodes/{node}").into(),
            Self::Vip(address) => format!("vips/{address}").into(),
            Self::Network(network) => format!("networks/{network}").into(),
            Self::Subnet(network, slot) => format!("subnets/{network}/{slot}").into(),
            Self::Rules => "rules/mesh".into(),
        })
    }

    /// The directory that holds the claims on all virtual addresses.
    #[must_use]
    pub fn vips() -> Path {
        Path("vips".into())
    }

    /// The directory that holds every node.
    #[must_use]
    pub fn nodes() -> Path {
        Path("nodes".into())
    }

    /// The directory that holds every overlay network.
    #[must_use]
    pub fn networks() -> Path {
        Path("networks".into())
    }

    /// The directory that holds the subnets of a network that nodes hold.
    #[must_use]
    pub fn subnets_of(network: &NetworkName) -> Path {
        Path(format!("subnets/{network}").into())
    }

    /// The directory that holds the instances of a service.
    #[must_use]
    pub fn instances_of(service: &ServiceName) -> Path {
        Path(format!("instances/{service}").into())
    }

    /// The directory that holds the settings of every service.
    #[must_use]
    pub fn services() -> Path {
        Path("services".into())
    }

    /// What stands at `path`, or `None` where this version knows nothing of it (a newer agent's, or an invalid name).
    #[must_use]
    pub fn parse(path: &Path) -> Option<Self> {
        let mut segments = path.as_str().split('/');
        let key = match (segments.next()?, segments.next()?) {
            ("instances", service) => {
                Self::Instance(ServiceName::new(service).ok()?, InstanceId::new(segments.next()?).ok()?)
            }
            ("services", service) => Self::Service(ServiceName::new(service).ok()?),
            ("nodes", node) => Self::Node(NodeName::new(node).ok()?),
            // One spelling an address: `vips/::0001` parses, and is not written by anyone.
            ("vips", text) => Self::Vip(text.parse().ok().filter(|ip: &IpAddr| ip.to_string() == text)?),
            ("networks", network) => Self::Network(NetworkName::new(network).ok()?),
            ("subnets", network) => {
                Self::Subnet(NetworkName::new(network).ok()?, segments.next()?.parse().ok()?)
            }
            ("rules", "mesh") => Self::Rules,
            _ => return None,
        };
        segments.next().is_none().then_some(key)
    }
}

/// What a path below `enrolment` means: who may prove to be whom. No catalog reads it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EnrolmentKey {
    /// A join token's uses.
    Token(TokenId),
    /// Who has a node's name.
    Node(NodeName),
    /// A node whose certificates are refused.
    Revoked(NodeName),
    /// Whom a node believes.
    Trust(NodeName),
    /// How far the authority is replaced.
    Rotation,
}

impl EnrolmentKey {
    /// The path that this key is written at.
    #[must_use]
    pub fn path(&self) -> Path {
        Path(match self {
            Self::Token(id) => format!("enrolment/tokens/{id}").into(),
            Self::Node(node) => format!("enrolment/nodes/{node}").into(),
            Self::Revoked(node) => format!("enrolment/revoked/{node}").into(),
            Self::Trust(node) => format!("enrolment/trust/{node}").into(),
            Self::Rotation => "enrolment/rotation/current".into(),
        })
    }

    /// The directory that holds all of it.
    #[must_use]
    pub fn all() -> Path {
        Path("enrolment".into())
    }

    /// The directory of the names that nodes have.
    #[must_use]
    pub fn nodes() -> Path {
        Path("enrolment/nodes".into())
    }

    /// The directory of whom nodes believe.
    #[must_use]
    pub fn trust() -> Path {
        Path("enrolment/trust".into())
    }

    /// The directory of the rotation.
    #[must_use]
    pub fn rotation() -> Path {
        Path("enrolment/rotation".into())
    }

    /// The directory of the nodes whose certificates are refused.
    #[must_use]
    pub fn revoked() -> Path {
        Path("enrolment/revoked".into())
    }

    /// What stands at `path`, if it is of this kind.
    #[must_use]
    pub fn parse(path: &Path) -> Option<Self> {
        let (kind, name) = path.as_str().strip_prefix("enrolment/")?.split_once('/')?;
        Some(match kind {
            "tokens" => Self::Token(name.parse().ok()?),
            "nodes" => Self::Node(NodeName::new(name).ok()?),
            "revoked" => Self::Revoked(NodeName::new(name).ok()?),
            "trust" => Self::Trust(NodeName::new(name).ok()?),
            "rotation" if name == "current" => Self::Rotation,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_as_they_are_written() {
        let service = ServiceName::new("web").unwrap();
        let network = NetworkName::new("blue").unwrap();
        for key in [
            Key::Instance(service.clone(), InstanceId::new("a:8080").unwrap()),
            Key::Service(service),
            Key::Node(NodeName::new("a").unwrap()),
            Key::Vip("10.96.0.1".parse().unwrap()),
            Key::Vip("fd00::1".parse().unwrap()),
            Key::Network(network.clone()),
            Key::Subnet(network.clone(), Slot(0)),
            Key::Subnet(network, Slot(1023)),
            Key::Rules,
        ] {
            assert_eq!(Key::parse(&key.path()), Some(key));
        }
        for unknown in [
            "instances/web",
            "instances/web/a/b",
            "services/Web",
            "networks",
            "networks/Blue",
            "networks/blue/1",
            "subnets/blue",
            "subnets/blue/01",
            "subnets/blue/+1",
            "subnets/blue/4294967296",
            "subnets/blue/1/2",
            "of-a-newer-agent/x",
            "nodes",
            "vips/x",
            "rules/other",
            "rules/mesh/x",
            "vips/fd00::0001",
        ] {
            assert_eq!(Key::parse(&Path::new(unknown).unwrap()), None, "{unknown}");
        }
    }

    #[test]
    fn a_directory_holds_whole_segments_only() {
        let instances = Path::new("instances").unwrap();
        assert!(Path::new("instances/web").unwrap().is_below(&instances));
        assert!(!Path::new("instances2/web").unwrap().is_below(&instances));
        assert!(!instances.is_below(&instances));
        assert!(instances.is_below(&Path::root()));
        for bad in ["", "/a", "a/", "a//b"] {
            assert!(Path::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_of_enrolment_read_as_they_are_written() {
        let node = NodeName::new("a").unwrap();
        let id = TokenId([0xab; 16]);
        for key in [
            EnrolmentKey::Token(id),
            EnrolmentKey::Node(node.clone()),
            EnrolmentKey::Revoked(node.clone()),
            EnrolmentKey::Trust(node),
            EnrolmentKey::Rotation,
        ] {
            assert_eq!(EnrolmentKey::parse(&key.path()), Some(key.clone()));
            assert!(key.path().is_below(&EnrolmentKey::all()) && Key::parse(&key.path()).is_none());
        }
        for other in [
            "enrolment/tokens/AB",
            "enrolment/tokens/ab",
            "enrolment/nodes",
            "enrolment/x/a",
            "enrolment/rotation/a",
            "nodes/a",
        ] {
            assert_eq!(EnrolmentKey::parse(&Path::new(other).unwrap()), None, "{other}");
        }
    }
}
