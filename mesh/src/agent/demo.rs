//! The demo: a whole mesh on this machine.

use std::net::SocketAddr;

use nerve::model::{InstanceId, NodeName, ServiceName};

/// How the demo is to run.
#[derive(Debug, Clone, Copy)]
pub struct DemoOptions {
    /// One node on 127.0.0.1, also as root.
    pub loopback: bool,
}

/// What a backend of the demo plays.
#[derive(Debug, Clone)]
pub struct BackendOptions {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The service that it plays.
    pub service: ServiceName,
    /// Its instance id.
    pub instance: InstanceId,
    /// The node that it plays on.
    pub node: NodeName,
}

/// Runs the demo until Ctrl-C.
///
/// # Errors
/// The mesh could not be brought up.
pub fn run(options: DemoOptions) -> anyhow::Result<()> {
    anyhow::bail!("this build has no demo to run with {options:?}")
}

/// Runs one backend until it is killed.
///
/// # Errors
/// It could not listen.
pub fn backend(options: BackendOptions) -> anyhow::Result<()> {
    anyhow::bail!("this build has no demo backend to run with {options:?}")
}
