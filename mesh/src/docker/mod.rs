//! Docker's network driver and its driver for addresses: a plugin on a unix socket, by which `docker network create -d plexus`
//! joins an overlay network, and `docker run` attaches containers to it.
//!
//! The protocol is libnetwork's (its docs/remote.md and docs/ipam.md): a POST a call, JSON both ways. `server` has the socket, `file`
//! the file that Docker finds it by, `calls` which call is whose, `ipam` and `network` what they mean,
//! `driver` what they are answered from, `message` their form, `kept`
//! what is remembered of Docker's networks. Addresses and links are the overlay's business; nothing here touches the kernel. It asks
//! nobody but this node: while the store is out of reach, containers come and go.
//!
//! The protocol never says what a Docker network is called. Which overlay network it is follows from where its gateway lies.

mod calls;
mod driver;
mod file;
mod ipam;
mod kept;
mod message;
mod metrics;
mod network;
mod server;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use nerve::model::UnixPath;
use nerve::tasks::Tasks;

use crate::drain::DrainWatcher;
use crate::overlay::DockerLinks;
use driver::Driver;
use kept::Kept;

pub use metrics::Metrics;

/// What Docker is served on, and where what it says is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Docker finds the driver by the name of this file.
    pub socket: UnixPath,
    /// The agent's directory.
    pub state_dir: PathBuf,
}

/// How it stands, for readers. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Handle(Arc<Mutex<Option<String>>>);

impl Handle {
    /// Why Docker is not served, while it is not.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, problem: Option<String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = problem.as_ref().filter(|problem| Some(*problem) != known.as_ref()) {
            tracing::error!("{problem}");
        }
        *known = problem;
    }
}

/// Serves Docker until `drain` is signalled. `replaces`: whoever listens there at the moment is an agent that this one has replaced.
pub fn start(
    config: Config,
    links: DockerLinks,
    replaces: bool,
    handle: &Handle,
    metrics: Metrics,
    tasks: &Tasks,
    drain: DrainWatcher,
) {
    let driver = Driver::new(links, Kept::new(&config.state_dir), metrics.clone());
    let server = server::Server::new(config.socket, driver, handle.clone(), tasks.clone(), drain);
    tasks.spawn("docker", server.run(replaces));
}
