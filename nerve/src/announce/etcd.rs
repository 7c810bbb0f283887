//! Registrations of Nerve's form in etcd: keys below its path under one lease, by the API of today's etcd.
//!
//! Nerve numbered its keys by the version 2 API, which etcd no longer serves; here the key ends with the instance's id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::worker::{Desired, Orders, Shared, is_wanted};
use crate::source::{Announcement, InstanceKey};
use crate::store::{self, Backoff, Path, Session, Store, StoreConfig};

/// Every key is written again so often: whoever removed it by mistake.
const REWRITE: Duration = Duration::from_secs(30);

/// Keeps the keys as they are to be, until another agent goes on.
pub(super) async fn serve(
    server: String,
    path: String,
    session_ttl: Duration,
    mut orders: watch::Receiver<Orders>,
    shared: Arc<Shared>,
) {
    let url = format!("etcd://{server}").parse();
    let opened = url.map_err(|error| format!("{error}")).and_then(|url| {
        // The root is a prefix of nothing.
        let prefix = if path.is_empty() { "/".to_owned() } else { path };
        let config = StoreConfig { prefix: Some(prefix), ..StoreConfig::new(url) };
        store::open(&config, &store::Metrics::default()).map_err(|error| error.to_string())
    });
    let store = match opened {
        Ok(store) => store,
        Err(error) => {
            // Only another definition mends it.
            shared.fails(&error);
            return std::future::pending().await;
        }
    };
    let mut pause = Backoff::new();
    while is_wanted(&mut orders).await {
        let reason = match store.open_session(session_ttl).await {
            Ok(session) => {
                let mut keys =
                    Keys { store: &*store, session: &session, shared: &shared, standing: BTreeMap::new() };
                let ended = keys.serve(&mut orders, &mut pause).await;
                // What is left of it goes with it: at once, or after its time to live.
                let _ = store.close_session(session).await;
                match ended {
                    None => break,
                    Some(reason) => reason,
                }
            }
            Err(error) => error.to_string(),
        };
        shared.fails(&reason);
        shared.standing.send_replace(0);
        tokio::time::sleep(pause.next()).await;
    }
    store.shutdown().await;
}

struct Keys<'a> {
    store: &'a dyn Store,
    session: &'a Session,
    shared: &'a Shared,
    standing: BTreeMap<InstanceKey, (Arc<Announcement>, Instant)>,
}

impl Keys<'_> {
    /// Returns why the session is of no use any more; `None`: another agent goes on.
    async fn serve(&mut self, orders: &mut watch::Receiver<Orders>, pause: &mut Backoff) -> Option<String> {
        loop {
            let Orders { desired, handed_over } = orders.borrow_and_update().clone();
            if handed_over {
                return None;
            }
            let settled = self.settle(&desired).await;
            self.shared.standing.send_replace(self.standing.len());
            let mut next = Instant::now() + REWRITE;
            match settled {
                Ok(()) => {
                    *pause = Backoff::new();
                    self.shared.stands();
                }
                Err(error) => {
                    self.shared.fails(&error);
                    next = Instant::now() + pause.next();
                }
            }
            tokio::select! {
                changed = orders.changed() => if changed.is_err() { return None },
                lost = self.session.lost() => return Some(lost.to_string()),
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    async fn settle(&mut self, desired: &Desired) -> Result<(), String> {
        let gone: Vec<_> = self
            .standing
            .iter()
            .filter(|(key, _)| !desired.contains_key(key))
            .map(|(key, (of, _))| (key.clone(), Arc::clone(of)))
            .collect();
        for (key, announcement) in gone {
            let path = path(&announcement, &key)?;
            self.store.delete(&path).await.map_err(|error| error.to_string())?;
            self.standing.remove(&key);
            self.shared.changed("removed");
            tracing::info!(instance = %key, key = %path, "no longer announced");
        }
        for (key, announcement) in desired {
            let before = self.standing.get(key);
            if before.is_some_and(|(before, written)| before == announcement && written.elapsed() < REWRITE) {
                continue;
            }
            let path = path(announcement, key)?;
            let value = announcement.data.clone().into_bytes();
            self.store.put(&path, value, Some(self.session)).await.map_err(|error| error.to_string())?;
            let is_new =
                self.standing.insert(key.clone(), (Arc::clone(announcement), Instant::now())).is_none();
            if is_new {
                self.shared.changed("written");
                tracing::info!(instance = %key, key = %path, "announced");
            }
        }
        Ok(())
    }
}

fn path(announcement: &Announcement, key: &InstanceKey) -> Result<Path, String> {
    Path::new(&format!("{}/{}", announcement.name, key.id)).map_err(|error| error.to_string())
}
