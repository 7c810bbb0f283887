//! What answers: the store that the fleet needs, the services that it serves, the containers that they run in, and APIs
//! of other systems that know services.

pub mod api;
pub mod aws;
pub mod backend;
pub mod cfssl;
pub mod docker;
pub mod etcd;
pub mod kubernetes;
pub mod marathon;
pub mod real;
pub mod store;
pub mod zookeeper;
