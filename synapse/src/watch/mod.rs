//! Watchers: what turns a place where services are known into the catalog.
//!
//! [`store`] is the mesh's own: records of instances with their health, nodes, settings. Any other place is a [`Config`] of a kind
//! (`kind`, a file each), which tells all its servers each time it has something new, of one service or, as a directory, of all that it
//! has names for; `told` decides what counts of them, looks names up (`resolve`), says it in the watcher's layer of the catalog, below the
//! store's, and has it remembered (`findings`).

mod aws;
mod consul;
mod decode;
mod dns;
mod docker;
mod ec2;
mod etcd;
mod file;
mod findings;
mod fixed;
mod kind;
mod kubernetes;
mod lock;
mod marathon;
mod multi;
mod options;
mod pace;
mod parts;
mod place;
mod record;
mod resolve;
mod server;
pub mod store;
#[cfg(test)]
mod stub;
mod swarm;
mod toggle;
mod told;
mod watcher;
mod zookeeper;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use nerve::store::{Key, Revision};

use crate::catalog::Change;

pub use aws::{Access, Region, Secret};
pub use consul::Consul;
pub use dns::Question;
pub use docker::Docker;
pub use ec2::{Address, Ec2};
pub use etcd::Etcd;
pub use kind::{Kind, Looks, Multi, Part, Which};
pub use kubernetes::Kubernetes;
pub use marathon::Marathon;
pub use options::{Condition, Instead, LabelFilter, Options};
pub use pace::{Pace, Retry};
pub use place::Refused;
pub use server::{Host, Server};
pub use swarm::Swarm;
pub use toggle::{Object, ObjectName, Toggle};
pub use told::Status;
pub use watcher::{Config, Unheard, Watchers};
pub use zookeeper::{Data, Decode, Wrong, Znode, ZooKeeper};

/// A catalog as it was saved.
#[derive(Debug, Clone, PartialEq)]
pub struct Recalled {
    /// The URL of the store that it is of.
    pub store: String,
    /// What fills an empty catalog.
    pub changes: Vec<Change>,
    /// Durable records (settings of services, networks, claims on virtual addresses) as they stood in the store.
    pub durable: BTreeMap<Key, Arc<str>>,
    /// The revision of the store that it was true at.
    pub revision: Revision,
    /// When the store last confirmed it.
    pub as_of: SystemTime,
    /// The store was away shortly before that: what it does not list by then may have only lost its lease.
    pub doubted_until: Option<SystemTime>,
}
