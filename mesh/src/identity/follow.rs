//! Following what the store says of revoked nodes. While it is out of reach, what it said last holds, also over a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nerve::enrolment::Revocation;
use nerve::store::{Change, EnrolmentKey, Entry, SnapshotCause, Store, WatchEvent};

use super::metrics::Metrics;
use super::private_file;
use super::revoked::Revoked;

/// What the store said last.
const FILE: &str = "revoked.json";

/// What an earlier life has heard; nothing where it cannot be read, which is said.
pub(super) fn recall(directory: &Path) -> Revoked {
    let read = || -> std::io::Result<Revoked> {
        match private_file::read(directory, FILE)? {
            Some(text) => Ok(serde_json::from_str(&text)?),
            None => Ok(Revoked::default()),
        }
    };
    read().unwrap_or_else(|error| {
        let directory = directory.display();
        tracing::error!(%directory, %error, "who was revoked is not known before the store says it");
        Revoked::default()
    })
}

/// Tells `each` whenever another node is refused, or none any more. Ends with the store.
pub(super) async fn follow(
    store: Arc<dyn Store>,
    directory: PathBuf,
    metrics: Metrics,
    mut each: impl FnMut(&Revoked),
) {
    let mut watch = store.watch(&EnrolmentKey::revoked());
    let mut known = recall(&directory);
    loop {
        metrics.revoked.set(i64::try_from(known.nodes().count()).unwrap_or(i64::MAX));
        each(&known);
        let before = known.clone();
        while known == before {
            let Some(event) = watch.next().await else { return };
            take(&mut known, event);
        }
        if let Err(error) = keep(directory.clone(), known.clone()).await {
            tracing::warn!(directory = %directory.display(), %error, "who is revoked cannot be kept for the next start");
        }
    }
}

async fn keep(directory: PathBuf, known: Revoked) -> std::io::Result<()> {
    let text = serde_json::to_string(&known)?;
    let written = tokio::task::spawn_blocking(move || private_file::write(&directory, FILE, &text));
    written.await.map_err(std::io::Error::other)?
}

fn take(known: &mut Revoked, event: WatchEvent) {
    match event {
        WatchEvent::Snapshot { entries, cause, .. } => {
            match cause {
                // Nobody took anything back: the store has lost it.
                SnapshotCause::Reset => {}
                SnapshotCause::First | SnapshotCause::Resync => {
                    let listed = |entry: &Entry| EnrolmentKey::parse(&entry.path);
                    let listed: Vec<_> = entries.iter().filter_map(listed).collect();
                    known.retain(|node| listed.contains(&EnrolmentKey::Revoked(node.clone())));
                }
            }
            entries.iter().for_each(|entry| put(known, entry));
        }
        WatchEvent::Changes(changes) => {
            for change in changes {
                match change {
                    Change::Put(entry) => put(known, &entry),
                    Change::Delete(path) => {
                        if let Some(EnrolmentKey::Revoked(node)) = EnrolmentKey::parse(&path) {
                            known.remove(&node);
                        }
                    }
                }
            }
        }
        WatchEvent::Disconnected(_) | WatchEvent::Resumed | WatchEvent::Silent | WatchEvent::Stalled(_) => {}
    }
}

fn put(known: &mut Revoked, entry: &Entry) {
    let Some(EnrolmentKey::Revoked(node)) = EnrolmentKey::parse(&entry.path) else { return };
    match serde_json::from_slice::<Revocation>(&entry.value) {
        Ok(revocation) => {
            if known.put(node.clone(), revocation) {
                tracing::warn!(%node, "the certificates of a node are revoked");
            }
        }
        // Whoever wrote it meant that nobody believes it.
        Err(error) => {
            known.put(node.clone(), Revocation { at: u64::MAX, until: u64::MAX });
            tracing::error!(%node, %error, "what the store says of a revoked node cannot be read; all of its certificates are refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use nerve::model::NodeName;
    use nerve::store::Revision;

    use super::*;

    fn entry(node: &str, value: &str) -> Entry {
        let path = EnrolmentKey::Revoked(NodeName::new(node).unwrap()).path();
        Entry { path, value: value.as_bytes().to_vec(), revision: Revision(1) }
    }

    fn names(known: &Revoked) -> Vec<&str> {
        let mut names: Vec<_> = known.nodes().map(|(node, _)| node.as_str()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_a_store_has_lost_is_still_refused_and_what_was_taken_back_is_not() {
        const AT: &str = r#"{"at":1,"until":2}"#;
        let snapshot = |entries: &[Entry], cause| WatchEvent::Snapshot {
            entries: entries.to_vec(),
            revision: Revision(1),
            cause,
        };
        let mut known = Revoked::default();
        take(&mut known, snapshot(&[entry("a", AT), entry("b", "no JSON")], SnapshotCause::First));
        assert_eq!(names(&known), ["a", "b"]);
        take(&mut known, snapshot(&[entry("c", AT)], SnapshotCause::Reset));
        assert_eq!(names(&known), ["a", "b", "c"]);
        take(&mut known, snapshot(&[entry("c", AT), entry("b", AT)], SnapshotCause::Resync));
        assert_eq!(names(&known), ["b", "c"]);
        take(
            &mut known,
            WatchEvent::Changes(vec![Change::Delete(entry("b", AT).path), Change::Put(entry("d", AT))]),
        );
        assert_eq!(names(&known), ["c", "d"]);

        let directory = tempfile::tempdir().unwrap();
        assert_eq!(recall(directory.path()), Revoked::default());
        private_file::write(directory.path(), FILE, &serde_json::to_string(&known).unwrap()).unwrap();
        assert_eq!(recall(directory.path()), known);
    }
}
