//! How the checks of an instance stood in the process before this one: what makes a change of process invisible to them.
//!
//! A check that is defined as before goes on with its verdict and with the results in a row that speak against it; any other
//! begins with the instance's verdict.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Advice, Outcome};
use crate::model::{Health, ListensOn, UnixPath};

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Where it was checked: at another address it is another instance. Port 0: it has no main port.
    pub address: SocketAddr,
    /// And its unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<UnixPath>,
    /// As its worst check.
    pub health: Health,
    /// The probe that decided it.
    pub reason: String,
    /// Each check.
    pub checks: Vec<CarriedCheck>,
}

/// One check of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedCheck {
    /// What it does: `http GET /healthz`.
    pub description: String,
    /// How it stood.
    pub progress: Progress,
    /// For how long it has been running: the start period counts from its beginning.
    pub age: Duration,
    /// Its last probe.
    pub last: Option<Outcome>,
    /// What it said of its weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<Advice>,
}

/// A verdict, and what has been seen since that may change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The verdict: `Starting`, `Passing` or `Critical`.
    pub health: Health,
    /// Results in a row that are like the last one and speak against the verdict.
    pub streak: u32,
    /// The last result.
    pub last_healthy: bool,
    /// Whether there is something to look after. What another version left may not say.
    #[serde(default)]
    pub warned: Warned,
}

/// The same of warnings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Warned {
    /// Is there something to look after?
    pub verdict: bool,
    /// Results in a row that are like the last one.
    pub streak: u32,
    /// Was the last one at least a warning?
    pub last: bool,
}

/// What a monitor begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beginning {
    /// This verdict, with no probe seen: `Starting` unless an earlier verdict is carried over.
    With(Health),
    /// What another process had found out.
    Carried(Carried),
}

impl Progress {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(health: Health) -> Self {
        let warned = Warned { verdict: health == Health::Warning, ..Warned::default() };
        let health = if health == Health::Warning { Health::Passing } else { health };
        Self { health, streak: 0, last_healthy: false, warned }
    }

    /// The verdict, warnings included.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.health {
            Health::Passing if self.warned.verdict => Health::Warning,
            health => health,
        }
    }
}

impl Carried {
    /// Of an instance that listens there, of which nothing else is known.
    pub(super) fn of(on: &ListensOn, health: Health, reason: String, checks: Vec<CarriedCheck>) -> Self {
        Self { address: on.or_port_zero(), socket: on.socket.clone(), health, reason, checks }
    }

    /// Is it of an instance that listens there?
    #[must_use]
    pub fn is_of(&self, on: &ListensOn) -> bool {
        ListensOn { socket: self.socket.clone(), ..self.address.into() } == *on
    }
}

impl Beginning {
    /// The verdict on the whole.
    pub(super) fn health(&self) -> Health {
        match self {
            Self::With(health) => *health,
            Self::Carried(carried) => carried.health,
        }
    }

    /// What is carried over for the check at this place that does this.
    pub(super) fn of_check(&self, index: usize, description: &str) -> Option<&CarriedCheck> {
        match self {
            Self::With(_) => None,
            Self::Carried(carried) => {
                carried.checks.get(index).filter(|check| check.description == description)
            }
        }
    }
}
