//! What calls are answered from, and how they are refused.

use nerve::model::NetworkName;
use serde::Serialize;
use serde_json::Value;

use super::Metrics;
use super::kept::{DockerNetwork, Kept};
use crate::overlay::{DockerError, DockerLinks};

/// What calls are answered from.
#[derive(Debug, Clone)]
pub(super) struct Driver {
    pub(super) links: DockerLinks,
    pub(super) kept: Kept,
    pub(super) metrics: Metrics,
}

/// What a call is answered with.
pub(super) type Answer = Result<Value, Refused>;

/// Why a call is not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// There is no such call.
    #[error("there is no call {0}: this is the plugin of Plexus for networks and addresses")]
    NoCall(String),
    /// Docker makes a call again that was cut off, and leaves its contents away (`callWithRetry` of its `pkg/plugins` reads them once).
    #[error(
        "the agent was interrupted in the middle, and Docker has not said again what is to be done; do it once more"
    )]
    Empty,
    /// It is not JSON, or not of this form.
    #[error("the request cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// What the user of Docker is to do otherwise.
    #[error("{0}")]
    Wrong(String),
    /// The overlay does not do it.
    #[error(transparent)]
    Overlay(#[from] DockerError),
    /// What is remembered cannot be read or written.
    #[error("cannot keep what Docker's network {id} is: {source}")]
    Kept {
        /// Its id.
        id: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl Driver {
    pub(super) fn new(links: DockerLinks, kept: Kept, metrics: Metrics) -> Self {
        Self { links, kept, metrics }
    }

    /// What a network of Docker is.
    pub(super) fn known(&self, id: &str) -> Result<DockerNetwork, Refused> {
        let known = self.kept.read(id).map_err(|source| Refused::Kept { id: id.to_owned(), source })?;
        known.ok_or_else(|| {
            Refused::Wrong(format!(
                "this node's agent does not know Docker's network {id}; remove it (docker network rm) and create it again"
            ))
        })
    }
}

impl Refused {
    pub(super) fn wrong(why: impl Into<String>) -> Self {
        Self::Wrong(why.into())
    }
}

/// A network's name as a user has written it.
pub(super) fn network_name(text: &str) -> Result<NetworkName, Refused> {
    NetworkName::new(text).map_err(|error| Refused::wrong(error.to_string()))
}

/// An answer that has a form of its own.
pub(super) fn answer(answer: impl Serialize) -> Answer {
    Ok(serde_json::to_value(answer)?)
}
