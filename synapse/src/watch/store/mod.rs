//! The store's watch → the catalog.
//!
//! One watch over everything below the prefix: one stream is one order and one revision, so a snapshot is consistent
//! across services, instances and nodes, and reconnecting costs one round trip.
//!
//! Emptiness is suspicious: what the store does not list any more *because it was out of reach, or lost its data*, keeps
//! its traffic for the reconnect grace, marked unconfirmed. A lease that ended while the store was away cannot be told
//! from one that ended because its node died, and the nodes need a moment to come back; a connection to an instance that
//! really is gone fails at once and is made elsewhere. Settings that a wiped store lost were deleted by nobody: they are
//! kept and written back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nerve::model::ServiceName;
use nerve::store::{self, Entry, Expect, Key, Path, Revision, SnapshotCause, Store, Swap, Watch, WatchEvent};
use nerve::tasks::Tasks;
use tokio::sync::watch as signal;
use tokio::time::Instant;

use super::Recalled;
use super::record::{self, Refused};
use crate::Metrics;
use crate::catalog::{Catalog, Change, Freshness, Writer};

/// A break shorter than this cannot have ended a lease: deletes after it mean what they say.
const HARMLESS_BREAK: Duration = Duration::from_secs(2);
/// Agents write back lost settings at a moment of their own within this, so that one does and the others find it done.
const RESTORE_WITHIN: Duration = Duration::from_secs(1);

/// How the watcher judges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How long what the store lost keeps its traffic after a reconnection. Longer than the session TTL of the agents
    /// and the moment that they need to register again.
    pub reconnect_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { reconnect_grace: Duration::from_secs(15) }
    }
}

/// How it stands with the watcher.
#[derive(Debug, Clone)]
pub struct Status {
    /// Is the store within reach?
    pub connected: bool,
    /// Since when it is so.
    pub since: SystemTime,
    /// When the store last told of a change.
    pub last_change: Option<SystemTime>,
    /// The revision up to which the catalog is true.
    pub revision: Revision,
    /// Records that stand in the store and cannot be used, with the reason.
    pub refused: Vec<(String, String)>,
    /// The last error of the store.
    pub last_error: Option<String>,
}

/// The watcher, for whoever looks at it. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    status: Arc<Mutex<Status>>,
    filled: signal::Receiver<bool>,
}

impl Handle {
    /// How it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Completes when the catalog has something to say: from memory, or the store's first snapshot. Cancel-safe.
    pub async fn filled(&self) {
        // An error means that the watcher is gone, and with it the agent.
        let _ = self.filled.clone().wait_for(|filled| *filled).await;
    }
}

/// Starts the watcher with what memory recalls of an earlier life.
#[must_use]
pub fn start(
    config: Config,
    store: Arc<dyn Store>,
    writer: Writer,
    recalled: Option<Recalled>,
    metrics: Metrics,
    tasks: &Tasks,
) -> Handle {
    let (watcher, handle) = Watcher::new(config, store, writer, recalled, metrics, tasks);
    // One watcher over restarts: it is the only writer, and what it dooms must not be forgotten.
    let watcher = Arc::new(tokio::sync::Mutex::new(watcher));
    let stop = tasks.stop_token();
    tasks.spawn_restarted("store watcher", move || {
        let (watcher, stop) = (Arc::clone(&watcher), stop.clone());
        async move {
            let mut watcher = watcher.lock().await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = watcher.run() => {}
            }
        }
    });
    handle
}

struct Watcher {
    catalog: Catalog,
    writer: Writer,
    config: Config,
    store: Arc<dyn Store>,
    metrics: Metrics,
    tasks: Tasks,
    status: Arc<Mutex<Status>>,
    filled: signal::Sender<bool>,
    /// The revision that the memory on disk was true at, until the first snapshot.
    recalled: Option<Revision>,
    disconnected: Option<Instant>,
    /// Until then a delete may be the store's fault.
    suspicious_until: Option<Instant>,
    /// What the store no longer lists, and when it goes.
    doomed: HashMap<Key, Instant>,
    /// Records that stand in the store and cannot be used: said once each.
    refused: HashMap<Path, Refused>,
}

impl Watcher {
    fn new(
        config: Config,
        store: Arc<dyn Store>,
        mut writer: Writer,
        recalled: Option<Recalled>,
        metrics: Metrics,
        tasks: &Tasks,
    ) -> (Self, Handle) {
        let status = Arc::new(Mutex::new(Status {
            connected: false,
            since: SystemTime::now(),
            last_change: None,
            revision: Revision::default(),
            refused: Vec::new(),
            last_error: None,
        }));
        let (filled, seen_filled) = signal::channel(recalled.is_some());
        let recalled = recalled.map(|recalled| {
            writer.apply(recalled.changes);
            writer.set_freshness(Freshness::Stale {
                since: recalled.saved,
                reason: format!("{} has not answered yet; this is from the memory on disk", store.url()),
            });
            metrics.stale.set(1);
            recalled.revision
        });
        let watcher = Self {
            catalog: writer.catalog(),
            writer,
            config,
            store,
            metrics,
            tasks: tasks.clone(),
            status: Arc::clone(&status),
            filled,
            recalled,
            disconnected: None,
            suspicious_until: None,
            doomed: HashMap::new(),
            refused: HashMap::new(),
        };
        (watcher, Handle { status, filled: seen_filled })
    }

    async fn run(&mut self) {
        let mut watch: Watch = self.store.watch(&Path::root());
        loop {
            let next_doom = self.doomed.values().min().copied();
            tokio::select! {
                event = watch.next() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                () = sleep_until(next_doom) => self.drop_doomed(),
            }
        }
    }

    fn handle(&mut self, event: WatchEvent) {
        let timer = self.metrics.apply.start_timer();
        match event {
            WatchEvent::Snapshot { entries, revision, cause } => self.snapshot(&entries, revision, cause),
            WatchEvent::Changes(changes) => self.changes(changes),
            WatchEvent::Disconnected(error) => self.disconnected(&error),
            WatchEvent::Resumed => self.connected("resumed without a gap"),
        }
        timer.observe_duration();
        self.metrics.note_size(&self.catalog);
        self.metrics.unconfirmed.set(i64::try_from(self.doomed.len()).unwrap_or(i64::MAX));
    }

    fn disconnected(&mut self, error: &store::Error) {
        self.disconnected.get_or_insert_with(Instant::now);
        self.metrics.stale.set(1);
        self.with_status(|status| {
            if status.connected {
                status.since = SystemTime::now();
            }
            status.connected = false;
            status.last_error = Some(error.to_string());
        });
        // Before the first snapshot and without memory there is nothing to be stale.
        if let Freshness::Live = *self.catalog.freshness() {
            tracing::warn!(%error, services = self.catalog.service_count(), "the store is out of reach; the last known good is served");
            self.writer
                .set_freshness(Freshness::Stale { since: SystemTime::now(), reason: error.to_string() });
        } else if let Freshness::Awaiting = *self.catalog.freshness() {
            tracing::warn!(%error, "the store is out of reach and nothing is known yet; it is tried again");
        }
    }

    fn connected(&mut self, how: &str) {
        let away = self.disconnected.take().map(|since| since.elapsed());
        if let Some(away) = away {
            tracing::info!(store = self.store.url(), away_seconds = away.as_secs(), how, "the store is back");
            if away >= HARMLESS_BREAK {
                self.suspicious_until = Some(Instant::now() + self.config.reconnect_grace);
            }
        }
        self.writer.set_freshness(Freshness::Live);
        self.metrics.stale.set(0);
        self.note_contact();
        self.with_status(|status| {
            if !status.connected {
                status.since = SystemTime::now();
            }
            status.connected = true;
        });
        self.filled.send_replace(true);
    }

    fn snapshot(&mut self, entries: &[Entry], revision: Revision, cause: SnapshotCause) {
        let cause = match (cause, self.recalled.take()) {
            (SnapshotCause::First, Some(recalled)) if revision < recalled => SnapshotCause::Reset,
            (SnapshotCause::First, Some(_)) => SnapshotCause::Resync,
            (cause, _) => cause,
        };
        self.metrics.note_snapshot(cause);
        let mut changes = Vec::with_capacity(entries.len());
        let mut listed = HashSet::with_capacity(entries.len());
        for entry in entries {
            // A record that cannot be read is still listed: its last good version stays.
            listed.extend(Key::parse(&entry.path));
            changes.extend(self.decode(entry));
        }
        self.refused.retain(|path, _| Key::parse(path).is_some_and(|key| listed.contains(&key)));
        let missing = self.missing(&listed);
        let (kept, count) = (Instant::now() + self.config.reconnect_grace, missing.len());
        let mut lost_settings = Vec::new();
        for key in missing {
            match (&key, cause) {
                (Key::Service(name), SnapshotCause::Reset) => lost_settings.push(name.clone()),
                (Key::Service(_), _) => changes.push(record::removal(&key)),
                (Key::Instance(service, id), _) => {
                    changes.push(Change::Unconfirm(service.clone(), id.clone()));
                    self.doomed.entry(key).or_insert(kept);
                }
                (Key::Node(_), _) => drop(self.doomed.entry(key).or_insert(kept)),
            }
        }
        self.doomed.retain(|key, _| !listed.contains(key));
        let different = self.writer.apply(changes);
        tracing::info!(
            store = self.store.url(),
            revision = revision.0,
            ?cause,
            entries = entries.len(),
            different,
            missing = count,
            "catalog synchronised"
        );
        self.with_status(|status| status.revision = revision);
        self.restore(lost_settings);
        if cause != SnapshotCause::First {
            self.suspicious_until = Some(kept);
        }
        self.connected("by a whole snapshot");
    }

    /// What the catalog has and a snapshot does not list.
    fn missing(&self, listed: &HashSet<Key>) -> Vec<Key> {
        let nodes = self.catalog.nodes().into_iter().map(|node| Key::Node(node.name.clone()));
        let services = self.catalog.services();
        let of_services = services.iter().flat_map(|service| {
            let settings = (!service.has_default_settings()).then(|| Key::Service(service.name.clone()));
            let instances =
                service.endpoints.iter().map(|e| Key::Instance(service.name.clone(), e.instance.id.clone()));
            settings.into_iter().chain(instances)
        });
        nodes.chain(of_services).filter(|key| !listed.contains(key)).collect()
    }

    fn changes(&mut self, changes: Vec<store::Change>) {
        let now = Instant::now();
        let suspicious = self.suspicious_until.filter(|until| *until > now);
        let mut applied = Vec::with_capacity(changes.len());
        let mut revision = None;
        for change in changes {
            match change {
                store::Change::Put(entry) => {
                    self.metrics.changes.with_label_values(&["put"]).inc();
                    revision = Some(entry.revision);
                    if let Some(key) = Key::parse(&entry.path) {
                        self.doomed.remove(&key);
                    }
                    applied.extend(self.decode(&entry));
                }
                store::Change::Delete(path) => {
                    self.metrics.changes.with_label_values(&["delete"]).inc();
                    self.refused.remove(&path);
                    let Some(key) = Key::parse(&path) else { continue };
                    match (suspicious, &key) {
                        (Some(until), Key::Instance(service, id)) => {
                            applied.push(Change::Unconfirm(service.clone(), id.clone()));
                            self.doomed.insert(key, until);
                        }
                        (Some(until), Key::Node(_)) => drop(self.doomed.insert(key, until)),
                        _ => applied.push(record::removal(&key)),
                    }
                }
            }
        }
        self.writer.apply(applied);
        self.note_contact();
        self.with_status(|status| {
            status.last_change = Some(SystemTime::now());
            status.revision = revision.unwrap_or(status.revision);
        });
    }

    fn drop_doomed(&mut self) {
        let now = Instant::now();
        let (gone, kept) =
            std::mem::take(&mut self.doomed).into_iter().partition(|(_, deadline)| *deadline <= now);
        self.doomed = kept;
        let gone: HashMap<Key, Instant> = gone;
        let removed = self.writer.apply(gone.keys().map(record::removal));
        tracing::info!(
            records = gone.len(),
            services = removed,
            "dropped what did not come back to the store within the grace period"
        );
        self.metrics.note_size(&self.catalog);
        self.metrics.unconfirmed.set(i64::try_from(self.doomed.len()).unwrap_or(i64::MAX));
    }

    fn decode(&mut self, entry: &Entry) -> Option<Change> {
        let refused = match record::decode(entry) {
            Ok((_, change)) => {
                self.refused.remove(&entry.path);
                return Some(change);
            }
            Err(refused) => refused,
        };
        self.metrics.refused.with_label_values(&[refused.as_str()]).inc();
        if refused != Refused::Unknown && self.refused.get(&entry.path) != Some(&refused) {
            tracing::warn!(path = %entry.path, reason = %refused, "a record of the store is not taken; its last good version stays");
            self.refused.insert(entry.path.clone(), refused);
            let refused =
                self.refused.iter().map(|(path, why)| (path.to_string(), why.to_string())).collect();
            self.with_status(|status| status.refused = refused);
        }
        None
    }

    /// Writes back what a store that lost its data had: whoever comes first; the others find it there.
    fn restore(&self, services: Vec<ServiceName>) {
        if services.is_empty() {
            return;
        }
        tracing::warn!(
            services = services.len(),
            "the store lost its data; the settings of services are written back from what this node knows"
        );
        let (catalog, store, restored) =
            (self.catalog.clone(), Arc::clone(&self.store), self.metrics.restored.clone());
        let stop = self.tasks.stop_token();
        self.tasks.spawn("restore settings", async move {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RESTORE_WITHIN.mul_f64(random_share())) => {}
            }
            for name in services {
                let Some(value) =
                    catalog.service(name.as_str()).and_then(|s| serde_json::to_vec(&*s.settings).ok())
                else {
                    continue;
                };
                let path = Key::Service(name.clone()).path();
                match store.compare_and_swap(&path, Expect::Absent, Some(value), None).await {
                    Ok(Swap::Done(_)) => restored.inc(),
                    Ok(Swap::Conflict(_)) => {}
                    Err(error) => {
                        tracing::warn!(service = %name, %error, "cannot write back the settings of a service")
                    }
                }
            }
        });
    }

    fn note_contact(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.metrics.last_contact.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    fn with_status(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A number in 0..1 that differs between processes; nothing secret hangs on it.
fn random_share() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let bits = u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default();
    f64::from(bits) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
