//! Watchers: what turns a place where services are known into changes of the catalog. One file or folder a kind, each with
//! a `Config`, a `start` that takes the catalog's writer, and a `Handle` that tells how it stands.

mod record;
pub mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use nerve::store::{Key, Revision};

use crate::catalog::Change;

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
