//! Telling consumers which services have changed.
//!
//! Each subscription holds the set of names that changed since it was last read: bounded by the number of services,
//! however slow the consumer is, and a service that changes a hundred times is reported once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nerve::model::ServiceName;
use tokio::sync::Notify;

#[derive(Debug, Default)]
struct Dirty {
    names: Mutex<HashSet<ServiceName>>,
    wake: Notify,
}

impl Dirty {
    fn mark(&self, name: &ServiceName) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        self.wake.notify_one();
    }
}

/// Every subscription that still has a reader.
#[derive(Debug, Default)]
pub(super) struct Subscribers(Mutex<Vec<Weak<Dirty>>>);

impl Subscribers {
    pub(super) fn add(&self) -> Subscription {
        let dirty = Arc::new(Dirty::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&dirty));
        Subscription(dirty)
    }

    pub(super) fn mark(&self, name: &ServiceName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|subscriber| {
            match subscriber.upgrade() {
                Some(dirty) => {
                    dirty.mark(name);
                    true
                }
                None => false,
            }
        });
    }
}

/// One consumer's view of what changed.
#[derive(Debug)]
pub struct Subscription(Arc<Dirty>);

impl Subscription {
    pub(super) fn mark(&self, name: &ServiceName) {
        self.0.mark(name);
    }

    /// Waits until a service has changed, then takes the names of all that have. Never empty. Cancel-safe: a name is
    /// taken only when it is returned.
    pub async fn changed(&mut self) -> HashSet<ServiceName> {
        loop {
            let woken = self.0.wake.notified();
            let names = std::mem::take(&mut *self.0.names.lock().unwrap_or_else(PoisonError::into_inner));
            if !names.is_empty() {
                return names;
            }
            woken.await;
        }
    }
}
