//! What others see of ingress, and ask of it: its listeners, a reload, a hand-over, the drain.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nerve::model::ServiceName;
use tokio::sync::watch;

use super::handover::Handover;
use super::slots::{Slots, State};
use super::{Config, ListenerStatus};
use crate::balance::Balancer;
use crate::proxy::Listener;

/// What ingress is up to, for readers and for a reload. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Mutex<Shared>>,
    pub(super) config: Arc<watch::Sender<Config>>,
    pub(super) handover: Handover,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) slots: Slots,
    pub(super) conflicts: Vec<ListenerStatus>,
}

impl Handle {
    /// Of a task that is to begin with this.
    pub(super) fn of(config: Config) -> Self {
        let config = Arc::new(watch::Sender::new(config));
        Self { shared: Arc::default(), config, handover: Handover::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic while it was held left a slot out at worst; the restarted task makes it anew.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn some_listeners(&self, of: impl Fn(&ServiceName) -> bool) -> Vec<ListenerStatus> {
        let shared = self.lock();
        let mut listed = shared.slots.statuses(|slot| of(&slot.holder.service));
        listed.extend(shared.conflicts.iter().filter(|conflict| of(&conflict.service)).cloned());
        listed
    }

    /// Every listener that is wanted here, in the order of kind, transport and address; at the end what another service
    /// stands in the way of.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        self.some_listeners(|_| true)
    }

    /// Those of one service.
    #[must_use]
    pub fn listeners_of(&self, service: &ServiceName) -> Vec<ListenerStatus> {
        self.some_listeners(|of| of == service)
    }

    /// Those that do not listen.
    #[must_use]
    pub fn failures(&self) -> Vec<ListenerStatus> {
        let shared = self.lock();
        let mut failed = shared.slots.statuses(|slot| matches!(slot.state, State::Failed(_)));
        failed.extend(shared.conflicts.iter().cloned());
        failed
    }

    /// How many ports this node listens on.
    #[must_use]
    pub fn open(&self) -> usize {
        self.lock().slots.counts().0
    }

    /// The balancers of a service: one for each port of the instances that something here leads to.
    #[must_use]
    pub fn balancers(&self, service: &ServiceName) -> Vec<Arc<Balancer>> {
        self.lock().slots.balancers(service).into_iter().map(|(balancer, _)| balancer).collect()
    }

    pub(super) fn all_balancers(&self) -> Vec<Arc<Balancer>> {
        self.lock().slots.all_balancers()
    }

    /// Takes over what a reload of the configuration may change: localhost ports and the drain's deadline.
    pub fn reload(&self, config: &Config) {
        self.config.send_if_modified(|current| {
            let Config { localhost, drain, .. } = config;
            let changed = current.localhost != *localhost || current.drain != *drain;
            current.localhost.clone_from(localhost);
            current.drain = *drain;
            changed
        });
    }

    pub(super) fn drain_deadline(&self) -> Duration {
        self.config.borrow().drain
    }

    /// Opens and closes no port while `frozen`; what changes meanwhile is done afterwards. Endpoints are followed all the same:
    /// connections that are open may need another one, or to hear that theirs is dead.
    pub fn freeze(&self, frozen: bool) {
        self.handover.freeze(frozen);
    }

    /// Completes when every port that was wanted at the start is open, or has failed. Cancel-safe.
    pub async fn settled(&self) {
        self.handover.settled().await;
    }

    /// Every socket that is listened on.
    #[must_use]
    pub fn sockets(&self) -> Vec<Arc<OwnedFd>> {
        self.lock().slots.listeners().flat_map(Listener::sockets).collect()
    }

    /// Closes every listener and waits for their connections, at most for `deadline`. Call it after the task was stopped or
    /// frozen. Tells how many connections were reset.
    pub async fn drain(&self, deadline: Duration) -> u32 {
        self.drain_after(Listener::stop_accepting, deadline).await
    }

    /// The same where another process goes on with the sockets.
    pub async fn hand_over(&self, deadline: Duration) -> u32 {
        self.drain_after(Listener::hand_over, deadline).await
    }

    async fn drain_after(&self, stop: fn(&Listener), deadline: Duration) -> u32 {
        let listeners: Vec<Listener> = self.lock().slots.take_listeners();
        listeners.iter().for_each(stop);
        let drains = listeners.into_iter().map(|listener| listener.drain(deadline));
        futures_util::future::join_all(drains).await.into_iter().sum()
    }
}
