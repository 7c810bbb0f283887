//! How much a service's endpoints and clients may take, and what happens at the limit.
//!
//! Every node counts for itself: there is no counter that the fleet shares, so that no connection waits for one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::key::{Key, key};
use super::value::{Count, word_list};
use crate::period::Period;

word_list! {
    /// What happens to a connection when the endpoints that it should go to are at their limit.
    AtLimit {
        /// It waits for a place.
        #[default]
        Queue = "queue",
        /// It goes to an endpoint of another zone, subset or split group; it waits when those are full too.
        Spill = "spill",
        /// It is refused at once.
        Refuse = "refuse",
    }
}

/// Limits of one node; `None` is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitSettings {
    /// Connections to one endpoint; 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_connections: Option<Count>,
    /// Connections of the whole service; 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_connections: Option<Count>,
    /// Connections of one client address; 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_connections: Option<Count>,
    /// New connections a second; 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_second: Option<Count>,
    /// New connections at once beyond the even pace; those of one second unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<Count>,
    /// Connections that may wait for a place; 0: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<Count>,
    /// How long one waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_timeout: Option<Period>,
    /// What happens at the limit of the endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_limit: Option<AtLimit>,
    /// What a newer agent wrote: kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl LimitSettings {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What an operator may set of it.
pub(super) const KEYS: &[Key] = &[
    key!(limits.endpoint_connections: Count = "0", "connections to one endpoint; 0: no limit"),
    key!(limits.service_connections: Count = "0", "connections of the whole service; 0: no limit"),
    key!(limits.client_connections: Count = "0", "connections of one client address; 0: no limit"),
    key!(limits.connections_per_second: Count = "0", "new connections a second; 0: no limit"),
    key!(limits.burst: Count = "", "new connections at once; as many as in a second unless set"),
    key!(limits.queue: Count = "1024", "connections that may wait for a place; 0: none"),
    key!(limits.queue_timeout: Period = "5s", "how long one waits for a place"),
    key!(limits.at_limit: AtLimit = "queue", "what happens when endpoints are at their limit"),
];
