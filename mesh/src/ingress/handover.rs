//! What a change of process needs of ingress: nothing opens or closes while it goes on, every listening socket is told, and
//! the process that goes on says when it listens on all that it is to.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;

use super::controller::Handle;

/// The state of a change of process.
#[derive(Debug, Clone)]
pub(super) struct Handover {
    /// Set while another process may take over, and for good when it has.
    pub(super) frozen: Arc<watch::Sender<bool>>,
    /// Set when what the catalog and the configuration said at the start is open, or has failed.
    pub(super) settled: Arc<watch::Sender<bool>>,
}

impl Default for Handover {
    fn default() -> Self {
        Self { frozen: Arc::new(watch::Sender::new(false)), settled: Arc::new(watch::Sender::new(false)) }
    }
}

impl Handle {
    /// Opens and closes no port while `frozen`; what changes meanwhile is done afterwards. Endpoints are followed all the same:
    /// connections that are open may need another one, or to hear that theirs is dead.
    pub fn freeze(&self, frozen: bool) {
        self.handover.frozen.send_replace(frozen);
    }

    /// Completes when every port that was wanted at the start is open, or has failed. Cancel-safe.
    pub async fn settled(&self) {
        // The sender lives in `self`, so the channel cannot close while this waits.
        let _ = self.handover.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// Every socket that is listened on.
    #[must_use]
    pub fn sockets(&self) -> Vec<Arc<OwnedFd>> {
        let shared = self.lock();
        let open = shared.slots.values().filter_map(|slot| slot.state.as_ref().ok());
        open.flat_map(crate::proxy::Listener::sockets).collect()
    }
}
