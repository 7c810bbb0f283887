//! What answers: the store that the fleet needs, and the services that it serves.

pub mod backend;
pub mod etcd;
