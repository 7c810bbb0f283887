//! One service as it is at one moment: immutable, so that a reader never sees half a change.

use std::net::IpAddr;
use std::sync::Arc;

use nerve::model::{InstanceId, ServiceName, ServiceSettings};

use super::Endpoint;

/// A snapshot of one service.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its fleet-wide settings; the defaults where none are stored.
    pub settings: Arc<ServiceSettings>,
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
    pub(super) fn empty(name: ServiceName) -> Self {
        Self { name, settings: Arc::default(), endpoints: Vec::new(), vips: Vec::new(), generation: 0 }
    }

    /// The endpoints that get traffic.
    pub fn serving(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|e| e.is_serving())
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
        *self.settings == ServiceSettings::default()
    }

    /// Is there nothing to say about it? An address that is still claimed for it does not make a service.
    pub(super) fn is_void(&self) -> bool {
        self.endpoints.is_empty() && self.has_default_settings()
    }
}
