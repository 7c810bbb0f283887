//! Sessions with ensembles, one for all watchers of an ensemble.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
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

/// Held while it is opened: who comes meanwhile waits for it.
type Slot = Arc<tokio::sync::Mutex<Option<Client>>>;

impl Sessions {
    /// The session with these servers, a new one if there is none that goes on.
    pub(super) async fn client(&self, ensemble: &str) -> Result<Client, String> {
        let slot = Arc::clone(lock(&self.0).entry(ensemble.to_owned()).or_default());
        let mut slot = slot.lock().await;
        if let Some(client) = slot.as_ref().filter(|client| !client.state().is_terminated()) {
            return Ok(client.clone());
        }
        *slot = None;
        let connector =
            Client::connector().with_fail_eagerly().with_readonly(true).with_session_timeout(TIMEOUT);
        match timeout(CONNECT_WITHIN, Box::pin(connector.connect(ensemble))).await {
            Ok(Ok(client)) => {
                *slot = Some(client.clone());
                Ok(client)
            }
            Ok(Err(error)) => Err(format!("no session: {error}")),
            Err(_) => Err(format!("no session within {CONNECT_WITHIN:?}")),
        }
    }
}
