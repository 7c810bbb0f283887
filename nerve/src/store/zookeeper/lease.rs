//! Sessions as sessions of ZooKeeper, each with a connection of its own: an ephemeral node belongs to whoever's connection
//! created it.
//!
//! The library keeps the connection, finds another server and pings. A request of our own every third of the TTL is what
//! we go by: the TTL counts from when the last answered one was *sent*, so that we never believe in a session that is gone.
//! The library alone would go on for another two fifths of the TTL.
//!
//! A connection is opened `detached`, so that dropping it leaves the session to its TTL. The library does not tell a session's
//! password, so that another process cannot go on with it: it opens a new one, and what it writes again moves there.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use zookeeper_client::{Error as ZkError, SessionState};

use super::call::{Failed, Shared};
use super::failure::Failure;
use super::held::Lease;
use super::link::SILENCE;
use crate::store::backoff::Backoff;
use crate::store::{Result, Session, SessionKeeper, SessionLost};

impl Shared {
    /// Opens a session: its handle, and the future that keeps it alive.
    pub(super) async fn open(
        self: &Arc<Self>,
        ttl: Duration,
    ) -> Result<(Session, impl Future<Output = ()> + Send + 'static)> {
        // A session that was opened without our knowing holds nothing and ends by itself: asking again does no harm.
        let (client, sent) = self
            .call("open session", "", |_, _| async move {
                let sent = Instant::now();
                let connector = self.links.access.connector().with_detached().with_fail_eagerly();
                let connector = connector.with_session_timeout(ttl).with_connection_timeout(SILENCE);
                let client =
                    Box::pin(connector.connect(&self.links.ensemble())).await.map_err(Failure::of)?;
                Ok((client, sent))
            })
            .await?;
        let granted = client.session_timeout();
        if granted < ttl {
            tracing::warn!(
                asked = %humantime::format_duration(ttl),
                granted = %humantime::format_duration(granted),
                "ZooKeeper forgets sessions sooner than asked for; raise its `maxSessionTimeout`"
            );
        }
        let id = client.session_id().0.cast_unsigned();
        let lease = Arc::new(Lease::new(client));
        self.leases.add(id, &lease);
        let (session, keeper) = Session::new(id, granted);
        Ok((session, Arc::clone(self).renew(id, lease, granted, sent, keeper)))
    }

    /// Another handle of a session of this process.
    pub(super) async fn adopt(
        self: &Arc<Self>,
        id: u64,
        ttl: Duration,
    ) -> Result<(Session, impl Future<Output = ()> + Send + 'static)> {
        let Some(lease) = self.leases.get(id) else {
            let failure = Failure::session_lost(
                "this process did not open it, and a session of ZooKeeper stays with its process; open another",
            );
            let failed = Failed { failure, endpoint: self.url.clone() };
            return Err(self.error("adopt session", &format!("{id:x}"), failed));
        };
        let sent = Instant::now();
        let prefix = &self.prefix;
        self.call_under("adopt session", &format!("{id:x}"), id, |client, _| async move {
            client.check_stat(prefix).await.map_err(Failure::of)
        })
        .await?;
        let (session, keeper) = Session::new(id, ttl);
        Ok((session, Arc::clone(self).renew(id, lease, ttl, sent, keeper)))
    }

    /// Ends a session. The library closes a session with its last handle only, and not one that is detached: so another
    /// connection takes it over, is dropped, and tells when it has said goodbye.
    pub(super) async fn close(&self, id: u64, lease: Option<Arc<Lease>>) -> Result<()> {
        let Some(client) = lease.and_then(|lease| lease.take()) else {
            return Ok(());
        };
        let session = client.into_session();
        self.call("close session", &format!("{id:x}"), |_, sent| {
            let connector = self.links.access.connector().with_session(session.clone()).with_fail_eagerly();
            async move {
                let closed = sent.write(async {
                    let client = Box::pin(connector.connect(&self.links.ensemble())).await?;
                    let mut state = client.state_watcher();
                    drop(client);
                    while !state.changed().await.is_terminated() {}
                    Ok::<_, ZkError>(())
                });
                match closed.await {
                    // It has ended meanwhile.
                    Ok(()) | Err(ZkError::SessionExpired) => Ok(()),
                    Err(error) => Err(Failure::of(error)),
                }
            }
        })
        .await
    }

    async fn renew(
        self: Arc<Self>,
        id: u64,
        lease: Arc<Lease>,
        ttl: Duration,
        mut renewed: Instant,
        keeper: SessionKeeper,
    ) {
        let mut backoff = Backoff::new();
        let mut next = renewed + ttl / 3;
        loop {
            tokio::select! {
                () = keeper.closed() => return,
                () = ended(&lease) => {}
                () = tokio::time::sleep_until(next) => {}
            }
            let Some(client) = lease.client() else {
                return self.lose(id, &keeper, "the store says that it does not exist".to_owned());
            };
            let (end, sent) = (renewed + ttl, Instant::now());
            let answer = tokio::select! {
                () = keeper.closed() => return,
                answer = timeout_at(end, client.check_stat(&self.prefix)) => answer,
            };
            let reason = match answer {
                // A refusal is an answer too.
                Ok(Ok(_) | Err(ZkError::NoAuth)) => {
                    renewed = sent;
                    next = sent + ttl / 3;
                    backoff = Backoff::new();
                    continue;
                }
                Ok(Err(error)) => Failure::of(error).reason,
                Err(_) => Failure::timeout(end.saturating_duration_since(sent)).reason,
            };
            let now = Instant::now();
            if now >= end {
                let ttl = humantime::format_duration(ttl);
                return self.lose(id, &keeper, format!("not renewed within its TTL of {ttl}: {reason}"));
            }
            tracing::debug!(session = format!("{id:x}"), reason, "a renewal failed");
            next = (now + backoff.next()).min(end);
        }
    }

    fn lose(&self, id: u64, keeper: &SessionKeeper, reason: String) {
        let session = format!("{id:x}");
        tracing::warn!(session, reason, "the session at the store is lost");
        self.metrics.session_lost();
        self.leases.remove(id);
        keeper.lose(SessionLost { session, store: self.url.clone(), reason });
    }
}

/// Completes when ZooKeeper or its client says that the session is over.
async fn ended(lease: &Lease) {
    let Some(client) = lease.client() else { return };
    let mut state = client.state_watcher();
    drop(client);
    while state.peek_state() != SessionState::Closed && !state.changed().await.is_terminated() {}
}
