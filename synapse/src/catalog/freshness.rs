//! How far the catalog can be trusted to be current.

use std::time::SystemTime;

/// The standing of the catalog against the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// Nothing was heard yet, neither from the store nor from the memory on disk.
    Awaiting,
    /// The watch is connected: what is read here is what the store says.
    Live,
    /// The store is out of reach: what is read here is the last known good.
    Stale {
        /// Since when.
        since: SystemTime,
        /// Why, as the store's error says.
        reason: String,
    },
}

impl Freshness {
    /// Is it served although the store does not confirm it?
    #[must_use]
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Stale { .. })
    }
}
