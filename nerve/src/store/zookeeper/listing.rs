//! A listing of any size: a walk over a subtree, made one picture by a watch on it.
//!
//! ZooKeeper reads one node at a time. So the subtree is watched before it is walked, and what changed meanwhile is read again
//! until nothing did: events come before the answers to what was asked after them. At most [`PAGE`] requests are under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::Instant;
use zookeeper_client::{
    AddWatchMode, Error as ZkError, EventType, PersistentWatcher, SessionState, WatchedEvent,
};

use super::call::{Failed, Sent, Shared, revision};
use super::failure::{Failure, Next};
use super::link::{Link, broken};
use super::znode;
use crate::store::{Entry, Listing, Path, Result, Revision};

/// Requests under way at a time.
pub(super) const PAGE: usize = 128;
/// After so many rounds of reading again, the rest is left to the events that follow.
const ROUNDS: u32 = 8;

/// What stands below a directory, and what tells of changes from then on.
pub(super) struct Listed {
    pub(super) entries: BTreeMap<Path, Entry>,
    pub(super) revision: Revision,
    pub(super) watcher: PersistentWatcher,
}

impl Shared {
    pub(super) async fn list(&self, directory: &Path) -> Result<Listing> {
        let started = Instant::now();
        let result = loop {
            let listed = match self.watching().await {
                Ok(link) => self.listed(&link, directory).await,
                Err(failed) => Err(failed),
            };
            match listed {
                Ok(Listed { entries, revision, watcher: _ }) => {
                    break Ok(Listing { entries: entries.into_values().collect(), revision });
                }
                Err(failed)
                    if failed.failure.next == Next::AskAnother && started.elapsed() < self.timeout / 2 => {}
                Err(failed) => break Err(self.error("list", directory.as_str(), failed)),
            }
            tokio::task::yield_now().await;
        };
        self.metrics.observe("list", started.elapsed(), &result);
        result
    }

    /// Everything below `directory`, as it was at one moment.
    pub(super) async fn listed(
        &self,
        link: &Arc<Link>,
        directory: &Path,
    ) -> std::result::Result<Listed, Failed> {
        self.walk(link, directory).await.map_err(|failure| {
            if failure.next == Next::AskAnother {
                self.links.failed(link.member, &failure.reason);
            }
            Failed { failure, endpoint: self.links.name(link.member) }
        })
    }

    async fn walk(&self, link: &Arc<Link>, directory: &Path) -> std::result::Result<Listed, Failure> {
        let node = znode::directory(&self.prefix, directory);
        let mode = AddWatchMode::PersistentRecursive;
        let watcher = self.on(link, link.client.watch(&node, mode)).await?.map_err(Failure::of)?;
        let mut listed = Listed { entries: BTreeMap::new(), revision: Revision(0), watcher };
        self.on(link, link.client.sync(&self.prefix)).await?.map_err(Failure::of)?;
        // What was deleted has left its mark on a directory above, be it that of the directory itself.
        let above = znode::chain(&self.prefix, &node);
        listed.note(self.directories(link, &above).await?);
        let entries = self.entry_nodes(link, node.clone(), &mut listed).await?;
        for page in entries.chunks(PAGE) {
            let paths = page.iter().filter_map(|node| self.path(node));
            self.read_into(link, paths.collect(), &mut listed).await?;
        }
        for _ in 0..ROUNDS {
            self.on(link, link.client.sync(&self.prefix)).await?.map_err(Failure::of)?;
            let changed = self.heard(&mut listed.watcher)?;
            if changed.is_empty() {
                break;
            }
            let changed: Vec<_> = changed.into_iter().collect();
            for page in changed.chunks(PAGE) {
                let nodes: Vec<_> = page.iter().map(|path| self.entry_node(path)).collect();
                let parents: BTreeSet<_> = nodes.iter().map(|node| znode::parent(node)).collect();
                let parents: Vec<_> = parents.into_iter().collect();
                self.read_into(link, page.to_vec(), &mut listed).await?;
                listed.note(self.directories(link, &parents).await?);
            }
        }
        Ok(listed)
    }

    /// The znodes of all entries below a directory's znode.
    async fn entry_nodes(
        &self,
        link: &Arc<Link>,
        root: String,
        listed: &mut Listed,
    ) -> std::result::Result<Vec<String>, Failure> {
        let mut entries = Vec::new();
        let mut level = vec![root];
        while !level.is_empty() {
            let mut below = Vec::new();
            for page in level.chunks(PAGE) {
                let asked = page.iter().map(|directory| link.client.get_children(directory));
                let answers = self.on(link, join_all(asked)).await?;
                for (directory, answer) in page.iter().zip(answers) {
                    let (names, stat) = match answer {
                        Ok(found) => found,
                        Err(ZkError::NoNode) => continue,
                        Err(error) => return Err(Failure::of(error)),
                    };
                    listed.note(Some(revision(stat.pzxid.max(stat.mzxid))));
                    for name in names {
                        let node = format!("{directory}/{name}");
                        if znode::is_entry(&name) { entries.push(node) } else { below.push(node) }
                    }
                }
            }
            level = below;
        }
        Ok(entries)
    }

    /// Reads entries, at most a page of them; those that are gone are taken out.
    async fn read_into(
        &self,
        link: &Arc<Link>,
        paths: Vec<Path>,
        listed: &mut Listed,
    ) -> std::result::Result<(), Failure> {
        for (path, entry) in self.read_entries(link, paths).await? {
            match entry {
                Some(entry) => {
                    listed.note(Some(entry.revision));
                    listed.entries.insert(path, entry);
                }
                None => drop(listed.entries.remove(&path)),
            }
        }
        Ok(())
    }

    /// The entries at `paths`, in their order.
    pub(super) async fn read_entries(
        &self,
        link: &Arc<Link>,
        paths: Vec<Path>,
    ) -> std::result::Result<Vec<(Path, Option<Entry>)>, Failure> {
        let asked = paths.iter().map(|path| link.client.get_data(&self.entry_node(path)));
        let answers = self.on(link, join_all(asked)).await?;
        let read = paths.into_iter().zip(answers).map(|(path, answer)| match answer {
            Ok((value, stat)) => {
                let entry = Entry { path: path.clone(), value, revision: revision(stat.mzxid) };
                Ok((path, Some(entry)))
            }
            Err(ZkError::NoNode) => Ok((path, None)),
            Err(error) => Err(Failure::of(error)),
        });
        read.collect()
    }

    /// The last change of any of the directories.
    async fn directories(
        &self,
        link: &Arc<Link>,
        nodes: &[&str],
    ) -> std::result::Result<Option<Revision>, Failure> {
        let answers = self.on(link, join_all(nodes.iter().map(|node| link.client.check_stat(node)))).await?;
        let mut last = None;
        for answer in answers {
            let stat = answer.map_err(Failure::of)?;
            last = last.max(stat.map(|stat| revision(stat.pzxid.max(stat.mzxid))));
        }
        Ok(last)
    }

    /// What the watch has told so far.
    fn heard(&self, watcher: &mut PersistentWatcher) -> std::result::Result<BTreeSet<Path>, Failure> {
        let mut changed = BTreeSet::new();
        while let Some(event) = watcher.changed().now_or_never() {
            changed.extend(self.changed(&event)?);
        }
        Ok(changed)
    }

    /// The entry that an event is about; none for a directory.
    pub(super) fn changed(&self, event: &WatchedEvent) -> std::result::Result<Option<Path>, Failure> {
        if event.event_type != EventType::Session {
            return Ok(if znode::is_entry(&event.path) { self.path(&event.path) } else { None });
        }
        match event.session_state {
            SessionState::SyncConnected => Ok(None),
            _ => Err(broken("the connection is lost")),
        }
    }

    /// An answer to what was asked on `link`, unless that breaks or takes too long.
    pub(super) async fn on<T>(
        &self,
        link: &Arc<Link>,
        asked: impl Future<Output = T>,
    ) -> std::result::Result<T, Failure> {
        let mut pulse = link.pulse.clone();
        let asked = async {
            tokio::select! {
                answer = asked => Ok(answer),
                ended = pulse.wait_for(|pulse| pulse.broken.is_some()) => {
                    Err(broken(ended.ok().and_then(|pulse| pulse.broken.clone()).as_deref().unwrap_or("")))
                }
            }
        };
        self.within(self.timeout, &Sent::default(), asked).await
    }
}

impl Listed {
    fn note(&mut self, seen: Option<Revision>) {
        self.revision = self.revision.max(seen.unwrap_or_default());
    }
}
