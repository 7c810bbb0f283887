//! What each event of the store's watch does to the catalog.
//!
//! Emptiness is suspicious: what the store does not list any more *because it was out of reach or stood still, or lost its
//! data*, keeps its traffic for the reconnect grace, marked unconfirmed. A lease that ended while the store was away cannot be told
//! from one that ended because its node died, nor from a deregistration, and the nodes need a moment to come back; a
//! connection to an instance that really is gone fails at once and is made elsewhere. What gets no traffic anyway
//! (draining, failing) is deleted at once: an agent that leaves in such a moment is obeyed if it drains first.
//! Subnets of overlay networks are kept in the same way, since whoever loses its place among the peers loses its traffic.
//! Settings, networks, rules and claims on virtual addresses are durable: their delete is someone's will, except where a whole
//! store lost its data. Those are kept and written back.
//!
//! The catalog itself is the model of what is known; beside it stand only the texts of durable records and what is
//! doomed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::store::{self, EnrolmentKey, Entry, Key, Path, Revision, SnapshotCause, Swap, WatchEvent};
use tokio::time::Instant;

use super::Config;
use super::grace::Grace;
use super::handle::{Handle, Shared};
use super::restore::Restoration;
use crate::Metrics;
use crate::catalog::{Catalog, Change, Freshness, Names, NetworkUpdate, Writer};
use crate::watch::Recalled;
use crate::watch::record::{self, Refused};

/// A break shorter than this cannot have ended a lease: deletes after it mean what they say.
const HARMLESS_BREAK: Duration = Duration::from_secs(2);
/// A store that is well answers an agent's first question within this.
const PROMPT: Duration = Duration::from_millis(500);
/// So many records of a snapshot are taken at a stretch (about two milliseconds); then others get their turn.
const STRETCH: usize = 512;
/// So many unusable records are remembered: told of once each, and shown. More are counted.
const MAX_REFUSED: usize = 1000;

/// How a snapshot is to be read.
struct Judgement {
    cause: SnapshotCause,
    /// What is missing keeps its traffic for the grace.
    keep_missing: bool,
    /// Deletes that follow may be the store's fault.
    doubt: bool,
}

/// The one writer of the catalog.
pub(super) struct Follower {
    catalog: Catalog,
    writer: Writer,
    store: String,
    reconnect_grace: Duration,
    metrics: Metrics,
    shared: Arc<Shared>,
    names: Names,
    /// The revision up to which the catalog is true, in this life or as recalled; `None` while nothing is known.
    revision: Option<Revision>,
    /// What is known is from memory: no snapshot has come.
    recalled: bool,
    away_since: Option<Instant>,
    begun: Instant,
    grace: Grace,
    restoration: Restoration,
    /// Records that stand in the store and cannot be used.
    refused: HashMap<Path, (Revision, Refused)>,
    refused_changed: bool,
}

impl Follower {
    pub(super) fn new(
        config: &Config,
        store: &str,
        writer: Writer,
        recalled: Option<Recalled>,
        metrics: Metrics,
    ) -> (Self, Handle) {
        let shared = Arc::new(Shared::new(store));
        let mut follower = Self {
            catalog: writer.catalog(),
            writer,
            store: store.to_owned(),
            reconnect_grace: config.reconnect_grace,
            metrics,
            shared: Arc::clone(&shared),
            names: Names::default(),
            revision: None,
            recalled: false,
            away_since: None,
            begun: Instant::now(),
            grace: Grace::new(config.reconnect_grace),
            restoration: Restoration::default(),
            refused: HashMap::new(),
            refused_changed: false,
        };
        follower.set_freshness(Freshness::Awaiting);
        if let Some(recalled) = recalled {
            follower.recall(recalled);
        }
        (follower, Handle(shared))
    }

    fn recall(&mut self, recalled: Recalled) {
        if recalled.store != self.store {
            tracing::warn!(
                memory_of = recalled.store,
                store = self.store,
                "the catalog on disk is of another store and is not used"
            );
            return;
        }
        self.writer.apply(recalled.changes);
        self.set_freshness(Freshness::Stale {
            since: recalled.as_of,
            reason: format!("{} has not answered yet; this is from the memory on disk", self.store),
        });
        self.revision = Some(recalled.revision);
        self.recalled = true;
        let left = recalled.doubted_until.and_then(|until| until.duration_since(SystemTime::now()).ok());
        self.grace.doubt_for(Instant::now(), left.unwrap_or_default());
        let mut notes = self.shared.notes();
        (notes.revision, notes.durable) = (recalled.revision, recalled.durable);
        notes.doubted_until = recalled.doubted_until;
        drop(notes);
        self.note_size();
        self.shared.filled.send_replace(true);
    }

    /// Takes one event.
    pub(super) async fn handle(&mut self, event: WatchEvent) {
        let timer = self.metrics.apply.start_timer();
        match event {
            WatchEvent::Snapshot { entries, revision, cause } => {
                self.snapshot(entries, revision, cause).await
            }
            WatchEvent::Changes(changes) => self.changes(changes),
            WatchEvent::Disconnected(error) => {
                self.note_doubt();
                self.disconnected(&error.to_string());
            }
            WatchEvent::Resumed => {
                if self.back("resumed without a gap") >= HARMLESS_BREAK {
                    self.doubt();
                }
                self.live();
            }
            // An agent that is started anew before it goes on is to know of it.
            WatchEvent::Silent => {
                self.note_doubt();
                self.shared.changed.send_replace(());
            }
            WatchEvent::Stalled(silence) => self.stalled(silence),
        }
        timer.observe_duration();
        self.drop_doomed();
        self.note_size();
    }

    /// The store ended: this process is about to.
    pub(super) fn ended(&mut self) {
        self.disconnected("the store was shut down");
    }

    /// The watch is a new one, and nobody is writing.
    pub(super) fn restart(&mut self) {
        self.restoration.restart();
    }

    fn disconnected(&mut self, error: &str) {
        let now = Instant::now();
        self.grace.pause(now);
        if self.away_since.replace(self.away_since.unwrap_or(now)).is_none() {
            // As at `Silent`.
            self.shared.changed.send_replace(());
        }
        self.shared.set_connected(false, Some(error.to_owned()));
        match &*self.catalog.freshness() {
            Freshness::Awaiting => {
                tracing::warn!(
                    error,
                    "the store is out of reach and nothing is known yet; it is tried again"
                );
            }
            Freshness::Live => {
                let services = self.catalog.service_count();
                tracing::warn!(error, services, "the store is out of reach; the last known good is served");
                self.set_freshness(Freshness::Stale { since: SystemTime::now(), reason: error.to_owned() });
            }
            Freshness::Stale { since, .. } => {
                if self.recalled {
                    tracing::warn!(error, "the store is out of reach; what the disk remembers is served");
                }
                let reason = if self.recalled {
                    format!("{error}; this is from the memory on disk")
                } else {
                    error.to_owned()
                };
                self.set_freshness(Freshness::Stale { since: *since, reason });
            }
        }
    }

    /// From now on a delete may be the store's fault, for the grace.
    fn doubt(&mut self) {
        self.grace.doubt(Instant::now());
        self.note_doubt();
    }

    fn note_doubt(&self) {
        self.shared.notes().doubted_until = Some(SystemTime::now() + self.reconnect_grace);
    }

    /// It did not hear those either who renew their sessions.
    fn stalled(&mut self, silence: Duration) {
        if silence >= HARMLESS_BREAK {
            tracing::info!(
                store = self.store,
                silent_seconds = silence.as_secs_f32(),
                "the store stood still for a moment"
            );
            self.doubt();
        }
    }

    /// Back at the store; tells how long it was away.
    fn back(&mut self, how: &str) -> Duration {
        self.grace.resume(Instant::now());
        let Some(since) = self.away_since.take() else { return Duration::ZERO };
        let away = since.elapsed();
        tracing::info!(store = self.store, away_seconds = away.as_secs_f32(), how, "the store is back");
        away
    }

    fn live(&mut self) {
        self.set_freshness(Freshness::Live);
        self.shared.set_connected(true, None);
        self.shared.filled.send_replace(true);
    }

    async fn snapshot(&mut self, mut entries: Vec<Entry>, revision: Revision, cause: SnapshotCause) {
        // No service is known before it is known who may talk to it.
        let rules = Key::Rules.path();
        if let Some(at) = entries.iter().position(|entry| entry.path == rules) {
            entries.swap(0, at);
        }
        let judgement = self.judge(revision, cause);
        self.metrics.note_snapshot(judgement.cause);
        if judgement.doubt {
            self.doubt();
        }
        let (total, mut different) = (entries.len(), 0);
        let mut listed = HashSet::with_capacity(total);
        let mut entries = entries.into_iter();
        while entries.len() > 0 {
            let mut changes = Vec::with_capacity(STRETCH);
            for entry in entries.by_ref().take(STRETCH) {
                listed.extend(self.take(entry, &mut changes));
            }
            different += self.writer.apply(changes);
            tokio::task::yield_now().await;
        }
        let before = self.refused.len();
        self.refused.retain(|path, _| Key::parse(path).is_some_and(|key| listed.contains(&key)));
        self.refused_changed |= self.refused.len() != before;
        let missing = self.missing(&listed);
        let (count, mut changes, mut lost) = (missing.len(), Vec::new(), Vec::new());
        for key in missing {
            match key {
                key if record::is_durable(&key) && judgement.cause == SnapshotCause::Reset => lost.push(key),
                key if self.restoration.protects(&key, revision) => {}
                key if judgement.keep_missing => self.delete(key, true, &mut changes),
                key => self.delete(key, false, &mut changes),
            }
        }
        different += self.writer.apply(changes);
        tracing::info!(
            store = self.store,
            revision = revision.0,
            cause = ?judgement.cause,
            entries = total,
            different,
            missing = count,
            "catalog synchronised"
        );
        self.lose(lost);
        self.revision = Some(revision);
        self.note_revision();
        self.shared.changed.send_replace(());
        self.live();
    }

    fn judge(&mut self, revision: Revision, cause: SnapshotCause) -> Judgement {
        let trouble = self.away_since.is_some() || self.begun.elapsed() >= PROMPT;
        let away = self.back("by a whole snapshot");
        let cause = match (cause, self.revision) {
            (_, Some(known)) if revision < known => SnapshotCause::Reset,
            // The first of this watch, not the first that is known.
            (SnapshotCause::First, Some(_)) => SnapshotCause::Resync,
            (cause, _) => cause,
        };
        // A store that answers an agent's first question, and soon, is well: it is believed more than memory, whose addresses may be
        // others' by now, unless it had been away when that was written.
        let from_memory = std::mem::take(&mut self.recalled);
        let is_believed = from_memory && !trouble && !self.grace.doubts(Instant::now());
        let keep_missing = cause == SnapshotCause::Reset || !is_believed;
        let doubt = match cause {
            SnapshotCause::Reset => true,
            SnapshotCause::Resync if !from_memory => true,
            SnapshotCause::First | SnapshotCause::Resync => away >= HARMLESS_BREAK,
        };
        Judgement { cause, keep_missing, doubt }
    }

    /// What is known and a snapshot does not list.
    fn missing(&self, listed: &HashSet<Key>) -> Vec<Key> {
        let services = self.catalog.services();
        let instances = services.iter().flat_map(|service| {
            service.all_stored().map(|e| Key::Instance(service.name.clone(), e.instance.id.clone()))
        });
        let nodes = self.catalog.nodes().into_iter().map(|node| Key::Node(node.name.clone()));
        let subnets = self.catalog.subnets().into_iter().flat_map(|(network, subnets)| {
            subnets.all().into_iter().map(move |(slot, _)| Key::Subnet(network.clone(), slot))
        });
        let notes = self.shared.notes();
        let durable = notes.durable.keys().cloned();
        let known = instances.chain(nodes).chain(subnets).chain(durable);
        known.filter(|key| !listed.contains(key)).collect()
    }

    fn changes(&mut self, changes: Vec<store::Change>) {
        let doubted = self.grace.doubts(Instant::now());
        let mut applied = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                store::Change::Put(entry) => {
                    self.metrics.changes.with_label_values(&["put"]).inc();
                    self.revision = self.revision.max(Some(entry.revision));
                    self.take(entry, &mut applied);
                }
                store::Change::Delete(path) => {
                    self.metrics.changes.with_label_values(&["delete"]).inc();
                    self.refused_changed |= self.refused.remove(&path).is_some();
                    if let Some(key) = Key::parse(&path) {
                        let keep = doubted && self.gets_traffic(&key);
                        self.delete(key, keep, &mut applied);
                    }
                }
            }
        }
        let known = !applied.is_empty();
        self.writer.apply(applied);
        self.note_revision();
        if known {
            self.shared.status().last_change = Some(SystemTime::now());
            self.shared.changed.send_replace(());
        }
    }

    /// Would anyone miss it?
    fn gets_traffic(&self, key: &Key) -> bool {
        match key {
            Key::Instance(service, id) => self
                .catalog
                .service(service.as_str())
                .is_some_and(|service| service.stored(id).is_some_and(crate::catalog::Endpoint::is_serving)),
            Key::Node(name) => self.catalog.node(name.as_str()).is_some_and(|node| !node.draining),
            Key::Subnet(..) => true,
            Key::Service(_) | Key::Vip(_) | Key::Network(_) | Key::Rules => false,
        }
    }

    /// What stood at `key` is gone, or is kept for a while.
    fn delete(&mut self, key: Key, keep: bool, changes: &mut Vec<Change>) {
        let is_durable = record::is_durable(&key);
        if keep && !is_durable {
            changes.extend(record::unconfirmation(&key));
            self.grace.doom(key, Instant::now());
            return;
        }
        self.grace.forget(&key);
        if is_durable {
            self.restoration.seen(&key);
            self.shared.notes().durable.remove(&key);
        }
        changes.push(record::removal(&key));
    }

    /// What is known to stand at `key`, as the change that confirms it; nothing where that has no mark.
    fn confirmation(&self, key: &Key) -> Option<Change> {
        match key {
            Key::Instance(service, id) => {
                let service = self.catalog.service(service.as_str())?;
                Some(Change::PutInstance(Arc::clone(&service.stored(id)?.instance)))
            }
            Key::Subnet(network, slot) => {
                let held = self.catalog.subnets_of(network)?.get(*slot)?;
                Some(Change::Network(network.clone(), NetworkUpdate::PutSubnet(*slot, held)))
            }
            Key::Node(_) | Key::Service(_) | Key::Vip(_) | Key::Network(_) | Key::Rules => None,
        }
    }

    /// Takes an entry that stands in the store; tells its key if this version knows what that means.
    fn take(&mut self, entry: Entry, changes: &mut Vec<Change>) -> Option<Key> {
        let Some(key) = Key::parse(&entry.path) else {
            if EnrolmentKey::parse(&entry.path).is_none() {
                self.metrics.unknown.inc();
            }
            return None;
        };
        if self.grace.forget(&key) {
            // Confirmed, even if what stands there cannot be read.
            changes.extend(self.confirmation(&key));
        }
        match record::decode(&key, &entry.value, &mut self.names) {
            Ok(decoded) => {
                if let Some(text) = decoded.text {
                    self.restoration.seen(&key);
                    self.shared.notes().durable.insert(key.clone(), text);
                }
                changes.push(decoded.change);
                match decoded.partly {
                    Some(partly) => self.refuse(entry, partly),
                    None => self.refused_changed |= self.refused.remove(&entry.path).is_some(),
                }
            }
            Err(refused) => self.refuse(entry, refused),
        }
        Some(key)
    }

    fn refuse(&mut self, entry: Entry, refused: Refused) {
        self.metrics.refused.with_label_values(&[refused.as_str()]).inc();
        let known = self.refused.get(&entry.path);
        if known.is_some_and(|(revision, _)| *revision == entry.revision)
            || (known.is_none() && self.refused.len() >= MAX_REFUSED)
        {
            return;
        }
        match &refused {
            Refused::Partly(_) => {
                tracing::warn!(path = %entry.path, reason = %refused, "a record of the store is taken in part")
            }
            Refused::Undecodable(_) | Refused::Mismatch(_) => {
                tracing::warn!(path = %entry.path, reason = %refused, "a record of the store is not taken; its last good version stays");
            }
        }
        self.refused.insert(entry.path, (entry.revision, refused));
        self.refused_changed = true;
    }

    fn lose(&mut self, records: Vec<Key>) {
        if !records.is_empty() {
            let records = records.len();
            tracing::warn!(
                records,
                "the store lost its data; settings of services, networks, rules and claims on virtual addresses are kept and written back"
            );
        }
        self.restoration.begin(records, Instant::now());
    }

    /// A record to be written back now.
    pub(super) fn next_lost(&mut self) -> Option<(Key, Arc<str>)> {
        loop {
            let key = self.restoration.next(Instant::now())?;
            let text = self.shared.notes().durable.get(&key).cloned();
            match text {
                Some(text) => return Some((key, text)),
                None => self.restoration.seen(&key),
            }
        }
    }

    /// A write of [`Follower::next_lost`] ended.
    pub(super) fn written_back(&mut self, key: Key, result: store::Result<Swap>) {
        let word = match result {
            Ok(Swap::Done(revision)) => {
                self.restoration.wrote(&key, revision);
                "written"
            }
            Ok(Swap::Conflict(Some(found))) => {
                self.restoration.wrote(&key, found.revision);
                "found"
            }
            Ok(Swap::Conflict(None)) => {
                self.restoration.again(key, Instant::now());
                "failed"
            }
            Err(error) => {
                tracing::warn!(path = %key.path(), %error, "cannot write back a record that the store lost");
                if error.is_retryable() {
                    self.restoration.again(key, Instant::now());
                } else {
                    self.restoration.seen(&key);
                }
                "failed"
            }
        };
        self.metrics.restored.with_label_values(&[word]).inc();
        if self.restoration.is_done() {
            tracing::info!("every record that the store lost is written back or given up");
            self.note_revision();
            self.shared.changed.send_replace(());
        }
    }

    /// Drops those whose grace is over.
    pub(super) fn drop_doomed(&mut self) {
        let due = self.grace.due(Instant::now());
        if due.is_empty() {
            return;
        }
        let services = self.writer.apply(due.iter().map(record::removal));
        tracing::info!(
            records = due.len(),
            services,
            "dropped what did not come back to the store within the grace period"
        );
        self.note_size();
        self.shared.changed.send_replace(());
    }

    /// When [`Follower::drop_doomed`] has something to do.
    pub(super) fn next_doom(&self) -> Option<Instant> {
        self.grace.next()
    }

    /// When [`Follower::next_lost`] has something to write.
    pub(super) fn next_write(&self) -> Option<Instant> {
        self.restoration.wake()
    }

    fn set_freshness(&mut self, freshness: Freshness) {
        self.metrics.note_freshness(&freshness);
        self.writer.set_freshness(freshness);
    }

    fn note_revision(&self) {
        let revision = self.revision.unwrap_or_default();
        self.shared.status().revision = revision;
        if self.restoration.is_done() {
            self.shared.notes().revision = revision;
        }
    }

    fn note_size(&mut self) {
        self.metrics.note_size(&self.catalog);
        self.metrics.note_unconfirmed(self.grace.len());
        let durable = self.shared.notes().durable.len();
        let mut status = self.shared.status();
        status.entries =
            self.catalog.endpoint_count() + self.catalog.node_count() + self.catalog.subnet_count() + durable;
        status.unconfirmed = self.grace.len();
        if std::mem::take(&mut self.refused_changed) {
            let shown = self.refused.iter().map(|(path, (_, why))| (path.to_string(), why.to_string()));
            status.refused = shown.collect();
            status.refused.sort();
        }
    }
}
