//! What one connection has tried, and what it is told when there is nothing left to try.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use nerve::model::ServiceName;
use smallvec::SmallVec;

use super::endpoint::{ConnectFailure, Endpoint, Excluded, Lease};

/// The endpoints that one connection has tried already.
#[derive(Debug, Default)]
pub struct Tried(SmallVec<[Arc<Endpoint>; 4]>);

impl Tried {
    /// Nothing tried yet.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Remembers a failed attempt, also for other connections.
    pub fn failed(&mut self, lease: &Lease, failure: ConnectFailure) {
        lease.endpoint().note_connect_failure(failure);
        self.0.push(Arc::clone(lease.endpoint()));
    }

    /// How many were tried.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Was nothing tried?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, endpoint: &Endpoint) -> bool {
        self.0.iter().any(|tried| tried.is(endpoint))
    }
}

/// What stands between a connection and an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// There is none that gets traffic, or none that was not tried.
    NoneLeft,
    /// Those that there are have as many connections as they may have.
    Full,
    /// Another attempt would exceed the service's retry budget.
    RetryBudget,
}

/// Why there is no endpoint to pick.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NoEndpoint {
    /// The service.
    pub service: ServiceName,
    /// What stands in the way.
    pub obstacle: Obstacle,
    /// How many endpoints are kept out, by reason.
    pub excluded: BTreeMap<Excluded, usize>,
    /// How many were tried for this connection.
    pub tried: usize,
}

impl NoEndpoint {
    /// Are there endpoints that would do, all at their limit? Then waiting may help.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.obstacle == Obstacle::Full
    }
}

impl fmt::Display for NoEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.obstacle {
            Obstacle::Full => {
                return write!(f, "every endpoint of {} is at its connection limit", self.service);
            }
            Obstacle::RetryBudget => {
                return write!(
                    f,
                    "{} has no retry left in its budget, after {} failed",
                    self.service, self.tried
                );
            }
            Obstacle::NoneLeft => write!(f, "{} has no endpoint to try", self.service)?,
        }
        if self.tried > 0 {
            write!(f, " any more: {} could not be connected to", self.tried)?;
        }
        for (reason, count) in &self.excluded {
            write!(f, "; {count} {reason}")?;
        }
        if self.tried == 0 && self.excluded.is_empty() {
            write!(f, ": no instance is registered")?;
        }
        Ok(())
    }
}
