//! What another process needs to go on as this node's registrar, so that nobody who watches the store sees a change.
//!
//! The session goes over with everything under it; what the store has confirmed is not written again; checks go on where they
//! were. Written as JSON between two versions of the program: unknown fields are ignored, and all of it may be missing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::settle::Confirmed;
use crate::check;
use crate::source::InstanceKey;
use crate::store::{Revision, Session};

/// A registrar at the moment it was handed over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Carried {
    /// The session that everything is registered under; `None` while the store was out of reach.
    pub session: Option<CarriedSession>,
    /// What the store has confirmed under that session.
    pub records: Vec<CarriedRecord>,
    /// How the checks stood.
    pub instances: Vec<CarriedInstance>,
}

/// A session at the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedSession {
    /// Its number there.
    pub id: u64,
    /// The time to live that was granted.
    pub granted: Duration,
    /// The time to live that was asked for.
    pub asked: Duration,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedRecord {
    /// Whose; `None`: the node's own.
    pub instance: Option<InstanceKey>,
    /// What stands there.
    pub value: String,
    /// Since which revision of the store.
    pub revision: u64,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedInstance {
    /// Which.
    pub key: InstanceKey,
    /// How its checks stood.
    pub checks: check::Carried,
    /// Registered as passing, as a still earlier life left it, though its checks had not decided yet.
    #[serde(default)]
    pub adopted: bool,
}

impl CarriedSession {
    pub(super) fn new(session: &Session, asked: Duration) -> Self {
        Self { id: session.id(), granted: session.ttl(), asked }
    }
}

impl CarriedRecord {
    /// `None` where it is not known what stands there, or where that is no text: it is looked at again then.
    pub(super) fn new(instance: Option<InstanceKey>, confirmed: Option<&Confirmed>) -> Option<Self> {
        let Confirmed { value, revision } = confirmed?;
        let value = String::from_utf8(value.clone()).ok()?;
        Some(Self { instance, value, revision: revision.0 })
    }

    pub(super) fn confirmed(&self) -> Confirmed {
        Confirmed { value: self.value.clone().into_bytes(), revision: Revision(self.revision) }
    }
}
