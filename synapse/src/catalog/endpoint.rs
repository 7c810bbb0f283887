//! An endpoint: the reader's judgement of an instance.

use std::fmt;
use std::sync::Arc;

use nerve::model::{Health, Instance, NodeName};
use serde::{Deserialize, Serialize};

/// Why an endpoint gets no traffic. Balancer, DNS, `plexus why` and metrics print the same word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its checks have not passed yet.
    Starting,
    /// A check of it fails.
    Critical,
    /// It or its node is being drained.
    Draining,
    /// It listens on a unix socket alone: its own node reaches it, and nobody else.
    UnixSocketOnly,
}

impl Reason {
    /// The word for it, as in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Critical => "critical",
            Self::Draining => "draining",
            Self::UnixSocketOnly => "unix_socket_only",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An instance as the balancer sees it: it may be given traffic now, or not, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What its node registered, or a watcher has found.
    pub instance: Arc<Instance>,
    /// The store no longer confirms it (it was cut off, wiped, or restored); it is kept for a grace period.
    pub unconfirmed: bool,
    /// The watcher that says so; `None`: the store's.
    pub watcher: Option<Arc<str>>,
}

impl Endpoint {
    /// What the store says.
    pub(super) fn of_store(instance: Arc<Instance>) -> Self {
        Self { instance, unconfirmed: false, watcher: None }
    }
}

impl Endpoint {
    /// Why it gets no traffic, or `None` if it does.
    #[must_use]
    pub fn excluded(&self) -> Option<Reason> {
        match self.instance.health {
            _ if self.instance.draining => Some(Reason::Draining),
            Health::Passing | Health::Warning => None,
            Health::Starting => Some(Reason::Starting),
            Health::Critical => Some(Reason::Critical),
        }
    }

    /// Why `node` sends it no traffic, or `None` if it does; `None` for the node is whoever needs an IP address.
    #[must_use]
    pub fn excluded_from(&self, node: Option<&NodeName>) -> Option<Reason> {
        let is_out_of_reach = self.instance.port.is_none() && node != Some(&self.instance.node);
        self.excluded().or(is_out_of_reach.then_some(Reason::UnixSocketOnly))
    }

    /// Does it get traffic?
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.excluded().is_none()
    }
}
