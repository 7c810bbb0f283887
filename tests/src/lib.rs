//! The harness of the end-to-end tests: a fleet on one machine, driven from outside.
//!
//! [`Cluster`] brings up nodes in network namespaces, a real etcd and real agents of the built program. [`Node`] has
//! the verbs of a machine: `exec`, `plexus`, `serve`, `kill_agent`, `restart_agent`. [`client`] has what asks (`load`,
//! `http`, `dig`), [`server`] what answers (etcd, HTTP backends). Conditions are awaited by [`eventually!`], held by
//! [`throughout!`]. Imports none of the crates under test: it is a user, and knows the program, its files and the wire.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a harness fails by panicking and talks to whoever runs the tests"
)]

pub mod client;
pub mod content;
pub mod server;
pub mod soak;

mod cluster;
mod guest;
mod host;
mod netns;
mod node;
mod process;
mod program;
mod report;
mod skip;
mod wait;
mod world;

pub use cluster::{Builder, Cluster};
pub use guest::{Ended, Guest};
pub use host::Host;
pub use netns::{Fabric, Family, Namespace};
pub use node::{Node, ServiceFile, Settings};
pub use process::{Process, Ran, Signal, run};
pub use program::{backend_program, plexus_program, repository};
pub use skip::{can_make_namespaces, missing_programs, skipped};
pub use wait::{Deadline, pause, wait_until};
pub use world::World;

#[doc(hidden)]
pub mod __wait {
    //! What the macros expand to.
    pub use crate::wait::{eventually, throughout};
}
