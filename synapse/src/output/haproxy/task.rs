//! The loop: from changes of the catalog to what HAProxy runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::hash;
use nerve::model::ServiceName;
use tokio::time::Instant;

use super::config::Config;
use super::disk::{Disk, Outcome};
use super::metrics::Failure;
use super::peer::{Peer, Wanted};
use super::problems::several;
use super::reload::{Pace, Version, View, needed};
use super::remains::Remains;
use super::render::{Frame, Mark};
use super::roster::{Roster, Terms};
use super::server::{Refused, Server};
use super::{Handle, Means, shell, state};
use crate::catalog::{Freshness, ServiceChanges};

/// HAProxy is looked at so often, whatever happens: somebody may have restarted it, and connections of servers that have gone end.
const LOOK: Duration = Duration::from_secs(5);
/// The file is looked at, and the state file written, so often.
const SAVE: Duration = Duration::from_secs(60);
/// How long a reload may take.
const RELOAD_WITHIN: Duration = Duration::from_secs(60);
/// How long after a reload the new process may take to answer; how often it, or the store's first word, is looked for.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_FOR: Duration = Duration::from_millis(100);

/// Never ends.
pub(super) async fn follow(means: Means, handle: Handle) {
    means.watcher.filled().await;
    let (mut changes, mut configs) = (means.catalog.subscribe(), handle.config.subscribe());
    let mut output = Output::new(means, handle);
    let config = configs.borrow_and_update().clone();
    output.configure(config).await;
    loop {
        let next = output.work().await;
        tokio::select! {
            changed = changes.changed() => output.note(&changed),
            // The sender is the handle's, which is there yet.
            _ = configs.changed() => {
                let config = configs.borrow_and_update().clone();
                output.configure(config).await;
            }
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

/// One service's section.
#[derive(Debug, Default)]
struct Entry {
    roster: Roster,
    servers: Vec<Server>,
    text: String,
    refused: Vec<Refused>,
}

struct Output {
    means: Means,
    handle: Handle,
    config: Option<Arc<Config>>,
    frame: Frame,
    terms: Terms,
    entries: Vec<Entry>,
    by_service: HashMap<ServiceName, Vec<usize>>,
    /// Sections to be made anew.
    dirty: BTreeSet<usize>,
    /// How often servers that HAProxy knows got other options.
    options: u64,
    /// What the file is to hold, and a number for it.
    text: String,
    text_number: u64,
    /// Has something changed since it was made?
    is_stale: bool,
    peers: Vec<Peer>,
    disk: Disk,
    pace: Pace,
    /// What HAProxy was last reloaded with, or was seen to run.
    reloaded: Option<Version>,
    /// Until when the process that was reloaded may take to show it.
    awaited: Option<(Instant, Mark)>,
    /// When HAProxy, and when the disk, is looked at next, whatever happens.
    look_at: Instant,
    save_at: Instant,
}

impl Output {
    fn new(means: Means, handle: Handle) -> Self {
        let terms = Terms {
            weights: false,
            max_id: 1,
            seed: 0,
            remembered_for: Duration::ZERO,
            keeps: false,
            confirmed: false,
        };
        Self {
            means,
            handle,
            config: None,
            frame: Frame::default(),
            terms,
            entries: Vec::new(),
            by_service: HashMap::new(),
            dirty: BTreeSet::new(),
            options: 0,
            text: String::new(),
            text_number: 0,
            is_stale: true,
            peers: Vec::new(),
            disk: Disk::default(),
            pace: Pace::default(),
            reloaded: None,
            awaited: None,
            look_at: Instant::now(),
            save_at: Instant::now(),
        }
    }

    /// From now on this holds. Servers of services that stay keep their numbers.
    async fn configure(&mut self, config: Option<Arc<Config>>) {
        let before = self.config.take();
        let Some(config) = config else {
            self.entries.clear();
            self.by_service.clear();
            self.handle.problems.clear_where(|_| true);
            self.handle.metrics.pending.set(0);
            self.handle.metrics.left.set(0);
            return;
        };
        let mut known: BTreeMap<String, Roster> = match (&before, &config.state_file_path) {
            (None, Some(path)) => state::recall(path).await,
            _ => BTreeMap::new(),
        };
        let same_file =
            before.as_ref().is_some_and(|before| before.config_file_path == config.config_file_path);
        let mut remains = Remains::default();
        if let Some(path) = config.config_file_path.as_ref().filter(|_| !same_file) {
            self.disk = Disk::default();
            remains = self.disk.look(path).await.map(Remains::of).unwrap_or_default();
            self.options = remains.mark.map_or(self.options, |mark: Mark| mark.options);
        }
        let entries = std::mem::take(&mut self.entries);
        for (service, entry) in before.iter().flat_map(|before| &before.services).zip(entries) {
            known.insert(service.name.as_str().to_owned(), entry.roster);
        }
        self.by_service.clear();
        for (at, service) in config.services.iter().enumerate() {
            let mut roster = known.remove(service.name.as_str()).unwrap_or_default();
            remains.fill(&mut roster, service.backend().as_str(), &service.config);
            self.entries.push(Entry { roster, ..Entry::default() });
            self.by_service.entry(service.service.clone()).or_default().push(at);
        }
        self.frame = Frame::of(&config);
        self.terms = Terms {
            weights: config.use_nerve_weights,
            max_id: config.max_server_id.get(),
            seed: match config.server_order_seed {
                Some(seed) => seed.cast_unsigned(),
                None => hash::of(self.means.node.as_str()),
            },
            remembered_for: config.state_file_ttl,
            keeps: config.state_file_path.is_some(),
            confirmed: self.terms.confirmed,
        };
        self.dirty = (0..self.entries.len()).collect();
        self.is_stale = true;
        let sockets = config.socket_file_path.iter().filter(|_| config.do_socket);
        self.peers = sockets.map(|path| Peer::new(path)).collect();
        self.config = Some(config);
        let refused = self.frame.refused.clone();
        self.tell_refused(&refused);
    }

    /// These services have changed.
    fn note(&mut self, changes: &ServiceChanges) {
        let ours = changes.iter().filter_map(|service| self.by_service.get(service));
        self.dirty.extend(ours.flatten());
    }

    /// Does what is to be done now, and tells when to look again.
    async fn work(&mut self) -> Instant {
        let Some(config) = self.config.clone() else { return Instant::now() + SAVE };
        let now = Instant::now();
        if now >= self.look_at {
            self.look_at = now + LOOK;
            self.peers.iter_mut().for_each(Peer::mark_unsettled);
        }
        let is_due = now >= self.save_at;
        if is_due {
            self.save_at = now + SAVE;
            let (terms, now) = (&self.terms, SystemTime::now());
            let over = self.entries.iter().enumerate().filter(|(_, entry)| entry.roster.is_over(terms, now));
            self.dirty.extend(over.map(|(at, _)| at));
        }
        if !self.terms.confirmed && *self.means.catalog.freshness() == Freshness::Live {
            self.terms.confirmed = true;
            self.dirty.extend(0..self.entries.len());
        }
        self.render(&config);
        if is_due {
            self.save(&config).await;
        }
        self.tell(&config).await;
        let file = self.write(&config).await;
        let reload = self.reload(&config).await;
        let confirmed = (!self.terms.confirmed).then(|| Instant::now() + LOOK_FOR * 3);
        [file, reload, confirmed].into_iter().flatten().fold(self.look_at, Instant::min)
    }

    /// Makes the sections anew that have changed.
    fn render(&mut self, config: &Config) {
        let now = SystemTime::now();
        let dirty = std::mem::take(&mut self.dirty);
        let mut news = Vec::new();
        for &at in &dirty {
            let (Some(service), Some(entry)) = (config.services.get(at), self.entries.get_mut(at)) else {
                continue;
            };
            if service.config.disabled {
                continue;
            }
            let found = self.means.catalog.service(service.service.as_str());
            let built = entry.roster.build(found.as_deref(), &service.config, &self.terms, now);
            self.options += u64::from(built.options_changed);
            entry.text =
                self.frame.services.get(at).map(|sections| sections.text(&built.servers)).unwrap_or_default();
            entry.servers = built.servers;
            let refused = built.refused;
            news.extend(refused.iter().filter(|one| !entry.refused.contains(one)).cloned());
            entry.refused = refused;
        }
        if dirty.is_empty() {
            return;
        }
        self.is_stale = true;
        for peer in &mut self.peers {
            peer.mark(dirty.iter().copied());
        }
        self.tell_refused(&news);
    }

    fn mark(&self) -> Mark {
        Mark { lines: self.frame.lines, options: self.options }
    }

    fn tell_refused(&self, news: &[Refused]) {
        for refused in news {
            self.handle.metrics.refused(refused.reason);
        }
        let all = self.frame.refused.iter().chain(self.entries.iter().flat_map(|entry| &entry.refused));
        let all: Vec<String> = all.map(|refused| format!("{}: {}", refused.what, refused.reason)).collect();
        if all.is_empty() {
            self.handle.problems.clear("refused");
        } else {
            self.handle.problems.set("refused", several(&all));
        }
    }

    /// Tells HAProxy, at each of its sockets, what can be told.
    async fn tell(&mut self, config: &Config) {
        let Self { peers, entries, frame, handle, awaited, .. } = self;
        let Handle { problems, metrics, .. } = handle;
        let wanted = config.services.iter().zip(entries.iter()).zip(&frame.services);
        let wanted: Vec<Option<Wanted<'_>>> = wanted
            .map(|((service, entry), sections)| {
                let (backend, added) = (service.backend().as_str(), &sections.added);
                (!service.config.disabled).then_some(Wanted { backend, servers: &entry.servers, added })
            })
            .collect();
        let (mut silent, mut refused) = (Vec::new(), Vec::new());
        for peer in peers.iter_mut() {
            if let Err(error) = peer.tell(&wanted, metrics).await {
                silent.push(error.to_string());
            }
            refused.extend(peer.refused.values().cloned());
        }
        metrics.left.set(i64::try_from(peers.iter().map(Peer::left).sum::<usize>()).unwrap_or(i64::MAX));
        if silent.is_empty() {
            problems.clear("socket");
        } else if awaited.is_none() {
            // While it is being reloaded nobody need answer.
            let news =
                format!("{}; what it runs is not known, and it is reloaded for any change", several(&silent));
            if problems.set("socket", news) {
                metrics.failed(Failure::Socket);
            }
        }
        if refused.is_empty() {
            problems.clear("command");
        } else {
            problems.set("command", format!("it refuses {}", several(&refused)));
        }
    }

    /// Writes the file; when to try again.
    async fn write(&mut self, config: &Config) -> Option<Instant> {
        if !config.do_writes {
            return None;
        }
        let is_new = self.is_stale;
        if is_new {
            if let Some(then) = self.disk.waits_until(Instant::now()) {
                return Some(then);
            }
            let sections = self.entries.iter().map(|entry| entry.text.as_str());
            self.text = self.frame.text(self.mark(), sections);
            (self.text_number, self.is_stale) = (hash::of(&self.text), false);
        }
        match self.disk.put(&self.text, is_new, config, &self.handle.metrics).await {
            Ok(Outcome::Current) => {
                self.handle.problems.clear("write");
                None
            }
            Ok(Outcome::Later(then)) => Some(then),
            Err(error) => {
                // The same file may be refused in other words, such as the number of the process that refuses it.
                if is_new {
                    self.handle.problems.set("write", error);
                } else {
                    self.handle.problems.keep("write", error);
                }
                self.disk.again()
            }
        }
    }

    /// Reloads HAProxy where nothing else helps; when to look at that again.
    async fn reload(&mut self, config: &Config) -> Option<Instant> {
        let wanted = Version { mark: self.mark(), text: self.text_number };
        let views: Vec<View> = self.peers.iter().map(Peer::view).collect();
        let reason = needed(wanted, self.reloaded, &views);
        self.handle.metrics.pending.set(i64::from(reason.is_some()));
        let now = Instant::now();
        if let Some((until, mark)) = self.awaited {
            // Where nobody answers, that is another problem.
            let is_over = now >= until && views.iter().all(|view| *view == View::Silent);
            if is_over || self.peers.iter().all(|peer| peer.shows(mark)) {
                self.awaited = None;
                self.pace.succeeded();
                self.handle.problems.clear("reload");
            } else if now < until {
                self.peers.iter_mut().for_each(Peer::mark_unsettled);
                return Some(now + LOOK_FOR);
            } else {
                self.awaited = None;
                self.pace.failed(now);
                self.handle.metrics.failed(Failure::Unchanged);
                let command = config.reload_command.as_deref().unwrap_or_default();
                let told = format!(
                    "{command:?} ended well, and {ANSWERS_WITHIN:?} later HAProxy does not run its new file"
                );
                self.handle.problems.set("reload", told);
            }
        }
        let Some(reason) = reason else {
            self.handle.problems.clear("reload");
            if !self.is_stale && !views.is_empty() && !views.contains(&View::Silent) {
                // Whoever started it: should nobody answer any more, that alone is no reason.
                self.reloaded = Some(wanted);
            }
            return None;
        };
        let command = config.reload_command.as_deref().filter(|_| config.do_reloads && config.do_writes);
        let Some(command) = command else {
            self.handle.problems.set("reload", format!("it has to be reloaded by somebody else: {reason}"));
            return None;
        };
        if self.is_stale || !self.disk.has(&self.text) {
            // It would start from the file, which is not what is wanted yet.
            return None;
        }
        if let Some(then) = self.pace.waits_until(now) {
            return Some(then);
        }
        tracing::info!(reason = reason.as_str(), "reloading HAProxy: {reason}");
        self.pace.begin(now, config.restart_interval, config.restart_jitter, chance());
        match shell::run(command, RELOAD_WITHIN).await {
            Ok(()) => {
                self.handle.metrics.reloaded(reason);
                self.reloaded = Some(wanted);
                self.awaited = Some((Instant::now() + ANSWERS_WITHIN, wanted.mark));
                self.peers.iter_mut().for_each(Peer::expect_another);
                Some(Instant::now())
            }
            Err(error) => {
                self.handle.metrics.failed(Failure::Reload);
                self.pace.failed(Instant::now());
                self.handle.problems.set("reload", format!("it cannot be reloaded: {error}"));
                self.pace.waits_until(Instant::now())
            }
        }
    }

    /// From time to time: the state file, and a look at what is on disk.
    async fn save(&mut self, config: &Config) {
        if let Some(path) = &config.config_file_path {
            let was_ours = self.disk.has(&self.text);
            let _ = self.disk.look(path).await;
            if was_ours && !self.disk.has(&self.text) {
                tracing::warn!(file = %path.display(), "somebody has changed HAProxy's configuration; it is written again");
            }
        }
        let Some(path) = &config.state_file_path else { return };
        let services = config.services.iter().zip(&self.entries);
        let rosters = services.map(|(service, entry)| (service.name.as_str(), &entry.roster));
        match state::save(path, rosters).await {
            Ok(()) => self.handle.problems.clear("state file"),
            Err(error) => {
                self.handle.metrics.failed(Failure::StateFile);
                let told = format!("the state file {} cannot be written: {error}", path.display());
                self.handle.problems.set("state file", told);
            }
        }
    }
}

/// From 0 to 1023, another one each time.
fn chance() -> u16 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    u16::try_from(RandomState::new().build_hasher().finish() % 1024).unwrap_or(0)
}
