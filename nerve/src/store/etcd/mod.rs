//! The store in etcd (3.4 or newer).
//!
//! What holds, with the default request timeout of 2 s:
//! - one member of several dead, frozen or cut off: no caller sees failures for longer than 3 s, and no session with a
//!   TTL of 10 s is lost. If it was the leader, calls also wait for etcd's election (1 to 2 s by default);
//! - a write that failed says whether it may have been applied, and is never repeated if so;
//! - a watch misses nothing: it resumes by revision, or yields a new snapshot that says why;
//! - after an outage everything is back within about a second of the store's return.
//!
//! A store that is wiped and grows past everything seen before anyone looks again, under the same cluster id and Raft
//! term, cannot be told from the old one.
//!
//! Room: `pool` (clients) · `failure` (what an error means) · `call` (attempts
//! within a deadline) · `listing` (pages) · `lease` (sessions) · `watch`.

mod call;
mod failure;
mod lease;
mod listing;
mod pool;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::sync::mpsc;

use self::call::{Failed, Repeat, Shared, unsigned};
use self::failure::{Failure, Next};
use self::pool::Pool;
use super::url::Endpoint;
use super::{
    Entry, Error, ErrorKind, Expect, Listing, Metrics, OpenError, Path, Result, Revision, Session, Store,
    StoreConfig, Swap, WATCH_QUEUE, Watch,
};
use crate::tasks::Tasks;

/// A client of an etcd cluster.
pub struct EtcdStore {
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl EtcdStore {
    /// Prepares the client; the first call connects.
    pub(super) fn open(
        config: &StoreConfig,
        endpoints: &[Endpoint],
        tls: bool,
        metrics: Metrics,
    ) -> std::result::Result<Self, OpenError> {
        let tasks = Tasks::new();
        let shared = Shared {
            url: config.url.to_string(),
            prefix: config.effective_prefix()?,
            timeout: config.request_timeout,
            pool: Pool::open(config, endpoints, tls, metrics.clone())?,
            metrics,
            stop: tasks.stop_token(),
        };
        Ok(Self { shared: Arc::new(shared), tasks })
    }

    fn refusal(&self, operation: &'static str, target: &str, kind: ErrorKind, reason: String) -> Error {
        let failure = Failure::new(kind, Next::GiveUp, reason);
        self.shared.error(operation, target, Failed { failure, endpoint: self.shared.url.clone() })
    }

    /// What needs no server to be refused.
    fn check(
        &self,
        operation: &'static str,
        path: &Path,
        value: Option<&[u8]>,
        session: Option<&Session>,
    ) -> Result<()> {
        let refusal = |(kind, reason)| Err(self.refusal(operation, path.as_str(), kind, reason));
        super::refused(value, session).map_or(Ok(()), refusal)
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn url(&self) -> &str {
        &self.shared.url
    }

    async fn get(&self, path: &Path) -> Result<Option<Entry>> {
        let key = self.shared.key(path);
        let request = |client: etcd_client::Client| {
            let key = key.clone();
            async move { client.kv_client().get(key, None).await }
        };
        let mut answer = self.shared.call("get", path.as_str(), Repeat::Always, request).await?;
        Ok(answer.take_kvs().pop().and_then(|entry| self.shared.entry(entry)))
    }

    async fn list(&self, directory: &Path) -> Result<Listing> {
        let (entries, history) = self.shared.listing("list", directory).await?;
        Ok(Listing { entries, revision: Revision(history.revision) })
    }

    async fn put(&self, path: &Path, value: Vec<u8>, session: Option<&Session>) -> Result<Revision> {
        self.check("put", path, Some(&value), session)?;
        let key = self.shared.key(path);
        let options = under(session);
        let request = |client: etcd_client::Client| {
            let (key, value, options) = (key.clone(), value.clone(), options.clone());
            async move { client.kv_client().put(key, value, options).await }
        };
        let answer = self.shared.call("put", path.as_str(), Repeat::IfNotApplied, request).await?;
        Ok(Revision(answer.header().map_or(0, |header| unsigned(header.revision()))))
    }

    async fn delete(&self, path: &Path) -> Result<bool> {
        let key = self.shared.key(path);
        let request = |client: etcd_client::Client| {
            let key = key.clone();
            async move { client.kv_client().delete(key, None).await }
        };
        let answer = self.shared.call("delete", path.as_str(), Repeat::IfNotApplied, request).await?;
        Ok(answer.deleted() > 0)
    }

    async fn compare_and_swap(
        &self,
        path: &Path,
        expect: Expect,
        value: Option<Vec<u8>>,
        session: Option<&Session>,
    ) -> Result<Swap> {
        self.check("compare-and-swap", path, value.as_deref(), session)?;
        let key = self.shared.key(path);
        let expected = match expect {
            Expect::Absent => Compare::create_revision(key.clone(), CompareOp::Equal, 0),
            Expect::Unchanged(revision) => {
                let revision = i64::try_from(revision.0).unwrap_or(i64::MAX);
                Compare::mod_revision(key.clone(), CompareOp::Equal, revision)
            }
        };
        let write = match value {
            Some(value) => TxnOp::put(key.clone(), value, under(session)),
            None => TxnOp::delete(key.clone(), None),
        };
        let txn = Txn::new().when([expected]).and_then([write]).or_else([TxnOp::get(key, None)]);
        let request = |client: etcd_client::Client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        };
        let answer =
            self.shared.call("compare-and-swap", path.as_str(), Repeat::IfNotApplied, request).await?;
        if answer.succeeded() {
            return Ok(Swap::Done(Revision(answer.header().map_or(0, |header| unsigned(header.revision())))));
        }
        let found = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
            _ => None,
        });
        Ok(Swap::Conflict(found.and_then(|found| self.shared.entry(found))))
    }

    async fn open_session(&self, ttl: Duration) -> Result<Session> {
        let (session, renewal) = self.shared.open(ttl).await?;
        self.tasks.spawn_while_wanted("etcd session", renewal);
        Ok(session)
    }

    async fn adopt_session(&self, id: u64, ttl: Duration) -> Result<Session> {
        let (session, renewal) = self.shared.adopt(id.cast_signed(), ttl).await?;
        self.tasks.spawn_while_wanted("etcd session", renewal);
        Ok(session)
    }

    async fn close_session(&self, session: Session) -> Result<()> {
        let id = session.id().cast_signed();
        let revoke = |client: etcd_client::Client| async move { client.lease_client().revoke(id).await };
        // Revoking twice is revoking once: the second answer is that there is no such lease.
        match self.shared.call("close session", &format!("{id:x}"), Repeat::Always, revoke).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind == ErrorKind::SessionLost => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn watch(&self, directory: &Path) -> Watch {
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        self.tasks.spawn_while_wanted("etcd watch", Arc::clone(&self.shared).feed(directory.clone(), sender));
        Watch::new(receiver)
    }

    async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("url", &self.shared.url)
            .field("prefix", &self.shared.prefix)
            .finish_non_exhaustive()
    }
}

fn under(session: Option<&Session>) -> Option<PutOptions> {
    session.map(|session| PutOptions::new().with_lease(session.id().cast_signed()))
}

#[cfg(test)]
pub(crate) use self::tests::Cluster as TestCluster;

#[cfg(test)]
mod tests;
