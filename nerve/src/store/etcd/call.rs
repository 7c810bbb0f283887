//! One call to the cluster: attempts on members, within one deadline.
//!
//! What only reads, or may be done twice without a difference, is repeated on another member: its first attempt gets
//! half of the time. A write is repeated only if the first attempt certainly was not applied: the connection was never
//! made, or etcd refused before it proposed. A put is no exception though it looks idempotent: repeated, it could undo
//! what another writer wrote in between; and a repeated delete could not tell whether there was something.
//!
//! Since a write has one try, it is sent to a member only that has answered within the last second or answers a quick
//! read first. A frozen member thus costs the writes that were under way, not those that come after.

use std::future::Future;
use std::time::Duration;

use etcd_client::{Client, ResponseHeader};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::failure::{Failure, Next};
use super::pool::{Member, Pool};
use crate::store::{Error, ErrorKind, Metrics, Path, Result};

/// The pause while the cluster elects a leader.
const ELECTION_PAUSE: Duration = Duration::from_millis(50);

/// What every part of the backend shares.
pub(super) struct Shared {
    pub(super) url: String,
    /// Starts with a slash, does not end with one.
    pub(super) prefix: String,
    pub(super) timeout: Duration,
    pub(super) metrics: Metrics,
    pub(super) pool: Pool,
    pub(super) stop: CancellationToken,
}

/// May a request that was perhaps applied be sent again?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It reads, or once more makes no difference.
    Always,
    /// It writes.
    IfNotApplied,
}

/// A failed attempt, and where.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) failure: Failure,
    pub(super) endpoint: String,
}

impl Shared {
    /// Calls and turns the failure into the caller's error; counts both.
    pub(super) async fn call<T, F>(
        &self,
        operation: &'static str,
        target: &str,
        repeat: Repeat,
        request: impl Fn(Client) -> F + Send + Sync,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, etcd_client::Error>> + Send,
    {
        let started = Instant::now();
        let result =
            self.attempts(repeat, request).await.map_err(|failed| self.error(operation, target, failed));
        self.metrics.observe(operation, started.elapsed(), &result);
        result
    }

    /// Attempts until one succeeds, nothing can help, or the request timeout is over.
    pub(super) async fn attempts<T, F>(
        &self,
        repeat: Repeat,
        request: impl Fn(Client) -> F + Send + Sync,
    ) -> std::result::Result<T, Failed>
    where
        F: Future<Output = std::result::Result<T, etcd_client::Error>> + Send,
    {
        let deadline = Instant::now() + self.timeout;
        let mut left = self.pool.len().max(2);
        let mut electing = false;
        loop {
            left = left.saturating_sub(1);
            let remaining = deadline.saturating_duration_since(Instant::now());
            let budget = if repeat == Repeat::Always && left > 0 { remaining / 2 } else { remaining };
            let vetted = match repeat {
                Repeat::IfNotApplied if !self.pool.is_fresh() => self.vet(remaining).await,
                _ => Ok(()),
            };
            let failed = match vetted {
                Err(failed) => failed,
                Ok(()) => match self.attempt(budget, &request).await {
                    Ok((answer, _)) => return Ok(answer),
                    Err(failed) => failed,
                },
            };
            let may_repeat = repeat == Repeat::Always || !failed.failure.may_have_applied;
            electing |= failed.failure.next == Next::Wait;
            let pause = match failed.failure.next {
                Next::AskAnother if left > 0 => Duration::ZERO,
                // Dead members are to be expected while the others elect: the deadline ends this, not their number.
                Next::AskAnother | Next::Wait if electing => ELECTION_PAUSE,
                _ => return Err(failed),
            };
            if !may_repeat || Instant::now() + pause + ELECTION_PAUSE > deadline {
                return Err(failed);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Does the current member answer, and can it reach a leader? A read of a key that never exists tells.
    async fn vet(&self, remaining: Duration) -> std::result::Result<(), Failed> {
        let key = format!("{}/", self.prefix);
        let read = |mut client: Client| {
            let key = key.clone();
            async move { client.get(key, None).await }
        };
        match self.attempt((self.timeout / 5).min(remaining), &read).await {
            Ok(_) => Ok(()),
            Err(Failed { failure, endpoint }) => {
                Err(Failed { failure: Failure { may_have_applied: false, ..failure }, endpoint })
            }
        }
    }

    /// Asks the current member, once.
    pub(super) async fn attempt<T, F>(
        &self,
        budget: Duration,
        request: &(impl Fn(Client) -> F + Sync),
    ) -> std::result::Result<(T, Member), Failed>
    where
        F: Future<Output = std::result::Result<T, etcd_client::Error>> + Send,
    {
        let index = self.pool.current();
        let mut used = None;
        let asked = async {
            let (client, member) = self.pool.client(index).await?;
            used = Some(member);
            request(client).await.map(|answer| (answer, member)).map_err(Failure::of)
        };
        let outcome = tokio::select! {
            biased;
            () = self.stop.cancelled() => {
                Err(Failure::new(ErrorKind::Unavailable, Next::GiveUp, "the store was shut down"))
            }
            outcome = tokio::time::timeout(budget, asked) => match outcome {
                Ok(outcome) => outcome,
                Err(_) => Err(Failure::timeout(budget)),
            },
        };
        match outcome {
            Ok((answer, member)) => {
                self.pool.succeeded(member);
                Ok((answer, member))
            }
            Err(mut failure) => {
                // Without a client nothing was sent.
                failure.may_have_applied &= used.is_some();
                if matches!(failure.next, Next::AskAnother | Next::Wait) {
                    self.pool.failed(index, used, &failure.reason);
                    if self.pool.uses_tls() && failure.kind == ErrorKind::Unavailable {
                        // Depending on who is faster, its reason for closing the connection is lost.
                        failure.reason += "; or etcd does not accept our cert_file, see its log";
                    }
                }
                Err(Failed { failure, endpoint: self.pool.name(index) })
            }
        }
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

    /// The key of `path` in etcd.
    pub(super) fn key(&self, path: &Path) -> String {
        format!("{}/{path}", self.prefix)
    }

    /// What all keys below `directory` start with; ends with a slash.
    pub(super) fn directory(&self, directory: &Path) -> String {
        format!("{}/{}", self.prefix, directory.as_directory())
    }

    /// The path of a key in etcd; one that is no path of ours is counted and left out.
    pub(super) fn path(&self, key: &[u8]) -> Option<Path> {
        let text =
            std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(&self.prefix)?.strip_prefix('/'));
        let path = text.and_then(|text| Path::new(text).ok());
        if path.is_none() {
            self.metrics.key_ignored();
            tracing::debug!(key = %String::from_utf8_lossy(key), "a key in the store is no path of ours; it is left out");
        }
        path
    }
}

/// Where the cluster's history was when we last heard of it. All of it grows, or it is another history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct History {
    cluster: u64,
    term: u64,
    pub(super) revision: u64,
}

impl History {
    /// As told by a linearizable answer: that member has applied all that was committed, so nothing in its header is
    /// older than what any other member told before.
    pub(super) fn of(header: Option<&ResponseHeader>) -> Self {
        header.map_or(Self { cluster: 0, term: 0, revision: 0 }, |header| Self {
            cluster: header.cluster_id(),
            term: header.raft_term(),
            revision: unsigned(header.revision()),
        })
    }

    /// The same history at another revision.
    pub(super) fn at(self, revision: u64) -> Self {
        Self { revision, ..self }
    }

    /// Do both come from the same cluster?
    pub(super) fn is_of(&self, other: &Self) -> bool {
        self.cluster == other.cluster
    }

    /// Is `later` a later point of this history? A wiped cluster may keep its id, but begins again with low numbers.
    pub(super) fn continues_in(&self, later: &Self) -> bool {
        later.cluster == self.cluster && later.term >= self.term && later.revision >= self.revision
    }
}

/// etcd's numbers are signed and never negative.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_continues_only_forward_and_in_the_same_cluster() {
        let seen = History { cluster: 1, term: 5, revision: 100 };
        for (cluster, term, revision, continues) in
            [(1, 5, 100, true), (1, 6, 200, true), (2, 6, 200, false), (1, 2, 200, false), (1, 6, 99, false)]
        {
            assert_eq!(seen.continues_in(&History { cluster, term, revision }), continues);
        }
    }
}
