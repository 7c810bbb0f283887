//! Registrations of Nerve's form in ZooKeeper: a session an ensemble, with all of this node's znodes in it.
//!
//! The library goes on with a session at another server by itself; when the session is over, a new one is opened and
//! everything is made anew. What a request may have done whose answer was lost is looked for before the next one: a numbered
//! znode that nobody knows of would stand as long as the session.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use zookeeper_client::{Acls, Client, CreateMode, Error, Stat};

use super::worker::{Desired, Orders, Shared, is_wanted};
use super::znode;
use crate::source::{Announcement, InstanceKey, NodeMode, Registry};
use crate::store::Backoff;

/// How long the ensemble may take to open a session.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to answer a request.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Every znode is looked at so often.
const VERIFY: Duration = Duration::from_secs(30);

/// Keeps the ensemble's znodes as they are to be, until another agent goes on.
pub(super) async fn serve(
    ensemble: String,
    session_ttl: Duration,
    mut orders: watch::Receiver<Orders>,
    shared: Arc<Shared>,
) {
    let mut pause = Backoff::new();
    while is_wanted(&mut orders).await {
        let connector = Client::connector().with_fail_eagerly().with_session_timeout(session_ttl);
        let reason = match timeout(CONNECT_WITHIN, Box::pin(connector.connect(&ensemble))).await {
            Ok(Ok(client)) => {
                let mut session =
                    Session { client, shared: &shared, standing: BTreeMap::new(), swept: BTreeSet::new() };
                match session.serve(&mut orders, &mut pause).await {
                    Ended::HandedOver => return,
                    Ended::Lost(reason) => reason,
                }
            }
            Ok(Err(error)) => format!("no session: {error}"),
            Err(_) => format!("no session within {CONNECT_WITHIN:?}"),
        };
        shared.fails(&reason);
        shared.standing.send_replace(0);
        tokio::time::sleep(pause.next()).await;
    }
}

enum Ended {
    /// The next agent has znodes of its own.
    HandedOver,
    Lost(String),
}

/// A znode that stands.
struct Standing {
    announcement: Arc<Announcement>,
    node: String,
    written: Instant,
}

struct Session<'a> {
    client: Client,
    shared: &'a Shared,
    standing: BTreeMap<InstanceKey, Standing>,
    /// Paths where nothing stands that this session knows nothing of.
    swept: BTreeSet<String>,
}

impl Session<'_> {
    async fn serve(&mut self, orders: &mut watch::Receiver<Orders>, pause: &mut Backoff) -> Ended {
        let mut state = self.client.state_watcher();
        let mut verify = Instant::now() + VERIFY;
        loop {
            let Orders { desired, handed_over } = orders.borrow_and_update().clone();
            if handed_over {
                return Ended::HandedOver;
            }
            let settled = self.settle(&desired).await;
            self.shared.standing.send_replace(self.standing.len());
            let mut again = None;
            match settled {
                Ok(()) => {
                    *pause = Backoff::new();
                    self.shared.stands();
                }
                Err(error) => {
                    if self.client.state().is_terminated() {
                        return Ended::Lost(error);
                    }
                    self.shared.fails(&error);
                    again = Some(Instant::now() + pause.next());
                }
            }
            let next = [Some(verify), again, self.renewal()].into_iter().flatten().min().unwrap_or(verify);
            tokio::select! {
                changed = orders.changed() => if changed.is_err() { return Ended::HandedOver },
                now = state.changed() => if now.is_terminated() {
                    return Ended::Lost(format!("the session is over: {now}"));
                },
                () = tokio::time::sleep_until(next) => {
                    if next == verify {
                        verify = Instant::now() + VERIFY;
                        self.verify().await;
                    }
                }
            }
        }
    }

    /// Makes the znodes those that are desired.
    async fn settle(&mut self, desired: &Desired) -> Result<(), String> {
        let gone: Vec<_> = self.standing.keys().filter(|key| !desired.contains_key(key)).cloned().collect();
        for key in gone {
            if let Some(standing) = self.standing.get(&key) {
                let node = standing.node.clone();
                self.remove(&node).await?;
                self.standing.remove(&key);
                self.shared.changed("removed");
                tracing::info!(instance = %key, node, "no longer announced");
            }
        }
        for (key, announcement) in desired {
            let before = self.standing.get(key);
            if before.is_some_and(|before| before.announcement == *announcement && !is_due(before)) {
                continue;
            }
            let known = before.map(|before| before.node.clone());
            let node = self.write(announcement, desired, known.as_deref()).await?;
            let is_new = known.as_ref() != Some(&node);
            let (announcement, written) = (Arc::clone(announcement), Instant::now());
            self.standing.insert(key.clone(), Standing { announcement, node: node.clone(), written });
            if let Some(old) = known.filter(|old| *old != node) {
                self.remove(&old).await?;
            }
            if is_new {
                self.shared.changed("written");
                tracing::info!(instance = %key, node, "announced");
            }
        }
        Ok(())
    }

    /// Writes one; answers with its path.
    async fn write(
        &mut self,
        announcement: &Announcement,
        desired: &Desired,
        known: Option<&str>,
    ) -> Result<String, String> {
        let Registry::ZooKeeper { path, mode, encoded, .. } = &announcement.registry else {
            return Err("it is to be announced elsewhere".to_owned());
        };
        if let Some(known) = known
            && let Some(standing) = self.of_node(known)
            && standing.announcement.data == announcement.data
            && standing.announcement.registry == announcement.registry
        {
            self.set(known, announcement).await?;
            return Ok(known.to_owned());
        }
        if !self.swept.contains(path) {
            if let Some(found) = self.sweep(path, announcement, desired).await? {
                return Ok(found);
            }
            self.swept.insert(path.clone());
        }
        let prefix = format!("{path}/{}", znode::prefix(announcement, *encoded));
        let created = self.create(path, &prefix, *mode, announcement).await;
        if created.is_err() {
            self.swept.remove(path);
        }
        created
    }

    async fn create(
        &self,
        path: &str,
        prefix: &str,
        mode: NodeMode,
        announcement: &Announcement,
    ) -> Result<String, String> {
        let options = match (mode.ephemeral, mode.sequential) {
            (true, true) => CreateMode::EphemeralSequential,
            (true, false) => CreateMode::Ephemeral,
            (false, true) => CreateMode::PersistentSequential,
            (false, false) => CreateMode::Persistent,
        }
        .with_acls(Acls::anyone_all());
        if !mode.sequential
            && let Some(stat) = self.stat(prefix).await?
        {
            if self.is_ours(&stat, mode) {
                self.set(prefix, announcement).await?;
                return Ok(prefix.to_owned());
            }
            // That of an earlier life would end with its session.
            self.remove_whoever_s(prefix).await?;
        }
        let mut made_path = false;
        loop {
            let created = self.client.create(prefix, announcement.data.as_bytes(), &options);
            match answered(created).await? {
                Ok((_, number)) if mode.sequential => return Ok(format!("{prefix}{number}")),
                Ok(_) => return Ok(prefix.to_owned()),
                Err(Error::NoNode) if !made_path => {
                    made_path = true;
                    let parents = CreateMode::Persistent.with_acls(Acls::anyone_all());
                    match answered(self.client.mkdir(path, &parents)).await? {
                        Ok(()) | Err(Error::NodeExists) => {}
                        Err(error) => return Err(format!("create {path}: {error}")),
                    }
                }
                Err(error) => return Err(format!("create {prefix}: {error}")),
            }
        }
    }

    /// Removes what a lost answer has left at a path, and what an earlier life has; answers with a znode that can stand as it is.
    async fn sweep(
        &self,
        path: &str,
        announcement: &Announcement,
        desired: &Desired,
    ) -> Result<Option<String>, String> {
        let parent = if path.is_empty() { "/" } else { path };
        let children = match answered(self.client.list_children(parent)).await? {
            Ok(children) => children,
            Err(Error::NoNode) => return Ok(None),
            Err(error) => return Err(format!("list {parent}: {error}")),
        };
        let Registry::ZooKeeper { mode, .. } = &announcement.registry else { return Ok(None) };
        let mut found = None;
        for child in children.iter().filter(|child| znode::may_be(child, announcement)) {
            let node = format!("{path}/{child}");
            if self.of_node(&node).is_some() {
                continue;
            }
            let (data, stat) = match answered(self.client.get_data(&node)).await? {
                Ok(read) => read,
                Err(Error::NoNode) => continue,
                Err(error) => return Err(format!("read {node}: {error}")),
            };
            let of_session = stat.ephemeral_owner == self.client.session_id().0;
            // One that does not end with a session says by its data whose it is.
            let of_data =
                stat.ephemeral_owner == 0 && !mode.ephemeral && data == announcement.data.as_bytes();
            if !of_session && !of_data {
                continue;
            }
            let is_wanted = data == announcement.data.as_bytes() && self.is_ours(&stat, *mode);
            let of_another = desired.values().any(|other| {
                other.data != announcement.data
                    && other.data.as_bytes() == data
                    && other.registry == announcement.registry
            });
            match () {
                () if is_wanted && found.is_none() => found = Some(node),
                // It is adopted when its turn comes.
                () if of_another => {}
                () => self.remove(&node).await?,
            }
        }
        Ok(found)
    }

    /// Looks whether all of them stand; those that do not are made anew by the next turn.
    async fn verify(&mut self) {
        let mut missing = Vec::new();
        for (key, standing) in &self.standing {
            match self.stat(&standing.node).await {
                Ok(Some(_)) => {}
                Ok(None) => missing.push(key.clone()),
                Err(_) => return,
            }
        }
        for key in missing {
            if let Some(standing) = self.standing.remove(&key) {
                tracing::warn!(instance = %key, node = standing.node, "somebody removed it; it is announced again");
                self.shared.changed("repaired");
            }
        }
    }

    /// When the next persistent znode is to be written again.
    fn renewal(&self) -> Option<Instant> {
        self.standing.values().filter_map(due).min()
    }

    fn of_node(&self, node: &str) -> Option<&Standing> {
        self.standing.values().find(|standing| standing.node == node)
    }

    fn is_ours(&self, stat: &Stat, mode: NodeMode) -> bool {
        stat.ephemeral_owner == if mode.ephemeral { self.client.session_id().0 } else { 0 }
    }

    async fn stat(&self, node: &str) -> Result<Option<Stat>, String> {
        answered(self.client.check_stat(node)).await?.map_err(|error| format!("look at {node}: {error}"))
    }

    async fn set(&self, node: &str, announcement: &Announcement) -> Result<(), String> {
        let set = answered(self.client.set_data(node, announcement.data.as_bytes(), None)).await?;
        set.map(drop).map_err(|error| format!("write {node}: {error}"))
    }

    /// Removes one that is ours; another's, by the same name, stays.
    async fn remove(&self, node: &str) -> Result<(), String> {
        match self.stat(node).await? {
            Some(stat) if [0, self.client.session_id().0].contains(&stat.ephemeral_owner) => {
                self.remove_whoever_s(node).await
            }
            _ => Ok(()),
        }
    }

    async fn remove_whoever_s(&self, node: &str) -> Result<(), String> {
        match answered(self.client.delete(node, None)).await? {
            Ok(()) | Err(Error::NoNode) => Ok(()),
            Err(error) => Err(format!("remove {node}: {error}")),
        }
    }
}

fn due(standing: &Standing) -> Option<Instant> {
    match &standing.announcement.registry {
        Registry::ZooKeeper { renewed, .. } => renewed.map(|renewed| standing.written + renewed),
        Registry::Etcd { .. } => None,
    }
}

fn is_due(standing: &Standing) -> bool {
    due(standing).is_some_and(|due| due <= Instant::now())
}

async fn answered<T>(request: impl Future<Output = Result<T, Error>>) -> Result<Result<T, Error>, String> {
    let answer = timeout(ANSWER_WITHIN, request).await;
    answer.map_err(|_| format!("no answer within {ANSWER_WITHIN:?}"))
}
