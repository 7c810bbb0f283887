//! Following what the store says of revoked nodes. While it is out of reach, what it said last holds.

use std::sync::Arc;

use nerve::enrolment::Revocation;
use nerve::store::{Change, EnrolmentKey, Entry, Store, WatchEvent};

use super::metrics::Metrics;
use super::revoked::Revoked;

/// Tells `each` whenever another node is refused, or none any more. Ends with the store.
pub(super) async fn follow(store: Arc<dyn Store>, metrics: Metrics, mut each: impl FnMut(&Revoked)) {
    let mut watch = store.watch(&EnrolmentKey::revoked());
    let mut known = Revoked::default();
    while let Some(event) = watch.next().await {
        let before = known.clone();
        match event {
            WatchEvent::Snapshot { entries, .. } => {
                known = Revoked::default();
                entries.iter().for_each(|entry| put(&mut known, entry));
            }
            WatchEvent::Changes(changes) => {
                for change in changes {
                    match change {
                        Change::Put(entry) => put(&mut known, &entry),
                        Change::Delete(path) => {
                            if let Some(EnrolmentKey::Revoked(node)) = EnrolmentKey::parse(&path) {
                                known.remove(&node);
                            }
                        }
                    }
                }
            }
            WatchEvent::Disconnected(_)
            | WatchEvent::Resumed
            | WatchEvent::Silent
            | WatchEvent::Stalled(_) => {}
        }
        if known != before {
            metrics.revoked.set(i64::try_from(known.nodes().count()).unwrap_or(i64::MAX));
            each(&known);
        }
    }
}

fn put(known: &mut Revoked, entry: &Entry) {
    let Some(EnrolmentKey::Revoked(node)) = EnrolmentKey::parse(&entry.path) else { return };
    match serde_json::from_slice::<Revocation>(&entry.value) {
        Ok(revocation) => {
            if known.put(node.clone(), revocation) {
                tracing::warn!(%node, "the certificates of a node were revoked");
            }
        }
        // Whoever wrote it meant that nobody believes it.
        Err(error) => {
            known.put(node.clone(), Revocation { at: u64::MAX, until: u64::MAX });
            tracing::error!(%node, %error, "what the store says of a revoked node cannot be read; all of its certificates are refused");
        }
    }
}
