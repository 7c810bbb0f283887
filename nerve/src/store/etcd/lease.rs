//! Sessions as etcd leases: opened, renewed well inside their TTL, given up when they may have expired.
//!
//! A renewal is a stream of its own with one question and one answer: a long-lived stream hangs on a frozen member and
//! has to be watched over. The TTL counts from when the last answered renewal was *sent*: etcd began to count later, so
//! we never believe in a lease that is gone. After a failure other members are asked, at most a second apart.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::Client;
use tokio::time::Instant;

use super::call::{Repeat, Shared};
use crate::store::backoff::Backoff;
use crate::store::{ErrorKind, Result, Session, SessionKeeper, SessionLost};

/// How long a member may take to renew; several fit into the shortest sensible TTL.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(1);

impl Shared {
    /// Grants a lease: the session, and the future that keeps it alive.
    pub(super) async fn open(
        self: &Arc<Self>,
        ttl: Duration,
    ) -> Result<(Session, impl Future<Output = ()> + Send + 'static)> {
        // etcd counts in whole seconds.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
        let grant = |client: Client| async move {
            let sent = Instant::now();
            let granted = client.lease_client().grant(seconds, None).await?;
            Ok((granted, sent))
        };
        // A lease that was granted without our knowing holds nothing and ends by itself: asking again does no harm.
        let (granted, sent) = self.call("open session", "", Repeat::Always, grant).await?;
        let ttl = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or(0).max(1));
        let (session, keeper) = Session::new(granted.id().cast_unsigned(), ttl);
        Ok((session, Arc::clone(self).renew(granted.id(), ttl, sent, keeper)))
    }

    /// Renews a lease that another process granted: the session, and the future that keeps it alive.
    pub(super) async fn adopt(
        self: &Arc<Self>,
        id: i64,
        ttl: Duration,
    ) -> Result<(Session, impl Future<Output = ()> + Send + 'static)> {
        let renewal = |client: Client| async move {
            let sent = Instant::now();
            client.lease_client().keep_alive(id).await?;
            Ok(sent)
        };
        let sent = self.call("adopt session", &format!("{id:x}"), Repeat::Always, renewal).await?;
        let (session, keeper) = Session::new(id.cast_unsigned(), ttl);
        Ok((session, Arc::clone(self).renew(id, ttl, sent, keeper)))
    }

    async fn renew(self: Arc<Self>, id: i64, ttl: Duration, mut renewed: Instant, keeper: SessionKeeper) {
        let mut backoff = Backoff::new();
        let mut next = renewed + ttl / 3;
        loop {
            tokio::select! {
                () = keeper.closed() => return,
                () = tokio::time::sleep_until(next) => {}
            }
            let end = renewed + ttl;
            let sent = Instant::now();
            let budget = RENEWAL_TIMEOUT.min(end.saturating_duration_since(sent));
            let renewal = |client: Client| async move { client.lease_client().keep_alive(id).await };
            let result = tokio::select! {
                () = keeper.closed() => return,
                result = self.attempt(budget, &renewal) => result,
            };
            let Err(failed) = result else {
                renewed = sent;
                next = sent + ttl / 3;
                backoff = Backoff::new();
                continue;
            };
            let reason = &failed.failure.reason;
            if failed.failure.kind == ErrorKind::SessionLost {
                return self.lose(id, &keeper, "the store says that it does not exist".to_owned());
            }
            let pause = backoff.next();
            let now = Instant::now();
            if now >= end {
                let ttl = humantime::format_duration(ttl);
                let reason = format!("not renewed within its TTL of {ttl}: {}: {reason}", failed.endpoint);
                return self.lose(id, &keeper, reason);
            }
            tracing::debug!(
                session = format!("{id:x}"),
                endpoint = failed.endpoint,
                reason,
                "a renewal failed"
            );
            next = (now + pause).min(end);
        }
    }

    fn lose(&self, id: i64, keeper: &SessionKeeper, reason: String) {
        let session = format!("{id:x}");
        tracing::warn!(session, reason, "the session at the store is lost");
        self.metrics.session_lost();
        keeper.lose(SessionLost { session, store: self.url.clone(), reason });
    }
}
