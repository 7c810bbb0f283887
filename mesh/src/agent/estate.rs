//! What this agent gives to the one that takes over, room by room, and how each takes it back.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use synapse::memory;

use super::handover::{Error, Estate, memfd};
use super::rooms::Rooms;
use crate::config::Config;
use crate::inherited::Key;

/// How long the registrar may take to finish the writes that are under way: longer than the store may for one.
const PAUSE_WITHIN: Duration = Duration::from_secs(5);
/// A store that was given away and is not to be had again is tried again after this.
const TRY_AGAIN: Duration = Duration::from_secs(1);

impl Estate for Rooms {
    fn config(&self) -> &Config {
        &self.config
    }

    fn freeze(&self) {
        self.ingress.freeze(true);
    }

    fn sockets(&self) -> Vec<Arc<OwnedFd>> {
        let mut sockets = self.ingress.sockets();
        sockets.extend(self.problems.mtls.sockets());
        sockets.extend(self.name_server.iter().flat_map(|server| server.handle.sockets()).map(Arc::new));
        sockets.extend(self.admin_sockets.iter().cloned());
        sockets.extend(self.problems.admin.socket().map(Arc::new));
        sockets
    }

    fn is_lent(&self, key: &Key) -> bool {
        self.inherited.is_lent(key)
    }

    async fn catalog(&self) -> Result<Option<OwnedFd>, Error> {
        if !self.is_filled() {
            return Ok(None);
        }
        let (catalog, watcher) = (self.catalog.clone(), self.watcher.clone());
        let write = move |file: &mut std::fs::File| memory::write_to(file, &catalog, &watcher);
        memfd::filled("plexus catalog", write).await.map(Some)
    }

    async fn stop_writing(&mut self) -> Result<Vec<(String, OwnedFd)>, Error> {
        self.writes = false;
        let carried = self.registrar.hand_over(PAUSE_WITHIN).await;
        let carried = carried.map_err(|error| Error::Room(error.to_string()))?;
        self.owners.memory.shutdown().await;
        let store = self.store.hand_over().await.map_err(|error| Error::Room(error.to_string()))?;
        let write = move |file: &mut std::fs::File| Ok(serde_json::to_writer(file, &carried)?);
        let mut documents = vec![("registrar".to_owned(), memfd::filled("plexus registrar", write).await?)];
        if let Some(image) = store {
            let image = memfd::filled("plexus store", move |file| file.write_all(&image)).await?;
            documents.push(("store".to_owned(), image));
        }
        Ok(documents)
    }

    async fn take_back(&mut self) {
        self.ingress.freeze(false);
        if std::mem::replace(&mut self.writes, true) {
            return;
        }
        // The store first: the registrar writes as soon as it may.
        while let Err(error) = self.store.take_back().await {
            tracing::error!(%error, "the store is not to be had again; it is tried until it is");
            tokio::time::sleep(TRY_AGAIN).await;
        }
        self.registrar.take_back().await;
        self.keep_memory();
    }
}
