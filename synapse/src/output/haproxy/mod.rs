//! HAProxy, where a fleet keeps it: its configuration is written as SmartStack's Synapse does, and it is told of changes while it runs.
//!
//! A change of the catalog makes one service's section anew (`roster`, `render`). HAProxy is told at its stats socket (`peer`) what can be
//! said there; the file is replaced (`disk`), so that it starts from the same; and it is reloaded for what can only be read from a file
//! (`reload`), no more often than is allowed. Each of these compares what is with what is to be: a restart, of the agent or of HAProxy, is
//! no special case. What fails is tried again, and changes nothing of what runs.
//!
//! It never touches backends that are not its own, and leaves HAProxy running when the agent ends.

mod compare;
mod config;
mod disk;
mod file;
mod keywords;
mod loose;
mod metrics;
mod peer;
mod problems;
mod reload;
mod remains;
mod render;
mod roster;
mod runtime;
mod server;
mod shell;
mod state;
mod task;

use std::sync::Arc;

use nerve::model::NodeName;
use nerve::tasks::Tasks;
use prometheus::Registry;
use tokio::sync::watch;

pub use config::{Config, CookieValue, Order, Service, ServiceConfig};
pub use loose::{ProxyName, Share, Title};

use crate::catalog::Catalog;
use crate::watch::store::Handle as Watcher;
use metrics::Metrics;
use problems::Problems;

/// The output, for whoever changes what it is told or asks how it stands. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    config: Arc<watch::Sender<Option<Arc<Config>>>>,
    problems: Problems,
    metrics: Metrics,
}

/// What it works with.
#[derive(Debug, Clone)]
pub struct Means {
    /// What it tells.
    pub catalog: Catalog,
    /// Says when the catalog has something to say.
    pub watcher: Watcher,
    /// Whose order of servers is the node's own.
    pub node: NodeName,
}

impl Handle {
    /// One that is told this when it runs, and whose figures stand in `registry`; `None`: there is no HAProxy.
    ///
    /// # Errors
    /// Its figures stand there already.
    pub fn new(config: Option<Config>, registry: &Registry) -> prometheus::Result<Self> {
        let config = watch::Sender::new(config.map(Arc::new));
        let metrics = Metrics::new()?;
        metrics.register(registry)?;
        Ok(Self { config: Arc::new(config), problems: Problems::default(), metrics })
    }

    /// From now on this holds.
    pub fn configure(&self, config: Option<Config>) {
        let config = config.map(Arc::new);
        self.config.send_if_modified(|before| {
            let is_new = *before != config;
            *before = config;
            is_new
        });
    }

    /// What does not work.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.problems.list()
    }

    /// Runs it for as long as its owner does. One runs at a time.
    pub fn run(&self, means: Means, tasks: &Tasks) {
        let handle = self.clone();
        tasks.spawn_until_stopped("haproxy", move || task::follow(means.clone(), handle.clone()));
    }
}
