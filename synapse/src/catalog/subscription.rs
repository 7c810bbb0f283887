//! Telling consumers what has changed.
//!
//! Each subscription holds the set of names that changed since it was last read: bounded by the number of things with
//! names, however slow the consumer is, and what changes a hundred times is reported once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nerve::model::{NodeName, ServiceName};
use tokio::sync::Notify;

/// Names of services.
pub type ServiceChanges = HashSet<ServiceName>;

/// Names of nodes.
pub type NodeChanges = HashSet<NodeName>;

/// Have the rules changed?
pub type RuleChanges = bool;

#[derive(Debug, Default)]
struct Dirty<C> {
    changes: Mutex<C>,
    wake: Notify,
}

impl<C: Default> Dirty<C> {
    fn take(&self) -> C {
        std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<C> Dirty<C> {
    fn mark(&self, mark: impl FnOnce(&mut C)) {
        mark(&mut self.changes.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
    }
}

/// Every subscription that still has a reader.
#[derive(Debug)]
pub(super) struct Subscribers<C>(Mutex<Vec<Weak<Dirty<C>>>>);

impl<C> Default for Subscribers<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C: Default> Subscribers<C> {
    pub(super) fn add(&self) -> Subscription<C> {
        let dirty = Arc::new(Dirty::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&dirty));
        Subscription(dirty)
    }

    /// Lets `mark` write into each what has changed.
    pub(super) fn mark(&self, mark: impl Fn(&mut C)) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|subscriber| {
            match subscriber.upgrade() {
                Some(dirty) => {
                    dirty.mark(&mark);
                    true
                }
                None => false,
            }
        });
    }
}

/// One consumer's view of what changed: of services unless said otherwise.
#[derive(Debug)]
pub struct Subscription<C = ServiceChanges>(Arc<Dirty<C>>);

impl<C: Default + PartialEq> Subscription<C> {
    pub(super) fn mark(&self, mark: impl FnOnce(&mut C)) {
        self.0.mark(mark);
    }

    /// Waits until something has changed, then takes all that has. Never empty. Cancel-safe: a name is taken only when it
    /// is returned.
    pub async fn changed(&mut self) -> C {
        loop {
            let woken = self.0.wake.notified();
            let changes = self.0.take();
            if changes != C::default() {
                return changes;
            }
            woken.await;
        }
    }

    /// Takes all that has changed, which may be nothing. For whoever looks now and then, by [`Catalog::changes`](super::Catalog::changes).
    #[must_use]
    pub fn take(&mut self) -> C {
        self.0.take()
    }
}
