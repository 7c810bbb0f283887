//! The source that is a directory: services.d, watched, applied without a restart.
//!
//! The *directory* is watched, not its files: editors and ConfigMaps replace files by renaming. Its parent is watched too,
//! so that a directory that appears later or is swapped is seen. Events only say *look again*: a scan follows when they
//! have ceased for a moment, and on a slow tick whether there were events or not.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::directory::{Directory, Next};
use super::{Local, Metrics, Snapshot, Source};
use crate::tasks::Tasks;

/// Quiet for so long after an event, the directory is read.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// It is read at the latest so long after an event, however many follow.
const LATEST: Duration = Duration::from_secs(1);
/// It is read so often without any event.
const TICK: Duration = Duration::from_secs(10);
/// … and so often where the kernel gives no events.
const TICK_UNWATCHED: Duration = Duration::from_secs(2);

/// The service files of a directory.
#[derive(Debug)]
pub struct FileSource {
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl FileSource {
    /// Reads the directory and keeps watching it. It may be missing, and appear later.
    pub async fn start(directory: PathBuf, local: Local, tasks: &Tasks, metrics: Metrics) -> Self {
        let (sender, snapshots) = watch::channel(Arc::default());
        let sender = Arc::new(sender);
        let contents = Arc::new(Mutex::new(Directory::new(directory.clone(), local, metrics)));
        scan(&contents, &sender).await;
        let stop = tasks.stop_token();
        tasks.spawn_restarted("services.d", move || {
            let follow = follow(directory.clone(), Arc::clone(&contents), Arc::clone(&sender));
            let stop = stop.clone();
            async move {
                let _ = stop.run_until_cancelled(follow).await;
            }
        });
        Self { snapshots }
    }
}

impl Source for FileSource {
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }
}

/// Reads what changed, off the control thread: a directory may be on a network.
async fn scan(contents: &Arc<Mutex<Directory>>, sender: &watch::Sender<Arc<Snapshot>>) -> Next {
    let contents = Arc::clone(contents);
    let scanned = tokio::task::spawn_blocking(move || {
        let mut directory = contents.lock().unwrap_or_else(PoisonError::into_inner);
        let next = directory.scan();
        (next, directory.snapshot())
    });
    match scanned.await {
        Ok((next, snapshot)) => {
            sender.send_if_modified(|current| {
                let changed = **current != snapshot;
                if changed {
                    *current = Arc::new(snapshot);
                }
                changed
            });
            next
        }
        Err(error) => {
            tracing::error!(%error, "reading services.d failed; what was read before stays in force");
            Next::Wait
        }
    }
}

async fn follow(
    directory: PathBuf,
    contents: Arc<Mutex<Directory>>,
    sender: Arc<watch::Sender<Arc<Snapshot>>>,
) {
    // One place: an event that finds it taken adds nothing to the one that is waiting.
    let (events, mut changed) = mpsc::channel(1);
    // Held here as well: without a watcher the channel would be closed, and a closed one is always ready.
    let mut eye = Eye::open(directory, events.clone());
    loop {
        let next = scan(&contents, &sender).await;
        // A watch that was renewed may have missed what came before it.
        if eye.renew() {
            continue;
        }
        let pause = match (next, eye.watches()) {
            (Next::Again, _) => LATEST,
            (Next::Wait, true) => TICK,
            (Next::Wait, false) => TICK_UNWATCHED,
        };
        if let Ok(Some(())) = tokio::time::timeout(pause, changed.recv()).await {
            let latest = Instant::now() + LATEST;
            while let Ok(Some(())) =
                tokio::time::timeout_at(latest.min(Instant::now() + DEBOUNCE), changed.recv()).await
            {
            }
        }
    }
}

/// The kernel's watch on the directory and its parent.
struct Eye {
    directory: PathBuf,
    watcher: Option<RecommendedWatcher>,
    /// The identity of what is watched: a path may come to mean another directory.
    watched: Option<(u64, u64)>,
    parent_watched: bool,
}

impl Eye {
    fn open(directory: PathBuf, events: mpsc::Sender<()>) -> Self {
        let name: Option<OsString> = directory.file_name().map(OsString::from);
        let inside = directory.clone();
        let concerns = move |path: &Path| path.starts_with(&inside) || path.file_name() == name.as_deref();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let look = match &event {
                // Our own reading is an access; it must not cause the next.
                Ok(event) if matches!(event.kind, EventKind::Access(_)) => false,
                Ok(event) => event.paths.is_empty() || event.paths.iter().any(|path| concerns(path)),
                Err(_) => true,
            };
            if look {
                let _ = events.try_send(());
            }
        });
        let watcher = watcher
            .inspect_err(|error| {
                tracing::warn!(
                    directory = %directory.display(), %error,
                    "services.d cannot be watched (fs.inotify.max_user_instances?); it is read every 2 s instead"
                );
            })
            .ok();
        Self { directory, watcher, watched: None, parent_watched: false }
    }

    fn watches(&self) -> bool {
        self.watched.is_some()
    }

    /// Watches what the path means now; tells whether that is new.
    fn renew(&mut self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let Some(watcher) = &mut self.watcher else { return false };
        if !self.parent_watched
            && let Some(parent) = self.directory.parent()
        {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            self.parent_watched = watcher.watch(parent, RecursiveMode::NonRecursive).is_ok();
        }
        let now = std::fs::metadata(&self.directory).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if now == self.watched {
            return false;
        }
        if self.watched.is_some() {
            // The kernel has dropped it already if the directory is gone.
            let _ = watcher.unwatch(&self.directory);
        }
        self.watched = now.filter(|_| watcher.watch(&self.directory, RecursiveMode::NonRecursive).is_ok());
        self.watched.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn start(path: &Path, tasks: &Tasks) -> FileSource {
        let local = Local { node: "a".parse().unwrap(), address: "192.0.2.1".parse().unwrap() };
        FileSource::start(path.to_owned(), local, tasks, Metrics::default()).await
    }

    /// Waits until the ports defined are these; well before the slow tick would see it.
    async fn ports(source: &FileSource, expected: &[u16]) {
        let mut snapshots = source.snapshots();
        let of = |snapshot: &Arc<Snapshot>| -> Vec<u16> {
            snapshot.definitions.iter().map(|located| located.definition.port.unwrap().get()).collect()
        };
        let seen = snapshots.wait_for(|snapshot| of(snapshot) == expected);
        let seen = tokio::time::timeout(Duration::from_secs(5), seen).await.map(|seen| seen.is_ok());
        let now = of(&source.snapshots().borrow());
        assert_eq!((now.as_slice(), seen), (expected, Ok(true)));
    }

    fn write(path: &Path, port: u16) {
        std::fs::write(path, format!("name = \"web\"\nport = {port}\n")).unwrap();
    }

    #[tokio::test]
    async fn files_are_applied_as_they_come_change_and_go() {
        let (root, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
        write(&root.path().join("a.toml"), 1);
        let source = start(root.path(), &tasks).await;
        ports(&source, &[1]).await;
        write(&root.path().join("b.toml"), 2);
        ports(&source, &[1, 2]).await;
        // As editors do: written beside it and renamed over it.
        write(&root.path().join(".a.swp"), 3);
        std::fs::rename(root.path().join(".a.swp"), root.path().join("a.toml")).unwrap();
        ports(&source, &[3, 2]).await;
        std::fs::remove_file(root.path().join("b.toml")).unwrap();
        ports(&source, &[3]).await;
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_directory_that_appears_later_or_is_swapped_is_followed() {
        let (root, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
        let path = root.path().join("services.d");
        let source = start(&path, &tasks).await;
        let version = |name: &str, port| {
            let version = root.path().join(name);
            std::fs::create_dir(&version).unwrap();
            write(&version.join("web.toml"), port);
            version
        };
        std::fs::rename(version("new", 1), &path).unwrap();
        ports(&source, &[1]).await;
        std::fs::rename(&path, root.path().join("old")).unwrap();
        std::fs::rename(version("newer", 2), &path).unwrap();
        ports(&source, &[2]).await;
        write(&path.join("web.toml"), 3);
        ports(&source, &[3]).await;
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_config_map_that_swaps_its_link_is_followed() {
        let (root, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, root.path().join(name)).unwrap();
        };
        for (version, port) in [("..v1", 1), ("..v2", 2)] {
            std::fs::create_dir(root.path().join(version)).unwrap();
            write(&root.path().join(version).join("web.toml"), port);
        }
        link("..v1", "..data");
        link("..data/web.toml", "web.toml");
        let source = start(root.path(), &tasks).await;
        ports(&source, &[1]).await;
        link("..v2", "..data_tmp");
        std::fs::rename(root.path().join("..data_tmp"), root.path().join("..data")).unwrap();
        ports(&source, &[2]).await;
        tasks.shutdown().await;
    }
}
