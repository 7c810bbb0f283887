//! How long a service's connections may take to be made, and how long they may be quiet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::key::{Key, key};
use crate::period::Period;

/// Times of one service; `None` is what the node has for all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeoutSettings {
    /// For one attempt at one endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<Period>,
    /// A connection on which nothing moves for so long is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Period>,
    /// What a newer agent wrote: kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl TimeoutSettings {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What an operator may set of it.
pub(super) const KEYS: &[Key] = &[
    key!(timeouts.connect: Period = "", "how long one attempt to connect may take; the node's proxy.connect_timeout unless set"),
    key!(timeouts.idle: Period = "", "a connection on which nothing moves for so long is ended; the node's proxy.idle_timeout unless set"),
];
