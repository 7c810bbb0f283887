//! Shared pieces of the benchmarks: fleets to measure with, what changes cost, the servers that they stand in, balancers side by side, and overlay networks.

pub mod changes;
pub mod dns;
pub mod etcd;
pub mod fleet;
pub mod overlay;
pub mod side_by_side;
