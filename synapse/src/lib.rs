//! Synapse: where the services of the fleet are known, turned into one live catalog.
//!
//! [`catalog`] is what everyone reads: lock-free, one snapshot a service. [`watch`] fills it from the store;
//! [`memory`] keeps the last known good on disk, so that an agent that starts while the store is down serves it. [`output`] tells other
//! programs of this node.

pub mod catalog;
pub mod memory;
mod metrics;
pub mod output;
pub mod watch;

pub use metrics::Metrics;
