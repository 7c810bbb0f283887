//! What a change of process needs of ingress: nothing opens or closes while it goes on, and the process that goes on says when
//! it listens on all that it is to.

use std::sync::Arc;

use tokio::sync::watch;

/// The state of a change of process. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Handover {
    frozen: Arc<watch::Sender<bool>>,
    settled: Arc<watch::Sender<bool>>,
}

impl Default for Handover {
    fn default() -> Self {
        Self { frozen: Arc::new(watch::Sender::new(false)), settled: Arc::new(watch::Sender::new(false)) }
    }
}

impl Handover {
    /// Whether another process may take over, or has: then no port is opened or closed.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    pub(super) fn is_frozen(&self) -> bool {
        *self.frozen.borrow()
    }

    /// Told when that changes.
    pub(super) fn changes(&self) -> watch::Receiver<bool> {
        self.frozen.subscribe()
    }

    /// What the catalog and the configuration said at the start is open, or has failed.
    pub(super) fn settle(&self) {
        self.settled.send_replace(true);
    }

    /// Completes when that is so. Cancel-safe.
    pub(super) async fn settled(&self) {
        // The sender lives in `self`, so the channel cannot close while this waits.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }
}
