//! One watch: a snapshot, then changes, then a snapshot again wherever the connection was lost.
//!
//! Events say that something happened to a node, not what: each is answered by reading it, so that several changes of one node
//! may be one. Events are taken off the library's queue as they come; a consumer that is slow costs one path for each entry
//! that has changed, however often.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use zookeeper_client::PersistentWatcher;

use super::call::{Failed, Shared};
use super::failure::{Failure, Next};
use super::link::{Birth, Link, broken};
use super::listing::{Listed, PAGE};
use crate::store::backoff::Backoff;
use crate::store::{Change, Entry, Error, Path, Revision, SnapshotCause, WatchEvent};

/// Why following the store ended.
enum End {
    /// Nobody listens any more.
    Unwanted,
    /// The store is out of reach.
    Failed(Error),
}

/// What is followed, by whom, and what they know.
struct Feed {
    shared: Arc<Shared>,
    directory: Path,
    events: mpsc::Sender<WatchEvent>,
    /// The tree and the revision of the last snapshot or change that was yielded.
    seen: Option<(Birth, Revision)>,
    /// When each entry that the consumer knows of was last changed.
    known: HashMap<Path, Revision>,
    /// The consumer was told that the store is out of reach.
    told: bool,
}

/// What is to be read, in the order in which it was first heard of.
#[derive(Default)]
struct Due {
    order: VecDeque<Path>,
    set: HashSet<Path>,
}

impl Due {
    fn add(&mut self, path: Path) {
        if self.set.insert(path.clone()) {
            self.order.push_back(path);
        }
    }

    fn page(&mut self) -> Vec<Path> {
        let page: Vec<_> = self.order.drain(..self.order.len().min(PAGE)).collect();
        for path in &page {
            self.set.remove(path);
        }
        page
    }
}

impl Shared {
    /// Feeds a watch until nobody listens.
    pub(super) async fn feed(self: Arc<Self>, directory: Path, events: mpsc::Sender<WatchEvent>) {
        let listener = events.clone();
        let mut feed =
            Feed { shared: self, directory, events, seen: None, known: HashMap::new(), told: false };
        tokio::select! {
            () = listener.closed() => {}
            () = feed.run() => {}
        }
    }
}

impl Feed {
    async fn run(&mut self) {
        let mut backoff = Backoff::new();
        loop {
            let started = Instant::now();
            let End::Failed(error) = self.follow().await else { return };
            if started.elapsed() > Duration::from_secs(5) {
                backoff = Backoff::new();
            }
            if !self.told {
                self.told = true;
                self.shared.metrics.disconnected();
                tracing::warn!(directory = %self.directory, %error, "a watch lost the store; the last known good is kept");
                if self.events.send(WatchEvent::Disconnected(error)).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Once around: a link, a snapshot, changes until the link breaks.
    async fn follow(&mut self) -> End {
        let link = match self.shared.watching().await {
            Ok(link) => link,
            Err(failed) => return self.failed(failed),
        };
        let Listed { entries, revision, watcher } = match self.shared.listed(&link, &self.directory).await {
            Ok(listed) => listed,
            Err(failed) => return self.failed(failed),
        };
        let entries = entries.into_values().collect();
        if let Err(end) = self.snapshot(link.birth, revision, entries).await {
            return end;
        }
        match self.pump(&link, watcher).await {
            Ok(()) => End::Unwanted,
            Err(failure) => {
                if failure.next == Next::AskAnother {
                    self.shared.links.failed(link.member, &failure.reason);
                }
                self.failed(Failed { failure, endpoint: self.shared.links.name(link.member) })
            }
        }
    }

    async fn snapshot(&mut self, birth: Birth, revision: Revision, entries: Vec<Entry>) -> Result<(), End> {
        let cause = match self.seen {
            None => SnapshotCause::First,
            Some((of, seen)) if of != birth || revision < seen => SnapshotCause::Reset,
            Some(_) => SnapshotCause::Resync,
        };
        (self.seen, self.told) = (Some((birth, revision)), false);
        self.known = entries.iter().map(|entry| (entry.path.clone(), entry.revision)).collect();
        self.shared.metrics.snapshot(cause);
        tracing::info!(directory = %self.directory, ?cause, entries = entries.len(), "a watch took a snapshot");
        let event = WatchEvent::Snapshot { entries, revision, cause };
        self.events.send(event).await.map_err(|_| End::Unwanted)
    }

    /// Yields what the watch brings until the link breaks, or until nobody listens.
    async fn pump(&mut self, link: &Arc<Link>, mut watcher: PersistentWatcher) -> Result<(), Failure> {
        let mut pulse = link.pulse.clone();
        let mut stalls = pulse.borrow_and_update().stalls;
        let mut due = Due::default();
        let (mut news, mut over) = (None, false);
        let events = self.events.clone();
        loop {
            tokio::select! {
                // After the end of its session it has nothing to tell any more; the heartbeat tells how that came.
                event = watcher.changed(), if !over => match self.shared.changed(&event) {
                    Ok(path) => path.into_iter().for_each(|path| due.add(path)),
                    Err(_) => over = true,
                },
                changed = pulse.changed() => {
                    let now = pulse.borrow_and_update().clone();
                    if now.stalls > stalls {
                        (stalls, news) = (now.stalls, Some(WatchEvent::Stalled(now.silence)));
                    } else if now.silent {
                        news = Some(WatchEvent::Silent);
                    }
                    let reason = now.broken.or_else(|| changed.err().map(|_| "its heartbeat ended".to_owned()));
                    if let Some(reason) = reason {
                        if let Some(event) = news && events.send(event).await.is_err() {
                            return Ok(());
                        }
                        return Err(broken(&reason));
                    }
                }
                permit = events.reserve(), if news.is_some() || !due.order.is_empty() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(event) = news.take() {
                        permit.send(event);
                        continue;
                    }
                    let changes = self.changes(link, due.page()).await?;
                    if !changes.is_empty() {
                        permit.send(WatchEvent::Changes(changes));
                    }
                }
            }
        }
    }

    /// What has become of `paths`, as far as the consumer does not know it.
    async fn changes(&mut self, link: &Arc<Link>, paths: Vec<Path>) -> Result<Vec<Change>, Failure> {
        let mut changes = Vec::new();
        for (path, entry) in self.shared.read_entries(link, paths).await? {
            match entry {
                Some(entry) => {
                    let known = self.known.insert(path, entry.revision);
                    if known != Some(entry.revision) {
                        self.seen = self.seen.map(|(birth, seen)| (birth, seen.max(entry.revision)));
                        changes.push(Change::Put(entry));
                    }
                }
                None if self.known.remove(&path).is_some() => changes.push(Change::Delete(path)),
                None => {}
            }
        }
        Ok(changes)
    }

    fn failed(&self, failed: Failed) -> End {
        End::Failed(self.shared.error("watch", self.directory.as_str(), failed))
    }
}
