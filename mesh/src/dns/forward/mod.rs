//! Names outside the domain: asked of an upstream, kept for a while, relayed as they came.
//!
//! One question is on its way once, however many ask it (a forwarding loop ends here too: its second round waits for
//! its first). What waits is bounded, and what is beyond gets SERVFAIL at once. The lock here is never taken on the way
//! of a name of the domain.

mod answer;
mod cache;
mod resolv_conf;
mod upstream;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use nerve::tasks::Tasks;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

pub(super) use answer::{Client, Relayed, serv_fail};
use cache::Cache;
pub(super) use resolv_conf::Source;
use upstream::{Exchange, Failure};

use super::config::Limits;
use super::metrics::{Forwarded, Metrics, Refusal};
use super::wire::{Question, flag};

/// What makes two questions the same: the name without regard to case, type and class, and the bits that change an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    question: Question,
    flags: u16,
    dnssec_ok: bool,
}

impl Key {
    fn of(client: &Client) -> Self {
        Self {
            question: client.question.lower_case(),
            flags: client.flags & (flag::CHECKING_DISABLED | flag::AUTHENTIC_DATA),
            dnssec_ok: client.edns == Some(true),
        }
    }
}

type Told = Result<Arc<Relayed>, Failure>;

/// Whom to ask, in the order of preference. Replaced when resolv.conf changes.
#[derive(Debug, Default)]
pub(super) struct Servers(ArcSwap<Vec<SocketAddr>>);

impl Servers {
    pub(super) fn list(&self) -> Arc<Vec<SocketAddr>> {
        self.0.load_full()
    }

    /// Tells whether they are others than before.
    pub(super) fn replace(&self, servers: Vec<SocketAddr>) -> bool {
        let changed = **self.0.load() != servers;
        self.0.store(Arc::new(servers));
        changed
    }
}

/// Asks upstreams. Clones are handles of the same.
#[derive(Debug, Clone)]
pub(super) struct Forwarder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    servers: Arc<Servers>,
    /// The place of the server that answered last.
    preferred: AtomicUsize,
    exchange: Exchange,
    state: Mutex<State>,
    permits: Arc<Semaphore>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    cache: Cache,
    on_their_way: HashMap<Key, watch::Receiver<Option<Told>>>,
}

/// What comes of a question at once.
pub(super) enum Start {
    /// It is known.
    Known(Arc<Relayed>),
    /// It is on its way.
    Waiting(Waiting),
    /// It is not asked.
    Refused(Refusal),
}

/// A question on its way. Dropping it frees its place; the answer is kept for the next who asks.
pub(super) struct Waiting {
    told: watch::Receiver<Option<Told>>,
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

impl Forwarder {
    pub(super) fn new(limits: &Limits, servers: Arc<Servers>, tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        let state = State { cache: Cache::new(limits.cache_entries), on_their_way: HashMap::new() };
        Self(Arc::new(Inner {
            servers,
            preferred: AtomicUsize::new(0),
            exchange: Exchange { timeout: limits.upstream_timeout, metrics: Arc::clone(&metrics) },
            state: Mutex::new(state),
            permits: Arc::new(Semaphore::new(limits.forwards_in_flight.min(Semaphore::MAX_PERMITS))),
            tasks,
            metrics,
        }))
    }

    /// Looks into the cache, joins the same question on its way, or sends it on its way.
    pub(super) fn start(&self, client: &Client) -> Start {
        let inner = &self.0;
        let key = Key::of(client);
        let mut state = inner.lock();
        if let Some(known) = state.cache.get(&key, Instant::now()) {
            inner.metrics.forwarded.inc(Forwarded::CacheHit);
            return Start::Known(known);
        }
        if inner.servers.list().is_empty() {
            return Start::Refused(Refusal::NoUpstream);
        }
        let Ok(permit) = Arc::clone(&inner.permits).try_acquire_owned() else {
            return Start::Refused(Refusal::TooManyForwards);
        };
        inner.metrics.forwards_in_flight.inc();
        let told = match state.on_their_way.get(&key) {
            Some(told) => {
                inner.metrics.forwarded.inc(Forwarded::Joined);
                told.clone()
            }
            None => {
                let (tell, told) = watch::channel(None);
                state.on_their_way.insert(key.clone(), told.clone());
                let asking = Asking { inner: Arc::clone(inner), key, question: client.question.clone() };
                inner.tasks.spawn("dns forward", async move {
                    let outcome = asking.ask().await;
                    tell.send_replace(Some(outcome));
                });
                told
            }
        };
        Start::Waiting(Waiting { told, metrics: Arc::clone(&inner.metrics), _permit: permit })
    }
}

impl Waiting {
    /// The answer, or what to say to the client instead.
    pub(super) async fn told(mut self) -> Result<Arc<Relayed>, String> {
        match self.told.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(relayed))) => Ok(Arc::clone(relayed)),
            Ok(Some(Err(failure))) => Err(failure.to_string()),
            // The task that asked panicked; the owner of tasks has logged it.
            Ok(None) | Err(_) => {
                Err("asking the upstream failed within this program; see its log".to_owned())
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.metrics.forwards_in_flight.dec();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question on its way to the upstreams; takes itself off the list of those however it ends.
struct Asking {
    inner: Arc<Inner>,
    key: Key,
    question: Question,
}

impl Asking {
    async fn ask(&self) -> Told {
        let inner = &self.inner;
        let servers = inner.servers.list();
        let preferred = inner.preferred.load(Ordering::Relaxed);
        let mut last = Err(Failure::NoUpstream);
        // A single server is asked twice, since a datagram may be lost; of many no more than three, since the client waits.
        for nth in 0..servers.len().clamp(2, 3) {
            let at = (preferred + nth) % servers.len().max(1);
            let Some(&server) = servers.get(at) else { break };
            match inner.exchange.ask(server, &self.question, self.key.flags, self.key.dnssec_ok).await {
                Ok(relayed) if relayed.is_conclusive() => {
                    inner.preferred.store(at, Ordering::Relaxed);
                    inner.metrics.forwarded.inc(Forwarded::Answered);
                    let relayed = Arc::new(relayed);
                    inner.lock().cache.put(self.key.clone(), &relayed);
                    return Ok(relayed);
                }
                Ok(relayed) => last = Ok(Arc::new(relayed)),
                // A server's own failure tells more than another's silence.
                Err(_) if last.is_ok() => {}
                Err(failure) => {
                    tracing::debug!(%server, %failure, "upstream did not answer");
                    last = Err(failure);
                }
            }
        }
        inner.metrics.forwarded.inc(match &last {
            Ok(_) => Forwarded::UpstreamFailed,
            Err(Failure::Timeout { .. }) => Forwarded::Timeout,
            Err(Failure::Unreachable { .. } | Failure::NoUpstream) => Forwarded::Unreachable,
        });
        last
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        state.on_their_way.remove(&self.key);
        self.inner.metrics.cache_entries.set(i64::try_from(state.cache.len()).unwrap_or(i64::MAX));
    }
}
