//! The store in ZooKeeper (3.6 or newer, for recursive watches and container nodes).
//!
//! What holds, with the default request timeout of 2 s:
//! - calls see what was written before, by whomever: a server is asked to catch up with the leader first;
//! - a write that failed says whether it may have been applied, and is never repeated if so;
//! - a watch that may have missed something yields a whole snapshot: after every loss of the connection, for ZooKeeper keeps
//!   no history;
//! - a session is a session of ZooKeeper: it survives the loss of a server and of the connection within its TTL, and it stays
//!   with its process.
//!
//! Room: `znode` (where keys and values lie, pure) · `failure` (what an error means) · `link` (connections, and their
//! heartbeat) · `call` (attempts within a deadline) · `write` · `listing` · `held` and `lease` (sessions) · `watch`.

mod call;
mod failure;
mod held;
mod lease;
mod link;
mod listing;
mod watch;
mod write;
mod znode;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use zookeeper_client::Client;

use self::call::{Failed, Sent, Shared};
use self::failure::{Failure, Next};
use self::held::Leases;
use self::link::{Access, Links};
use self::write::Writer;
use super::url::Endpoint;
use super::{
    Entry, Expect, Listing, Metrics, OpenError, Path, Result, Revision, Session, Store, StoreConfig, Swap,
    WATCH_QUEUE, Watch,
};
use crate::tasks::Tasks;

/// A client of a ZooKeeper ensemble.
pub struct ZooKeeperStore {
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl ZooKeeperStore {
    /// Prepares the client; the first call connects.
    pub(super) fn open(
        config: &StoreConfig,
        endpoints: &[Endpoint],
        metrics: Metrics,
    ) -> std::result::Result<Self, OpenError> {
        let wrong = |key, reason: &str| OpenError::Config { key, reason: reason.to_owned() };
        let digest = match (&config.username, &config.password) {
            (Some(user), Some(password)) => Some(format!("{user}:{password}")),
            (None, None) => None,
            (Some(_), None) => return Err(wrong("password", "it is needed with `username`")),
            (None, Some(_)) => return Err(wrong("username", "it is needed with `password`")),
        };
        let files =
            [("ca_file", &config.ca_file), ("cert_file", &config.cert_file), ("key_file", &config.key_file)];
        if let Some((key, _)) = files.into_iter().find(|(_, file)| file.is_some()) {
            return Err(wrong(
                key,
                "TLS to ZooKeeper is not supported: remove it, and lead zookeeper:// through a tunnel where the network is not \
                 trusted",
            ));
        }
        let prefix = config.effective_prefix()?;
        znode::check_prefix(&prefix).map_err(|reason| wrong("prefix", &format!("{prefix:?}: {reason}")))?;
        let tasks = Tasks::new();
        let access = Access { digest };
        let shared = Shared {
            url: config.url.to_string(),
            links: Links::new(endpoints, &prefix, access, metrics.clone(), tasks.clone()),
            leases: Leases::default(),
            prefix,
            timeout: config.request_timeout,
            metrics,
            stop: tasks.stop_token(),
        };
        Ok(Self { shared: Arc::new(shared), tasks })
    }

    /// What needs no server to be refused.
    fn check(
        &self,
        operation: &'static str,
        path: &Path,
        value: Option<&[u8]>,
        session: Option<&Session>,
    ) -> Result<()> {
        let Some((kind, reason)) = super::refused(value, session) else { return Ok(()) };
        let failure = Failure::new(kind, Next::GiveUp, reason);
        let failed = Failed { failure, endpoint: self.shared.url.clone() };
        Err(self.shared.error(operation, path.as_str(), failed))
    }

    /// Makes `request` with a writer of `path`, on the connection of `session` or on the common one.
    async fn write<T, F>(
        &self,
        operation: &'static str,
        path: &Path,
        session: Option<&Session>,
        request: impl Fn(Client, Arc<Sent>) -> F + Send + Sync,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Failure>> + Send,
    {
        match session {
            Some(session) => self.shared.call_under(operation, path.as_str(), session.id(), request).await,
            None => self.shared.call(operation, path.as_str(), request).await,
        }
    }

    fn writer<'a>(
        &'a self,
        client: Client,
        sent: Arc<Sent>,
        (path, node): (&'a Path, &'a str),
        session: Option<&Session>,
    ) -> Writer<'a> {
        let (prefix, acls) = (self.shared.prefix.as_str(), self.shared.links.access.acls());
        let owner = session.map_or(0, |session| session.id().cast_signed());
        Writer { client, sent, acls, prefix, path, node, owner }
    }
}

#[async_trait]
impl Store for ZooKeeperStore {
    fn url(&self) -> &str {
        &self.shared.url
    }

    async fn get(&self, path: &Path) -> Result<Option<Entry>> {
        let node = &self.shared.entry_node(path);
        let request = |client: Client, _| async move { write::get(&client, node, path).await };
        self.shared.call("get", path.as_str(), request).await
    }

    async fn list(&self, directory: &Path) -> Result<Listing> {
        self.shared.list(directory).await
    }

    async fn put(&self, path: &Path, value: Vec<u8>, session: Option<&Session>) -> Result<Revision> {
        self.check("put", path, Some(&value), session)?;
        let (node, value) = (self.shared.entry_node(path), &value);
        let request = |client: Client, sent: Arc<Sent>| {
            let writer = self.writer(client, sent, (path, &node), session);
            async move { writer.put(value).await }
        };
        self.write("put", path, session, request).await
    }

    async fn delete(&self, path: &Path) -> Result<bool> {
        let node = &self.shared.entry_node(path);
        let request =
            |client: Client, sent: Arc<Sent>| async move { write::delete(&client, &sent, node).await };
        self.shared.call("delete", path.as_str(), request).await
    }

    async fn compare_and_swap(
        &self,
        path: &Path,
        expect: Expect,
        value: Option<Vec<u8>>,
        session: Option<&Session>,
    ) -> Result<Swap> {
        self.check("compare-and-swap", path, value.as_deref(), session)?;
        let (node, value) = (self.shared.entry_node(path), value.as_deref());
        let request = |client: Client, sent: Arc<Sent>| {
            let writer = self.writer(client, sent, (path, &node), session);
            async move { writer.swap(expect, value).await }
        };
        self.write("compare-and-swap", path, session, request).await
    }

    async fn open_session(&self, ttl: Duration) -> Result<Session> {
        let (session, renewal) = self.shared.open(ttl).await?;
        self.tasks.spawn_while_wanted("zookeeper session", renewal);
        Ok(session)
    }

    async fn adopt_session(&self, id: u64, ttl: Duration) -> Result<Session> {
        let (session, renewal) = self.shared.adopt(id, ttl).await?;
        self.tasks.spawn_while_wanted("zookeeper session", renewal);
        Ok(session)
    }

    async fn close_session(&self, session: Session) -> Result<()> {
        let id = session.id();
        // Before the handle, whose end lets go of it.
        let lease = self.shared.leases.remove(id);
        drop(session);
        self.shared.close(id, lease).await
    }

    fn watch(&self, directory: &Path) -> Watch {
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        self.tasks
            .spawn_while_wanted("zookeeper watch", Arc::clone(&self.shared).feed(directory.clone(), sender));
        Watch::new(receiver)
    }

    async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for ZooKeeperStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeperStore")
            .field("url", &self.shared.url)
            .field("prefix", &self.shared.prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
