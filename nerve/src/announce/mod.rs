//! Announcements: what other discovery systems are told of this node's instances, in their own form, while those are well.
//!
//! Sources say of an instance how it is announced; the registrar knows how it is. A follower joins both, within the
//! limits that each announcement has; one writer a registry makes it so. The store and its records are nobody's business
//! here: a fleet moves from the other system to ours while both are true.

mod etcd;
mod limit;
mod worker;
mod znode;
mod zookeeper;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use self::limit::Bucket;
use self::worker::{Desired, Orders, Shared};
use crate::registrar::{self, LocalInstance, Problem, Registration};
use crate::source::{Announcement, InstanceKey, Registry};
use crate::tasks::Tasks;

/// Another agent has announced the same by then.
const HANDED_OVER_AFTER: Duration = Duration::from_secs(3);

/// Counters of the announcements. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    changes: IntCounterVec,
    failures: IntCounter,
    throttled: IntCounterVec,
    standing: IntGauge,
}

impl Metrics {
    /// New ones, and in a registry.
    ///
    /// # Errors
    /// A name is taken there already.
    pub fn register(registry: &prometheus::Registry) -> prometheus::Result<Self> {
        let changes =
            Opts::new("plexus_announcement_changes_total", "Announcements written, removed and repaired");
        let throttled = Opts::new(
            "plexus_announcement_throttled_total",
            "Changes of announcements beyond their rate limit: delayed, or only counted",
        );
        let metrics = Self {
            changes: IntCounterVec::new(changes, &["change"])?,
            failures: IntCounter::new(
                "plexus_announcement_failures_total",
                "Attempts to announce instances that failed and are made again",
            )?,
            throttled: IntCounterVec::new(throttled, &["effect"])?,
            standing: IntGauge::new(
                "plexus_announcements",
                "Instances that are to be announced to other systems",
            )?,
        };
        registry.register(Box::new(metrics.changes.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        registry.register(Box::new(metrics.throttled.clone()))?;
        registry.register(Box::new(metrics.standing.clone()))?;
        Ok(metrics)
    }
}

/// Where one writer writes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    ZooKeeper { ensemble: String },
    Etcd { server: String, path: String },
}

impl Place {
    fn of(registry: &Registry) -> Self {
        match registry {
            Registry::ZooKeeper { ensemble, .. } => Self::ZooKeeper { ensemble: ensemble.clone() },
            Registry::Etcd { server, path } => Self::Etcd { server: server.clone(), path: path.clone() },
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::ZooKeeper { ensemble } => format!("ZooKeeper at {ensemble}"),
            Self::Etcd { server, path } => format!("etcd at {server}{path}"),
        }
    }
}

/// The writers, for whoever shows or ends them. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Handle(Arc<Mutex<Writers>>);

#[derive(Debug, Default)]
struct Writers {
    at: HashMap<Place, Writer>,
    /// Nothing is to stand any more, or it is another agent's.
    over: bool,
}

#[derive(Debug)]
struct Writer {
    orders: watch::Sender<Orders>,
    shared: Arc<Shared>,
}

impl Handle {
    /// Starts announcing what `registrar` says is well. The follower ends with `followers`, the writers with `writers`; sessions with a registry last
    /// `session_ttl` without this process.
    #[must_use]
    pub fn start(
        registrar: registrar::Handle,
        session_ttl: Duration,
        metrics: Metrics,
        followers: &Tasks,
        writers: &Tasks,
    ) -> Self {
        let handle = Self::default();
        let (shared, writers) = (handle.clone(), writers.clone());
        followers.spawn_until_stopped("announcements", move || {
            let follower = Follower {
                handle: shared.clone(),
                session_ttl,
                metrics: metrics.clone(),
                writers: writers.clone(),
                known: BTreeMap::new(),
            };
            follower.run(registrar.clone())
        });
        handle
    }

    /// What is wrong with a registry.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let problem = |writer: &Writer| {
            let why = writer.shared.problem()?;
            let message = format!("instances cannot be announced there: {why}; it is tried again");
            Some(Problem { subject: writer.shared.place().to_owned(), message })
        };
        self.lock().at.values().filter_map(problem).collect()
    }

    /// Takes everything back for good. Returns when nothing stands any more, or after `within`.
    pub async fn withdraw(&self, within: Duration) {
        let mut standing = Vec::new();
        {
            let mut writers = self.lock();
            writers.over = true;
            for writer in writers.at.values() {
                writer.orders.send_modify(|orders| orders.desired = Arc::default());
                standing.push(writer.shared.standing.subscribe());
            }
        }
        let all = async {
            for standing in &mut standing {
                let _ = standing.wait_for(|standing| *standing == 0).await;
            }
        };
        if timeout(within, all).await.is_err() {
            tracing::warn!("announcements are left behind; they end with their sessions");
        }
    }

    /// Ends it for another agent that has begun to announce the same, when its announcements stand.
    pub fn hand_over(&self, tasks: &Tasks) {
        let handle = self.clone();
        handle.lock().over = true;
        tasks.spawn_while_wanted("announcements handed over", async move {
            tokio::time::sleep(HANDED_OVER_AFTER).await;
            for writer in handle.lock().at.values() {
                writer.orders.send_modify(|orders| orders.handed_over = true);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Writers> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Follower {
    handle: Handle,
    session_ttl: Duration,
    metrics: Metrics,
    writers: Tasks,
    known: BTreeMap<InstanceKey, Known>,
}

/// An instance that is announced while it is well.
struct Known {
    announcement: Arc<Announcement>,
    stands: bool,
    bucket: Bucket,
    /// It has been counted that it has to wait.
    waits: bool,
}

impl Follower {
    async fn run(mut self, registrar: registrar::Handle) {
        let mut changes = registrar.changes();
        loop {
            changes.mark_unchanged();
            let again = self.look(&registrar.instances(), Instant::now());
            self.tell();
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
        }
    }

    /// Decides what stands; answers with when something that has to wait may change.
    fn look(&mut self, instances: &[LocalInstance], now: Instant) -> Option<Instant> {
        let mut again: Option<Instant> = None;
        let mut defined = BTreeMap::new();
        for instance in instances {
            let definition = &instance.located.definition;
            let Some(announcement) = &definition.announced else { continue };
            defined.insert(definition.key.clone(), (announcement, is_well(instance)));
        }
        self.known.retain(|key, _| defined.contains_key(key));
        for (key, (announcement, is_well)) in defined {
            let known = self.known.entry(key).or_insert_with(|| Known {
                announcement: Arc::clone(announcement),
                stands: false,
                bucket: Bucket::new(&announcement.limit, now),
                waits: false,
            });
            known.announcement = Arc::clone(announcement);
            if known.stands == is_well {
                known.waits = false;
                continue;
            }
            let limit = announcement.limit;
            match known.bucket.take(&limit, now) {
                Ok(()) => known.stands = is_well,
                Err(_) if limit.only_counted => {
                    self.metrics.throttled.with_label_values(&["counted"]).inc();
                    known.stands = is_well;
                }
                Err(until) => {
                    if !std::mem::replace(&mut known.waits, true) {
                        self.metrics.throttled.with_label_values(&["delayed"]).inc();
                    }
                    again = Some(again.map_or(until, |again| again.min(until)));
                    continue;
                }
            }
            known.waits = false;
        }
        again
    }

    /// Tells each writer what is to stand; one that is new is started.
    fn tell(&self) {
        let mut places: HashMap<Place, Desired> = HashMap::new();
        for (key, known) in self.known.iter().filter(|(_, known)| known.stands) {
            let place = Place::of(&known.announcement.registry);
            places.entry(place).or_default().insert(key.clone(), Arc::clone(&known.announcement));
        }
        let standing = places.values().map(Desired::len).sum::<usize>();
        self.metrics.standing.set(i64::try_from(standing).unwrap_or(i64::MAX));
        let mut writers = self.handle.lock();
        if writers.over {
            return;
        }
        for place in places.keys() {
            if !writers.at.contains_key(place) {
                writers.at.insert(place.clone(), self.start(place));
            }
        }
        for (place, writer) in &writers.at {
            let desired = places.remove(place).unwrap_or_default();
            writer.orders.send_if_modified(|orders| {
                let is_new = *orders.desired != desired;
                if is_new {
                    orders.desired = Arc::new(desired);
                }
                is_new
            });
        }
    }

    fn start(&self, place: &Place) -> Writer {
        let (orders, told) = watch::channel(Orders::default());
        let shared = Arc::new(Shared::new(place.shown(), self.metrics.clone()));
        let (place, tells, ttl) = (place.clone(), Arc::clone(&shared), self.session_ttl);
        self.writers.spawn_while_wanted("announcements writer", async move {
            match place {
                Place::ZooKeeper { ensemble } => zookeeper::serve(ensemble, ttl, told, tells).await,
                Place::Etcd { server, path } => etcd::serve(server, path, ttl, told, tells).await,
            }
        });
        Writer { orders, shared }
    }
}

fn is_well(instance: &LocalInstance) -> bool {
    instance.report.health.is_serving()
        && !instance.draining
        && !matches!(instance.registration, Registration::Withdrawn)
}

#[cfg(test)]
mod tests;
