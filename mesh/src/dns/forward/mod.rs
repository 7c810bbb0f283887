//! Names outside the domain: asked of an upstream, kept for a while, relayed as they came.
//!
//! One question is on its way once, however many ask it (a forwarding loop ends here too: its second round waits for
//! its first). What waits is bounded, and what is beyond gets SERVFAIL at once, or what was known before. The locks here are never
//! taken on the way of a name of the domain, and one of them once for a question; questions are spread over them.

mod answer;
mod ask;
mod cache;
mod health;
mod resolv_conf;
mod servers;
mod sieve;
mod special;
mod stream;
mod udp;
mod upstream;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nerve::tasks::Tasks;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};

pub(super) use answer::{Client, Given, serv_fail};
use answer::{Relayed, Remark};
use ask::Asker;
use cache::{Cache, Found};
pub(super) use resolv_conf::Source;
pub use servers::UpstreamReport;
pub(super) use servers::{Destination, Servers};
use servers::{Group, Way};
use special::Special;
use upstream::Failure;
pub(super) use upstream::Means;

use super::config::Config;
use super::metrics::{Forwarded, Metrics, Refusal};
use super::wire::{Question, flag};

/// A part of the cache is worth a lock of its own from so many answers on, and there are at most so many parts.
const WORTH_A_PART: usize = 256;
const MOST_PARTS: usize = 16;

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
            dnssec_ok: client.wants_signatures(),
        }
    }

    /// What it takes of memory besides itself, about.
    fn size(&self) -> usize {
        self.question.as_bytes().len()
    }
}

type Told = Result<Arc<Relayed>, Failure>;

/// Asks upstreams. Clones are handles of the same.
#[derive(Debug, Clone)]
pub(super) struct Forwarder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    servers: Arc<Servers>,
    asker: Asker,
    parts: Box<[Mutex<State>]>,
    hasher: RandomState,
    permits: Arc<Semaphore>,
    prefetch: bool,
    patience: Duration,
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
    Known(Given),
    /// It is on its way.
    Waiting(Waiting),
    /// It is not asked.
    Refused(Refusal),
    /// It was asked a moment ago, and nobody could answer it: why.
    Failed(String),
}

/// A question on its way. Dropping it frees its place; the answer is kept for the next who asks.
pub(super) struct Waiting {
    told: watch::Receiver<Option<Told>>,
    /// What is given where nothing better comes in time.
    stale: Option<Arc<Relayed>>,
    patience: Duration,
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

impl Forwarder {
    pub(super) fn new(config: &Config, servers: Arc<Servers>, tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        let limits = &config.limits;
        let parts = (limits.cache_entries / WORTH_A_PART).clamp(1, MOST_PARTS);
        let part = |_| {
            let (most, bytes) = (limits.cache_entries / parts, limits.cache_bytes / parts);
            Mutex::new(State {
                cache: Cache::new(most, bytes, config.serve_stale),
                on_their_way: HashMap::new(),
            })
        };
        let in_flight = limits.forwards_in_flight.min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            servers,
            asker: Asker::new(in_flight, tasks.clone(), Arc::clone(&metrics)),
            parts: (0..parts).map(part).collect(),
            hasher: RandomState::new(),
            permits: Arc::new(Semaphore::new(in_flight)),
            prefetch: config.prefetch,
            patience: limits.client_patience,
            tasks,
            metrics,
        }))
    }

    /// Looks into the cache, joins the same question on its way, or sends it on its way.
    pub(super) fn start(&self, client: &Client) -> Start {
        let (inner, key) = (&self.0, Key::of(client));
        let group = match inner.servers.table().way(key.question.name()) {
            Way::Ask(group) => group,
            Way::Here(special, apex) => return inner.here(special, client, apex),
        };
        let mut state = inner.part(&key);
        let found = inner.counted(&mut state, |cache| cache.get(&key, Instant::now()));
        let stale = match found {
            Found::Holds { answer, ask } => {
                if ask && inner.prefetch {
                    inner.ask_anew(&mut state, &group, &key);
                }
                inner.metrics.forwarded.inc(Forwarded::CacheHit);
                return Start::Known(Given::plain(answer));
            }
            Found::Stale { answer, ask: false } => return inner.stale(answer),
            Found::Failed(told) => {
                inner.metrics.forwarded.inc(Forwarded::FailedBefore);
                return match told {
                    Ok(answer) => Start::Known(Given::plain(answer)),
                    Err(failure) => Start::Failed(failure.to_string()),
                };
            }
            Found::Stale { answer, ask: true } => Some(answer),
            Found::Nothing => None,
        };
        let refusal = if group.upstreams.is_empty() {
            Refusal::NoUpstream
        } else if let Ok(permit) = Arc::clone(&inner.permits).try_acquire_owned() {
            inner.metrics.forwards_in_flight.inc();
            let told = inner.on_its_way(&mut state, group, key);
            let (patience, metrics) = (inner.patience, Arc::clone(&inner.metrics));
            return Start::Waiting(Waiting { told, stale, patience, metrics, _permit: permit });
        } else {
            Refusal::TooManyForwards
        };
        stale.map_or(Start::Refused(refusal), |answer| inner.stale(answer))
    }
}

impl Waiting {
    /// The answer, or what to say to the client instead.
    pub(super) async fn told(mut self) -> Result<Given, String> {
        let Some(stale) = self.stale.take() else {
            return self.outcome().await.map(Given::plain);
        };
        // RFC 8767 section 5: a failure is no better than what is there.
        match timeout(self.patience, self.outcome()).await {
            Ok(Ok(answer)) if answer.is_conclusive() => Ok(Given::plain(answer)),
            _ => {
                self.metrics.forwarded.inc(Forwarded::Stale);
                Ok(Given { answer: stale, remark: Some(Remark::Stale) })
            }
        }
    }

    async fn outcome(&mut self) -> Result<Arc<Relayed>, String> {
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
    fn part(&self, key: &Key) -> MutexGuard<'_, State> {
        let parts = self.parts.len() as u64;
        #[expect(clippy::cast_possible_truncation, reason = "less than the number of parts")]
        let at = (self.hasher.hash_one(key) % parts) as usize;
        // The state is whole between any two statements under the lock.
        self.parts[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the cache, and counts what it then holds.
    fn counted<T>(&self, state: &mut State, change: impl FnOnce(&mut Cache) -> T) -> T {
        let holds = |cache: &Cache| {
            [cache.len(), cache.bytes()].map(|number| i64::try_from(number).unwrap_or(i64::MAX))
        };
        let [entries, bytes] = holds(&state.cache);
        let done = change(&mut state.cache);
        let now = holds(&state.cache);
        if now != [entries, bytes] {
            self.metrics.cache_entries.add(now[0] - entries);
            self.metrics.cache_bytes.add(now[1] - bytes);
        }
        done
    }

    fn here(&self, special: Special, client: &Client, apex: usize) -> Start {
        self.metrics.forwarded.inc(Forwarded::Local);
        let remark = if special == Special::Missing { Remark::Blocked } else { Remark::Synthesized };
        match special.answer(&client.question, apex) {
            Some(answer) => Start::Known(Given { answer: Arc::new(answer), remark: Some(remark) }),
            None => Start::Failed("the answer that this program made is malformed".to_owned()),
        }
    }

    fn stale(&self, answer: Arc<Relayed>) -> Start {
        self.metrics.forwarded.inc(Forwarded::Stale);
        Start::Known(Given { answer, remark: Some(Remark::Stale) })
    }

    /// Joins the question that is on its way, or sends it.
    fn on_its_way(
        self: &Arc<Self>,
        state: &mut State,
        group: Arc<Group>,
        key: Key,
    ) -> watch::Receiver<Option<Told>> {
        if let Some(told) = state.on_their_way.get(&key) {
            self.metrics.forwarded.inc(Forwarded::Joined);
            return told.clone();
        }
        self.send(state, group, key, None)
    }

    /// Sends a question whose answer nobody waits for yet, if there is room.
    fn ask_anew(self: &Arc<Self>, state: &mut State, group: &Arc<Group>, key: &Key) {
        if group.upstreams.is_empty() || state.on_their_way.contains_key(key) {
            return;
        }
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            self.metrics.forwarded.inc(Forwarded::Prefetched);
            self.send(state, Arc::clone(group), key.clone(), Some(permit));
        }
    }

    fn send(
        self: &Arc<Self>,
        state: &mut State,
        group: Arc<Group>,
        key: Key,
        permit: Option<OwnedSemaphorePermit>,
    ) -> watch::Receiver<Option<Told>> {
        let (tell, told) = watch::channel(None);
        state.on_their_way.insert(key.clone(), told.clone());
        let asking = Asking { inner: Arc::clone(self), key };
        self.tasks.spawn("dns forward", async move {
            let outcome = asking.inner.asker.ask(&group, &asking.key).await;
            asking.keep(&outcome);
            tell.send_replace(Some(outcome));
            drop((asking, permit));
        });
        told
    }
}

/// A question on its way to the upstreams; takes itself off the list of those however it ends.
struct Asking {
    inner: Arc<Inner>,
    key: Key,
}

impl Asking {
    fn keep(&self, outcome: &Told) {
        let mut state = self.inner.part(&self.key);
        let key = self.key.clone();
        self.inner.counted(&mut state, |cache| match outcome {
            Ok(answer) if answer.is_conclusive() => cache.put(key, answer),
            failed => cache.fail(key, failed, Instant::now()),
        });
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.inner.part(&self.key).on_their_way.remove(&self.key);
    }
}
