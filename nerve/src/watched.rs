//! Being told that files have changed.
//!
//! The directories of the files are watched, since files are replaced by renaming; an event only says *look again*. Where the kernel
//! gives no events, or there is no such directory yet, the tick of who waits remains.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Quiet for so long after an event, they are looked at.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Files, as the kernel watches them.
#[derive(Debug)]
pub struct Watched {
    directories: BTreeMap<PathBuf, Option<RecommendedWatcher>>,
    events: mpsc::Sender<()>,
    changed: mpsc::Receiver<()>,
}

impl Watched {
    /// Begins to watch. Whoever reads them afterwards misses nothing.
    pub fn files<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let directory = |file: &Path| match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let directories = files.into_iter().map(|file| (directory(file), None)).collect();
        // One place: an event that finds it taken adds nothing to the one that is waiting.
        let (events, changed) = mpsc::channel(1);
        let mut watched = Self { directories, events, changed };
        watched.open();
        watched
    }

    /// Waits until they are to be looked at. Tells whether something happened to them; else the tick is over.
    pub async fn changed(&mut self, tick: Duration) -> bool {
        // A directory may appear later, and have all that is in it then.
        if self.open() {
            return true;
        }
        // It is not closed: the other end is held here.
        if timeout(tick, self.changed.recv()).await.is_err() {
            return false;
        }
        tokio::time::sleep(DEBOUNCE).await;
        self.forget();
        true
    }

    /// What happened until now is about to be seen.
    pub fn forget(&mut self) {
        while self.changed.try_recv().is_ok() {}
    }

    /// Tells whether one more is watched.
    fn open(&mut self) -> bool {
        let mut is_more = false;
        for (directory, watcher) in self.directories.iter_mut().filter(|(_, watcher)| watcher.is_none()) {
            *watcher = open(directory, self.events.clone());
            is_more |= watcher.is_some();
        }
        is_more
    }
}

fn open(directory: &Path, events: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is an access; it must not cause the next.
        if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
            let _ = events.try_send(());
        }
    })
    .ok()?;
    watcher.watch(directory, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_happens_is_told_also_in_a_directory_that_appears_later() {
        let root = tempfile::tempdir().unwrap();
        let (here, later) = (root.path().join("a"), root.path().join("later/b"));
        let mut watched = Watched::files([here.as_path(), later.as_path()]);
        assert!(!watched.changed(Duration::from_millis(100)).await);
        std::fs::write(&here, "1").unwrap();
        assert!(watched.changed(LONG).await);
        std::fs::write(root.path().join(".a"), "2").unwrap();
        std::fs::rename(root.path().join(".a"), &here).unwrap();
        assert!(watched.changed(LONG).await);
        std::fs::create_dir(later.parent().unwrap()).unwrap();
        assert!(watched.changed(LONG).await);
        watched.forget();
        while watched.changed(Duration::from_millis(200)).await {}
        std::fs::write(&later, "1").unwrap();
        assert!(watched.changed(LONG).await);
        // To read is no change.
        while watched.changed(Duration::from_millis(200)).await {}
        std::fs::read(&later).unwrap();
        assert!(!watched.changed(Duration::from_millis(200)).await);
    }
}
