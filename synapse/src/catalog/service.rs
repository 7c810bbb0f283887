//! One service as it is at one moment: immutable, so that a reader never sees half a change.

use std::net::IpAddr;
use std::sync::Arc;

use nerve::model::{InstanceId, PublishedPort, ServiceName, ServiceSettings};

use super::Endpoint;
use super::layers::WatchedPort;

/// A snapshot of one service.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// The settings that hold on this node: the fleet's, the node's own where the fleet has none, and the defaults where neither has.
    pub settings: Arc<ServiceSettings>,
    /// What the store says, where that is not what holds.
    pub stored: Option<Arc<ServiceSettings>>,
    /// The ports that watchers publish on this node, besides those of the settings.
    pub watched_ports: Vec<WatchedPort>,
    /// Its endpoints in the order of their ids, those without traffic included.
    pub endpoints: Vec<Endpoint>,
    /// The virtual addresses that are claimed for it, in ascending order: of one family usually one, after a race or a
    /// change of the ranges for a while more. The first that a node can use is the one that counts there.
    pub vips: Vec<IpAddr>,
    /// Grows with each change of this service, also over its disappearance; for waiting on one and for telling
    /// snapshots apart. Not without gaps.
    pub generation: u64,
}

impl Service {
    /// One that nothing is known of but its name.
    #[must_use]
    pub fn empty(name: ServiceName) -> Self {
        Self {
            name,
            settings: Arc::default(),
            stored: None,
            watched_ports: Vec::new(),
            endpoints: Vec::new(),
            vips: Vec::new(),
            generation: 0,
        }
    }

    /// The endpoints that get traffic.
    pub fn serving(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|e| e.is_serving())
    }

    /// Every port that this node publishes for it: what the settings say, then what watchers do.
    pub fn published(&self) -> impl Iterator<Item = (&PublishedPort, Option<&Arc<str>>)> {
        let stored = self.settings.published.iter().map(|port| (port, None));
        stored.chain(self.watched_ports.iter().map(|watched| (&watched.port, Some(&watched.watcher))))
    }

    /// Do watchers say anything of it?
    pub(super) fn has_watched(&self) -> bool {
        !self.watched_ports.is_empty() || self.endpoints.iter().any(|endpoint| endpoint.watcher.is_some())
    }

    /// The endpoint of this id.
    #[must_use]
    pub fn endpoint(&self, id: &InstanceId) -> Option<&Endpoint> {
        self.position(id).ok().map(|at| &self.endpoints[at])
    }

    /// The store's endpoint of this id.
    pub(crate) fn stored(&self, id: &InstanceId) -> Option<&Endpoint> {
        self.endpoint(id).filter(|endpoint| endpoint.watcher.is_none())
    }

    /// The endpoints that the store says.
    pub(crate) fn all_stored(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|endpoint| endpoint.watcher.is_none())
    }

    /// Where the endpoint stands, or would stand.
    pub(super) fn position(&self, id: &InstanceId) -> Result<usize, usize> {
        self.endpoints.binary_search_by(|e| e.instance.id.cmp(id))
    }

    /// Is nothing stored about it beyond its instances?
    #[must_use]
    pub fn has_default_settings(&self) -> bool {
        **self.stored.as_ref().unwrap_or(&self.settings) == ServiceSettings::default()
    }

    /// Are its settings those of this node's own configuration?
    #[must_use]
    pub fn has_node_settings(&self) -> bool {
        self.stored.is_some()
    }

    /// Is there nothing to say about it? An address that is still claimed for it does not make a service.
    pub(super) fn is_void(&self) -> bool {
        self.endpoints.is_empty() && self.watched_ports.is_empty() && self.has_default_settings()
    }
}
