//! Watchers: what turns a place where services are known into changes of the catalog. One file a kind.

mod record;
pub mod store;

use std::time::SystemTime;

use nerve::store::Revision;

use crate::catalog::Change;

/// A catalog as it was saved.
#[derive(Debug, Clone, PartialEq)]
pub struct Recalled {
    /// What fills an empty catalog.
    pub changes: Vec<Change>,
    /// The revision of the store that it was true at.
    pub revision: Revision,
    /// When it was saved.
    pub saved: SystemTime,
}
