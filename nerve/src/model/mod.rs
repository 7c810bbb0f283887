//! The vocabulary of the whole program: what a service, an instance, a node are, as they stand in the store.
//!
//! The writer owns a record's form, so it lives in the lowest crate. Readers accept unknown fields: agents of
//! different versions share one store. Imports nothing of ours.

mod health;
mod instance;
mod name;
mod node;
mod settings;

pub use health::Health;
pub use instance::{Instance, Weight};
pub use name::{InstanceId, NameError, NodeName, PortName, ServiceName, Tag, Zone};
pub use node::Node;
pub use settings::{ClientAddress, Protocol, ProxyVersion, PublishedPort, ServiceSettings};
