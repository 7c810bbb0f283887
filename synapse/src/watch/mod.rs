//! Watchers: what turns a place where services are known into the catalog.
//!
//! [`store`] is the mesh's own: records of instances with their health, nodes, settings. Any other place is a [`Config`] of a kind
//! (`kind`, a file each), which tells all its servers each time it has something new; `told` decides what counts of them, looks names
//! up, and says it in the watcher's layer of the catalog, below the store's.

mod file;
mod fixed;
mod kind;
mod options;
mod place;
mod record;
mod server;
pub mod store;
mod told;
mod watcher;
mod zookeeper;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use nerve::store::{Key, Revision};

use crate::catalog::Change;

pub use kind::Kind;
pub use options::{Condition, Instead, LabelFilter, Options};
pub use server::{Host, Server};
pub use told::{Refused, Status};
pub use watcher::{Config, Watchers};
pub use zookeeper::{Decode, Wrong, ZooKeeper};

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
