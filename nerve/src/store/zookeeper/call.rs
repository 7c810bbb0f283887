//! One call to the ensemble: attempts on servers, within one deadline.
//!
//! What only reads is repeated on another server, the first attempt gets half of the time. A write that is under way gets all of
//! it, and is repeated only if it certainly was not applied: a request tells by [`Sent`] whether a write is under way. Every request that must see what others
//! wrote asks its server first to catch up with the leader (`sync`): servers lag behind, and sessions have connections of
//! their own.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zookeeper_client::{Client, Error as ZkError};

use super::failure::{Failure, Next};
use super::held::Leases;
use super::link::{Link, Links};
use super::znode;
use crate::store::{Entry, Error, ErrorKind, Metrics, Path, Result, Revision};

/// The least time between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// What every part of the backend shares.
pub(super) struct Shared {
    pub(super) url: String,
    /// Starts with a slash, does not end with one.
    pub(super) prefix: String,
    pub(super) timeout: Duration,
    pub(super) metrics: Metrics,
    pub(super) links: Links,
    pub(super) leases: Leases,
    pub(super) stop: CancellationToken,
}

/// Is a write under way whose answer has not come?
#[derive(Debug, Default)]
pub(super) struct Sent(AtomicBool);

impl Sent {
    /// Makes a write, and notes that until its answer is there.
    pub(super) async fn write<T, E>(
        &self,
        write: impl Future<Output = std::result::Result<T, E>>,
    ) -> std::result::Result<T, E> {
        self.0.store(true, Ordering::Relaxed);
        let answer = write.await;
        self.0.store(false, Ordering::Relaxed);
        answer
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A failed attempt, and where.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) failure: Failure,
    pub(super) endpoint: String,
}

impl Shared {
    /// Calls on the common link and turns the failure into the caller's error; counts both.
    pub(super) async fn call<T, F>(
        &self,
        operation: &'static str,
        target: &str,
        request: impl Fn(Client, Arc<Sent>) -> F + Send + Sync,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Failure>> + Send,
    {
        let started = Instant::now();
        let result = self.attempts(request).await.map_err(|failed| self.error(operation, target, failed));
        self.metrics.observe(operation, started.elapsed(), &result);
        result
    }

    /// The same on the connection of a session. The library finds another server by itself, so there is one attempt.
    pub(super) async fn call_under<T, F>(
        &self,
        operation: &'static str,
        target: &str,
        session: u64,
        request: impl Fn(Client, Arc<Sent>) -> F + Send + Sync,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Failure>> + Send,
    {
        let started = Instant::now();
        let result = match self.leases.client(session) {
            Some(client) => {
                let sent = Arc::new(Sent::default());
                self.within(self.timeout, &sent, request(client, Arc::clone(&sent))).await
            }
            None => Err(Failure::session_lost(format!("session {session:x} is lost; open another"))),
        };
        let result = result
            .map_err(|failure| self.error(operation, target, Failed { failure, endpoint: self.url.clone() }));
        self.metrics.observe(operation, started.elapsed(), &result);
        result
    }

    /// Attempts until one succeeds, nothing can help, or the request timeout is over.
    pub(super) async fn attempts<T, F>(
        &self,
        request: impl Fn(Client, Arc<Sent>) -> F + Send + Sync,
    ) -> std::result::Result<T, Failed>
    where
        F: Future<Output = std::result::Result<T, Failure>> + Send,
    {
        let deadline = Instant::now() + self.timeout;
        let mut left = self.links.len().max(2);
        loop {
            left = left.saturating_sub(1);
            let remaining = deadline.saturating_duration_since(Instant::now());
            // Alone, a server is waited for; that its connection broke is told by its heartbeat.
            let budget = if left > 0 && self.links.len() > 1 { remaining / 2 } else { remaining };
            let failed = match self.attempt(budget, remaining, &request).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let helps = failed.failure.next == Next::AskAnother && left > 0;
            if !helps || failed.failure.may_have_applied || Instant::now() + PAUSE > deadline {
                return Err(failed);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks the current server, once.
    async fn attempt<T, F>(
        &self,
        budget: Duration,
        remaining: Duration,
        request: &(impl Fn(Client, Arc<Sent>) -> F + Sync),
    ) -> std::result::Result<T, Failed>
    where
        F: Future<Output = std::result::Result<T, Failure>> + Send,
    {
        let member = self.links.current();
        let sent = Arc::new(Sent::default());
        let asked = async {
            let link = self.links.link().await?;
            let mut pulse = link.pulse.clone();
            tokio::select! {
                answer = request(link.client.clone(), Arc::clone(&sent)) => answer,
                broken = pulse.wait_for(|pulse| pulse.broken.is_some()) => {
                    let reason = broken.ok().and_then(|pulse| pulse.broken.clone()).unwrap_or_default();
                    Err(Failure { may_have_applied: sent.is_open(), ..super::link::broken(&reason) })
                }
            }
        };
        let asked = async {
            let mut asked = std::pin::pin!(asked);
            match tokio::time::timeout(budget, &mut asked).await {
                Ok(answer) => answer,
                // It has one try.
                Err(_) if sent.is_open() => asked.await,
                Err(_) => Err(Failure::timeout(budget)),
            }
        };
        match self.within(remaining, &sent, asked).await {
            Ok(answer) => {
                self.links.succeeded(member);
                Ok(answer)
            }
            Err(failure) => {
                if failure.next == Next::AskAnother {
                    self.links.failed(member, &failure.reason);
                }
                Err(Failed { failure, endpoint: self.links.name(member) })
            }
        }
    }

    /// The answer, unless the time is over or the store is shut down.
    pub(super) async fn within<T>(
        &self,
        budget: Duration,
        sent: &Sent,
        asked: impl Future<Output = std::result::Result<T, Failure>>,
    ) -> std::result::Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {
                Err(Failure::new(ErrorKind::Unavailable, Next::GiveUp, "the store was shut down"))
            }
            outcome = tokio::time::timeout(budget, asked) => outcome.unwrap_or_else(|_| {
                Err(Failure { may_have_applied: sent.is_open(), ..Failure::timeout(budget) })
            }),
        }
    }

    /// A link for a watch, which outlives the call.
    pub(super) async fn watching(&self) -> std::result::Result<Arc<Link>, Failed> {
        let member = self.links.current();
        self.within(self.timeout, &Sent::default(), self.links.link()).await.map_err(|failure| {
            if failure.next == Next::AskAnother {
                self.links.failed(member, &failure.reason);
            }
            Failed { failure, endpoint: self.links.name(member) }
        })
    }

    /// The caller's error.
    pub(super) fn error(&self, operation: &'static str, target: &str, failed: Failed) -> Error {
        let Failed { failure: Failure { kind, may_have_applied, reason, source, next: _ }, endpoint } =
            failed;
        let source = source.map(|source| source as _);
        Error {
            operation,
            target: target.to_owned(),
            store: endpoint,
            kind,
            may_have_applied,
            reason,
            source,
        }
    }

    /// The znode of an entry.
    pub(super) fn entry_node(&self, path: &Path) -> String {
        znode::entry(&self.prefix, path)
    }

    /// The path of an entry's znode; one that is no path of ours is counted and left out.
    pub(super) fn path(&self, node: &str) -> Option<Path> {
        let path = znode::path_of(&self.prefix, node);
        if path.is_none() {
            self.metrics.key_ignored();
            tracing::debug!(node, "a znode in the store is no path of ours; it is left out");
        }
        path
    }
}

/// Reads the entry of a znode as the leader has it.
pub(super) async fn read(
    client: &Client,
    node: &str,
    path: &Path,
) -> std::result::Result<Option<Entry>, ZkError> {
    // Sent in this order, so that it is one way to and fro.
    let (caught_up, found) = futures_util::future::join(client.sync(node), client.get_data(node)).await;
    caught_up?;
    match found {
        Ok((value, stat)) => Ok(Some(Entry { path: path.clone(), value, revision: revision(stat.mzxid) })),
        Err(ZkError::NoNode) => Ok(None),
        Err(error) => Err(error),
    }
}

/// ZooKeeper's transaction numbers are the store's revisions: one sequence for the whole ensemble.
pub(super) fn revision(zxid: i64) -> Revision {
    Revision(u64::try_from(zxid).unwrap_or(0))
}
