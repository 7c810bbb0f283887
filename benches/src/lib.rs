//! Shared pieces of the benchmarks: fleets to measure with, and the servers that they stand in.

pub mod etcd;
pub mod fleet;
