//! Taking everything back when the agent leaves.
//!
//! First every record is written as draining, then the session is ended, which deletes all of them in one step. The step
//! before is for nodes that have just had an outage of the store: they doubt deletes for a while, since a lease may have ended
//! for no fault of its owner, and keep what got traffic. What drains gets none, and its end is believed at once.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::LeaveError;
use super::board::Target;
use super::settle::{Record, Settled, settle};
use super::writer::{IN_FLIGHT, Writer};
use crate::model::Health;
use crate::store::Session;

impl Writer {
    /// Takes everything back: by ending the session, which deletes all of it in one step; where that fails, one by one.
    pub(super) async fn leave(&mut self, session: Option<Session>, by: Instant) {
        let mut last_error = "there is no session, since the store is out of reach".to_owned();
        if let Some(session) = &session {
            // A store that is slow now will be slow to end the session as well: that one gets half of the time.
            let half = Instant::now() + by.saturating_duration_since(Instant::now()) / 2;
            if tokio::time::timeout_at(half, self.announce(session)).await.is_err() {
                tracing::warn!("the store is slow; leaving without having announced it by a drain");
            }
        }
        let left = tokio::time::timeout_at(by, self.withdraw(session, &mut last_error)).await;
        let done = left.map_err(|_| LeaveError { ttl: self.config.session_ttl, reason: last_error });
        match &done {
            Ok(()) => {
                tracing::info!(node = %self.config.node, "everything of this node is deregistered");
                self.board.all_withdrawn();
            }
            Err(error) => tracing::error!(%error, "leaving"),
        }
        self.metrics.pending.set(0);
        self.orders.left.send_replace(Some(done));
    }

    /// Writes what gets traffic as draining. A record that cannot be written is withdrawn all the same.
    async fn announce(&mut self, session: &Session) {
        let known: Vec<Target> = self.confirmed.keys().cloned().collect();
        let jobs: Vec<_> = known
            .into_iter()
            .filter_map(|target| {
                let mut job = self.job(&target, false);
                match &mut job.record {
                    Record::Node(node) if !node.draining => node.draining = true,
                    Record::Instance(instance)
                        if !instance.draining && instance.health == Health::Passing =>
                    {
                        instance.draining = true;
                    }
                    _ => return None,
                }
                Some((target, job))
            })
            .collect();
        let store = Arc::clone(&self.store);
        let announced = stream::iter(jobs).map(|(target, job)| {
            let store = Arc::clone(&store);
            async move { (target, settle(&*store, Some(session), job).await) }
        });
        let mut announced = announced.buffer_unordered(IN_FLIGHT);
        while let Some((target, result)) = announced.next().await {
            match result {
                Ok(Settled::Stands { confirmed, .. }) => drop(self.confirmed.insert(target, Some(confirmed))),
                Ok(Settled::Gone | Settled::Refused(_)) => drop(self.confirmed.remove(&target)),
                Err(error) => {
                    tracing::debug!(record = ?target, %error, "not announced as draining");
                    self.confirmed.insert(target, None);
                }
            }
        }
    }

    async fn withdraw(&mut self, session: Option<Session>, last_error: &mut String) {
        if let Some(session) = session {
            match self.store.close_session(session).await {
                Ok(()) => return,
                Err(error) => *last_error = error.to_string(),
            }
        }
        while let Some((target, _)) = self.confirmed.last_key_value() {
            // From the last to the first: the node goes after its instances.
            let target = target.clone();
            let mut job = self.job(&target, true);
            job.record = match &target {
                Target::Node => Record::NoNode(self.config.address),
                Target::Instance(key) => Record::NoInstance(key.clone()),
            };
            match settle(&*self.store, None, job).await {
                Ok(_) => drop(self.confirmed.remove(&target)),
                Err(error) => {
                    *last_error = error.to_string();
                    tokio::time::sleep(self.backoff.pause()).await;
                }
            }
        }
    }
}
