//! The watcher, for whoever looks at it: how it stands, and what only memory needs of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nerve::store::{Key, Revision};
use tokio::sync::watch as signal;

/// How it stands with the watcher.
#[derive(Debug, Clone)]
pub struct Status {
    /// Is the store within reach?
    pub connected: bool,
    /// Since when it is so.
    pub since: SystemTime,
    /// When the store last told of a change.
    pub last_change: Option<SystemTime>,
    /// The revision up to which the catalog is true.
    pub revision: Revision,
    /// Records of the store that the catalog holds: instances, nodes, settings, networks, subnets and claims on virtual
    /// addresses.
    pub entries: usize,
    /// Instances, nodes and subnets that the store lists no more and that are kept for the reconnect grace.
    pub unconfirmed: usize,
    /// Records that stand in the store and cannot be used, with the reason; at most a thousand.
    pub refused: Vec<(String, String)>,
    /// The last error of the store.
    pub last_error: Option<String>,
}

/// What the store said that the catalog has no place for, but a later life of this agent needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes {
    /// The revision that a later life is to compare the store's with. Not that of a store that has lost durable records
    /// which are not written back yet: a restart must find the loss again.
    pub(crate) revision: Revision,
    /// Durable records (settings of services, networks, claims on virtual addresses) as they were written, with what this
    /// version does not understand of them.
    pub(crate) durable: BTreeMap<Key, Arc<str>>,
    /// Until when a record that is gone may be the store's fault, if nothing more happens to the store.
    pub(crate) doubted_until: Option<SystemTime>,
}

/// What the watcher shares with its handles.
#[derive(Debug)]
pub(super) struct Shared {
    store: String,
    status: Mutex<Status>,
    notes: Mutex<Notes>,
    pub(super) filled: signal::Sender<bool>,
    pub(super) changed: signal::Sender<()>,
}

impl Shared {
    pub(super) fn new(store: &str) -> Self {
        Self {
            store: store.to_owned(),
            status: Mutex::new(Status {
                connected: false,
                since: SystemTime::now(),
                last_change: None,
                revision: Revision::default(),
                entries: 0,
                unconfirmed: 0,
                refused: Vec::new(),
                last_error: None,
            }),
            notes: Mutex::default(),
            filled: signal::Sender::new(false),
            changed: signal::Sender::new(()),
        }
    }

    // Nothing panics while it holds one of the locks; were it so, what is behind them could still be read.
    pub(super) fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is the store within reach from now on?
    pub(super) fn set_connected(&self, connected: bool, error: Option<String>) {
        let mut status = self.status();
        if status.connected != connected {
            status.since = SystemTime::now();
        }
        status.connected = connected;
        status.last_error = error.or_else(|| status.last_error.take());
    }
}

/// The watcher, for whoever looks at it. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle(pub(super) Arc<Shared>);

impl Handle {
    /// How it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.status().clone()
    }

    /// Completes when the catalog has something to say: from memory, or the store's first snapshot. Cancel-safe.
    pub async fn filled(&self) {
        // An error means that the watcher is gone, and with it the agent.
        let _ = self.0.filled.subscribe().wait_for(|filled| *filled).await;
    }

    /// Told whenever something may be worth saving.
    pub(crate) fn changes(&self) -> signal::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// The URL of the store that is watched.
    #[must_use]
    pub fn store(&self) -> &str {
        &self.0.store
    }

    /// What memory saves beside the catalog.
    pub(crate) fn notes(&self) -> Notes {
        self.0.notes().clone()
    }
}
