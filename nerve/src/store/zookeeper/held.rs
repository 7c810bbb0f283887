//! The sessions that this process holds, each with its connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use zookeeper_client::Client;

/// A session of ours; `None` once it is closed.
#[derive(Debug)]
pub(super) struct Lease(Mutex<Option<Client>>);

impl Lease {
    pub(super) fn new(client: Client) -> Self {
        Self(Mutex::new(Some(client)))
    }

    /// The connection, unless the session has ended.
    pub(super) fn client(&self) -> Option<Client> {
        self.held().clone().filter(|client| !client.state().is_terminated())
    }

    /// The connection, for whoever closes the session.
    pub(super) fn take(&self) -> Option<Client> {
        self.held().take()
    }

    fn held(&self) -> MutexGuard<'_, Option<Client>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sessions that this process holds. They live in those who renew them.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<u64, Weak<Lease>>>);

impl Leases {
    /// The connection of a session.
    pub(super) fn client(&self, id: u64) -> Option<Client> {
        self.get(id)?.client()
    }

    /// A session.
    pub(super) fn get(&self, id: u64) -> Option<Arc<Lease>> {
        self.all().get(&id)?.upgrade()
    }

    /// Notes a session.
    pub(super) fn add(&self, id: u64, lease: &Arc<Lease>) {
        let mut all = self.all();
        all.retain(|_, lease| lease.strong_count() > 0);
        all.insert(id, Arc::downgrade(lease));
    }

    /// Forgets a session.
    pub(super) fn remove(&self, id: u64) -> Option<Arc<Lease>> {
        self.all().remove(&id)?.upgrade()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Weak<Lease>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
