//! What answers: the store that the fleet needs, the services that it serves, and the containers that they run in.

pub mod backend;
pub mod docker;
pub mod etcd;
pub mod real;
pub mod store;
pub mod zookeeper;
