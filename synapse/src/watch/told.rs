//! What a place has told, on its way into the catalog: filtered, with names looked up, and with what stands in for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use nerve::model::{PublishedPort, ServiceName};
use tokio::sync::watch as signal;
use tokio::time::Instant;

use super::findings::Findings;
use super::lock::lock;
use super::options::{Instead, Options};
use super::pace::Pace;
use super::place::{Copies, Refused, Services, TellAll};
use super::resolve::{LEAST, Resolver};
use super::server::{Host, Server};
use crate::Metrics;
use crate::catalog::Layer;

/// So many names are looked up at a time.
const LOOK_UPS_AT_ONCE: usize = 16;
/// So much that cannot be used is shown.
const MAX_REFUSED: usize = 100;

/// How a watcher stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What it is called.
    pub watcher: Arc<str>,
    /// The service that it fills; none: those that the place names.
    pub service: Option<ServiceName>,
    /// `file`, `static`, …
    pub kind: &'static str,
    /// Where it looks.
    pub place: String,
    /// Is the place within reach?
    pub connected: bool,
    /// Did it ever say what stands there?
    pub heard: bool,
    /// Since when it is so.
    pub since: SystemTime,
    /// When it last told something new.
    pub last_change: Option<SystemTime>,
    /// How many instances it says that there are.
    pub entries: usize,
    /// The place names no server of a service; this is used instead.
    pub instead: Option<Instead>,
    /// What stands there and cannot be used, with the reason.
    pub refused: Vec<Refused>,
    /// Why it was last out of reach.
    pub last_error: Option<String>,
}

/// Where a watcher's findings go.
#[derive(Debug)]
pub(super) struct Told {
    options: Options,
    layer: Layer,
    metrics: Metrics,
    status: Arc<Mutex<Status>>,
    resolver: Resolver,
    findings: Option<Findings>,
    last: tokio::sync::Mutex<Last>,
    /// It has told something, or that nothing can be heard.
    spoke: signal::Sender<bool>,
}

#[derive(Debug, Default)]
struct Last {
    /// What counted.
    services: BTreeMap<ServiceName, Counts>,
    /// Of names, as they were looked up last.
    addresses: BTreeMap<Arc<str>, LookedUp>,
}

/// What counts of a service.
#[derive(Debug, Default)]
struct Counts {
    servers: Vec<Server>,
    published: Vec<PublishedPort>,
    instead: Option<Instead>,
    /// How many instances were said of it; `None`: it is to be said yet.
    entries: Option<usize>,
}

impl Counts {
    fn of(Copies { servers, published }: Copies) -> Self {
        Self { servers, published, ..Self::default() }
    }

    fn has_names(&self) -> bool {
        self.servers.iter().any(|server| server.host.name().is_some())
    }
}

#[derive(Debug, Clone)]
struct LookedUp {
    addresses: Vec<IpAddr>,
    until: Instant,
}

impl Told {
    pub(super) fn new(
        options: Options,
        layer: Layer,
        metrics: Metrics,
        status: Arc<Mutex<Status>>,
        findings: Option<Findings>,
    ) -> Self {
        let (last, spoke) = (tokio::sync::Mutex::default(), signal::Sender::new(false));
        let resolver = match &options.resolvers {
            None => Resolver::System,
            Some(servers) => Resolver::Servers(servers.clone()),
        };
        Self { options, layer, metrics, status, resolver, findings, last, spoke }
    }

    /// Becomes true with the first word, good or bad.
    pub(super) fn spoke(&self) -> signal::Receiver<bool> {
        self.spoke.subscribe()
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        lock(&self.status)
    }

    /// Says what an earlier run found there, or else what is configured to stand in, until the place itself speaks.
    pub(super) async fn begin(&self) {
        let mut last = self.last.lock().await;
        let recalled = self.findings.as_ref().map(Findings::recalled).unwrap_or_default();
        if recalled.is_empty() {
            let service = self.status().service.clone();
            if let Some(service) = service.filter(|_| !self.options.default_servers.is_empty()) {
                let (servers, _) = self.options.judge(Vec::new(), &[]);
                last.services.insert(service, Counts { servers, ..Counts::default() });
                self.look_up(&mut last).await;
                self.say(&mut last);
            }
            return;
        }
        let servers: usize = recalled.values().map(|copies| copies.servers.len()).sum();
        tracing::info!(watcher = %self.status().watcher, servers, "what an earlier run found is used until the place is heard");
        last.services = recalled.into_iter().map(|(service, copies)| (service, Counts::of(copies))).collect();
        self.look_up(&mut last).await;
        self.say(&mut last);
        self.status().heard = true;
        self.spoke.send_replace(true);
    }

    /// Takes over what stands there now.
    fn judge(&self, found: Services, last: &mut Last) {
        let mut before = std::mem::take(&mut last.services);
        for (service, Copies { servers, published }) in found {
            let known = before.remove(&service).unwrap_or_default();
            let (servers, instead) = self.options.judge(servers, &known.servers);
            self.note_instead(&service, known.instead, instead);
            let same = servers == known.servers && published == known.published;
            let entries = known.entries.filter(|_| same);
            last.services.insert(service, Counts { servers, published, instead, entries });
        }
        for service in before.into_keys() {
            let status = self.status();
            tracing::info!(watcher = %status.watcher, place = status.place, %service, "the place has this service no more");
            self.layer.say(&service, Vec::new(), Vec::new());
        }
    }

    fn note_instead(&self, service: &ServiceName, before: Option<Instead>, now: Option<Instead>) {
        let status = self.status();
        match now {
            Some(instead) if before != now => {
                self.metrics.watchers.emptied(&status.watcher);
                tracing::warn!(
                    watcher = %status.watcher, place = status.place, %service, %instead,
                    "the place names no server; others are used instead"
                );
            }
            None if before.is_some() => {
                tracing::info!(watcher = %status.watcher, %service, "the place names servers again");
            }
            _ => {}
        }
    }

    fn note(&self, named: usize, instead: Option<Instead>, refused: Vec<Refused>) {
        let mut status = self.status();
        if !status.connected {
            (status.connected, status.since) = (true, SystemTime::now());
            tracing::info!(watcher = %status.watcher, place = status.place, servers = named, "the place is heard");
        }
        for (what, why) in refused.iter().filter(|one| !status.refused.contains(one)) {
            tracing::warn!(watcher = %status.watcher, what, why, "a server cannot be used");
        }
        status.instead = instead;
        status.refused = refused;
        status.refused.truncate(MAX_REFUSED);
    }

    /// Looks up the names of the servers that are not known, or no longer. One that cannot be looked up keeps its addresses.
    async fn look_up(&self, last: &mut Last) {
        let now = Instant::now();
        let Last { services, addresses } = last;
        let servers = services.values().flat_map(|counts| &counts.servers);
        let names: BTreeSet<Arc<str>> = servers.filter_map(|server| server.host.name().cloned()).collect();
        addresses.retain(|name, _| names.contains(name));
        let due: Vec<Arc<str>> = names
            .into_iter()
            .filter(|name| addresses.get(name).is_none_or(|known| known.until <= now))
            .collect();
        let mut looked_up = stream::iter(due)
            .map(|name| async move {
                let found = self.resolver.addresses(&name).await;
                (name, found)
            })
            .buffer_unordered(LOOK_UPS_AT_ONCE);
        while let Some((name, found)) = looked_up.next().await {
            match found {
                Ok(found) => {
                    let found = LookedUp {
                        addresses: found.all.into_iter().collect(),
                        until: Instant::now() + found.holds,
                    };
                    addresses.insert(name, found);
                }
                Err(why) => {
                    self.refuse((name.to_string(), format!("it cannot be looked up: {why}")));
                    let before =
                        addresses.get(&name).map(|known| known.addresses.clone()).unwrap_or_default();
                    addresses.insert(name, LookedUp { addresses: before, until: Instant::now() + LEAST });
                }
            }
        }
    }

    fn refuse(&self, refused: Refused) {
        let mut status = self.status();
        if !status.refused.contains(&refused) && status.refused.len() < MAX_REFUSED {
            tracing::warn!(watcher = %status.watcher, what = refused.0, why = refused.1, "a server's name cannot be looked up");
            status.refused.push(refused);
        }
    }

    /// It says nothing any more.
    pub(super) async fn withdraw(&self) {
        for service in std::mem::take(&mut self.last.lock().await.services).into_keys() {
            self.layer.say(&service, Vec::new(), Vec::new());
        }
        let status = self.status();
        self.metrics.watchers.forget(&status.watcher);
        self.metrics.note_size(&self.layer.catalog());
    }

    /// Looks up names again when what is known of them holds no more. Never returns.
    pub(super) async fn keep_looking_up(&self) {
        loop {
            tokio::time::sleep(LEAST).await;
            let mut last = self.last.lock().await;
            let now = Instant::now();
            if last.addresses.values().any(|known| known.until <= now) {
                self.look_up(&mut last).await;
                self.say(&mut last);
            }
        }
    }

    /// Says what is new, or may be by the addresses of its names.
    fn say(&self, last: &mut Last) {
        let (mut entries, mut is_new) = (0, false);
        for (service, counts) in &mut last.services {
            if let Some(said) = counts.entries.filter(|_| !counts.has_names()) {
                entries += said;
                continue;
            }
            let Counts { servers, published, .. } = &*counts;
            let mut instances = Vec::new();
            for server in servers {
                let addresses = match &server.host {
                    Host::Address(address) => std::slice::from_ref(address),
                    Host::Name(name) => last.addresses.get(name).map_or(&[][..], |known| &known.addresses),
                };
                let at = addresses.iter().filter_map(|address| server.instance(service, *address));
                instances.extend(at.map(Arc::new));
            }
            let said = instances.len();
            is_new |= self.layer.say(service, instances, published.clone());
            counts.entries = Some(said);
            entries += said;
        }
        let mut status = self.status();
        if is_new {
            status.last_change = Some(SystemTime::now());
            tracing::debug!(watcher = %status.watcher, entries, "the catalog is changed by a watcher");
        }
        status.entries = entries;
        self.metrics.watchers.note(&status.watcher, entries, is_new);
        self.metrics.note_size(&self.layer.catalog());
    }
}

#[async_trait]
impl TellAll for Told {
    async fn found(&self, found: Services, refused: Vec<Refused>) {
        let mut last = self.last.lock().await;
        let named = found.values().map(|copies| copies.servers.len()).sum();
        self.judge(found, &mut last);
        let instead = last.services.values().find_map(|counts| counts.instead);
        self.note(named, instead, refused);
        if let Some(findings) = &self.findings {
            findings.keep(remembered(&last.services, &findings.recalled()));
        }
        self.look_up(&mut last).await;
        self.say(&mut last);
        self.status().heard = true;
        self.spoke.send_replace(true);
    }

    async fn failed(&self, error: String) {
        let mut status = self.status();
        let is_new = status.last_error.as_ref() != Some(&error) || status.connected;
        if is_new {
            tracing::warn!(
                watcher = %status.watcher, place = status.place, error,
                "nothing is heard of the place; what it last said is used"
            );
        }
        if status.connected {
            (status.connected, status.since) = (false, SystemTime::now());
        }
        self.metrics.watchers.failed(&status.watcher);
        status.last_error = Some(error);
        self.spoke.send_replace(true);
    }

    fn pace(&self) -> Pace {
        self.options.pace
    }
}

/// What is to be remembered. What stands in for nothing stands in the configuration: what was found `before` stays instead.
fn remembered(services: &BTreeMap<ServiceName, Counts>, before: &Services) -> Services {
    let copies = |(service, counts): (&ServiceName, &Counts)| {
        let Counts { servers, published, instead, .. } = counts;
        let servers = match instead {
            Some(Instead::Defaults) => before.get(service).map(|copies| copies.servers.clone()),
            Some(Instead::Previous) | None => Some(servers.clone()),
        };
        let copies = Copies { servers: servers.unwrap_or_default(), published: published.clone() };
        (service.clone(), copies)
    };
    services.iter().map(copies).collect()
}
