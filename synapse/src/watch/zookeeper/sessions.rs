//! Sessions with ensembles, one for all watchers of an ensemble.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::time::timeout;
use zookeeper_client::Client;

use crate::watch::lock::lock;

/// How long the ensemble may take to open a session.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Nothing of ours ends with a session: it may be found again for as long as servers remember sessions by default.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The sessions. Clones share them.
#[derive(Debug, Clone, Default)]
pub(in crate::watch) struct Sessions(Arc<Mutex<BTreeMap<String, Slot>>>);

/// Held while it is opened: who comes meanwhile waits for it. A session ends with the last of its watchers.
type Slot = Arc<tokio::sync::Mutex<Weak<Client>>>;

impl Sessions {
    /// The session with these servers, a new one if there is none that goes on.
    pub(super) async fn client(&self, ensemble: &str) -> Result<Arc<Client>, String> {
        let slot = {
            let mut slots = lock(&self.0);
            // Those of ensembles that nobody follows any more.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || is_used(slot));
            Arc::clone(slots.entry(ensemble.to_owned()).or_default())
        };
        let mut slot = slot.lock().await;
        if let Some(client) = slot.upgrade().filter(|client| !client.state().is_terminated()) {
            return Ok(client);
        }
        let connector =
            Client::connector().with_fail_eagerly().with_readonly(true).with_session_timeout(TIMEOUT);
        match timeout(CONNECT_WITHIN, Box::pin(connector.connect(ensemble))).await {
            Ok(Ok(client)) => {
                let client = Arc::new(client);
                *slot = Arc::downgrade(&client);
                Ok(client)
            }
            Ok(Err(error)) => Err(format!("no session: {error}")),
            Err(_) => Err(format!("no session within {CONNECT_WITHIN:?}")),
        }
    }
}

fn is_used(slot: &Slot) -> bool {
    // Who holds it is about to use it.
    slot.try_lock().map_or(true, |client| client.strong_count() > 0)
}
