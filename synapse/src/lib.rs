//! Synapse: where the services of the fleet are known, turned into one live catalog.
//!
//! [`catalog`] is what everyone reads: lock-free, one snapshot a service. [`watch`] fills it from the store and from other places;
//! [`memory`] keeps the last known good on disk, so that an agent that starts while the store is down serves it; [`output`] is what other
//! programs are told of it. [`smartstack`] reads a configuration of SmartStack's Synapse into watchers, ports and settings.

pub mod catalog;
pub mod memory;
mod metrics;
pub mod output;
pub mod smartstack;
pub mod watch;
mod whole_file;

pub use metrics::Metrics;
