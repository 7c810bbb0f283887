//! Shared pieces of the benchmarks: fleets to measure with, the servers that they stand in, and balancers side by side.

pub mod etcd;
pub mod fleet;
pub mod side_by_side;
