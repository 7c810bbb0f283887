//! A session: the lease that a node's entries live under, kept alive in the background, its loss told.

use std::fmt;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Why a session is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("session {session} at {store} is lost: {reason}")]
pub struct SessionLost {
    /// The session, as the store names it.
    pub session: String,
    /// The store's URL.
    pub store: String,
    /// `the store says that it does not exist`, `not renewed within its TTL of 10s: …`
    pub reason: String,
}

/// The backend's end of a session: whoever renews the lease holds it.
#[derive(Debug)]
pub struct SessionKeeper {
    lost: watch::Sender<Option<SessionLost>>,
    stop: CancellationToken,
}

impl SessionKeeper {
    /// Tells the holder of the session that it is gone. Only the first reason counts.
    pub fn lose(&self, reason: SessionLost) {
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            if first {
                *lost = Some(reason);
            }
            first
        });
    }

    /// Completes when the session was closed or dropped: stop renewing.
    pub async fn closed(&self) {
        self.stop.cancelled().await;
    }
}

/// A lease kept alive for as long as this value lives. Dropping it stops the renewal; the entries then die with the TTL.
pub struct Session {
    id: u64,
    ttl: Duration,
    lost: watch::Receiver<Option<SessionLost>>,
    _stop: DropGuard,
}

impl Session {
    /// A session and the backend's end of it.
    #[must_use]
    pub fn new(id: u64, ttl: Duration) -> (Self, SessionKeeper) {
        let (sender, receiver) = watch::channel(None);
        let stop = CancellationToken::new();
        let session = Self { id, ttl, lost: receiver, _stop: stop.clone().drop_guard() };
        (session, SessionKeeper { lost: sender, stop })
    }

    /// The lease's number in the store.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How long the store remembers its entries after the last renewal.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Is it still ours, as far as is known here?
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.lost.borrow().is_none() && self.lost.has_changed().is_ok()
    }

    /// Completes when the session is gone, with the reason. Cancel-safe.
    pub async fn lost(&self) -> SessionLost {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        }
        .unwrap_or_else(|| SessionLost {
            session: self.id.to_string(),
            store: String::new(),
            reason: "the store was shut down".to_owned(),
        })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}
