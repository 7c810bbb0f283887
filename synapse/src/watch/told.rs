//! What a place has told, on its way into the catalog: filtered, with names looked up, and with what stands in for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use nerve::model::ServiceName;
use tokio::sync::watch as signal;
use tokio::time::Instant;

use super::findings::Findings;
use super::lock::lock;
use super::options::{Instead, Options};
use super::pace::Pace;
use super::place::{Refused, Tell};
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
    /// The service that it fills.
    pub service: ServiceName,
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
    /// How many instances it says the service has.
    pub entries: usize,
    /// The place names no server; this is used instead.
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
    servers: Vec<Server>,
    /// Of names, as they were looked up last.
    addresses: BTreeMap<Arc<str>, LookedUp>,
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
            if !self.options.default_servers.is_empty() {
                (last.servers, _) = self.options.judge(Vec::new(), &[]);
                self.look_up(&mut last).await;
                self.say(&last);
            }
            return;
        }
        tracing::info!(watcher = %self.status().watcher, servers = recalled.len(), "what an earlier run found is used until the place is heard");
        last.servers = recalled;
        self.look_up(&mut last).await;
        self.say(&last);
        self.status().heard = true;
        self.spoke.send_replace(true);
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
        match instead {
            Some(instead) if status.instead != Some(instead) => {
                self.metrics.watchers.emptied(&status.watcher);
                tracing::warn!(
                    watcher = %status.watcher, place = status.place, service = %status.service, %instead,
                    "the place names no server; others are used instead"
                );
            }
            None if status.instead.is_some() => {
                tracing::info!(watcher = %status.watcher, "the place names servers again");
            }
            _ => {}
        }
        status.instead = instead;
        status.refused = refused;
        status.refused.truncate(MAX_REFUSED);
    }

    /// Looks up the names of the servers that are not known, or no longer. One that cannot be looked up keeps its addresses.
    async fn look_up(&self, last: &mut Last) {
        let now = Instant::now();
        let Last { servers, addresses } = last;
        let names: BTreeSet<Arc<str>> =
            servers.iter().filter_map(|server| server.host.name().cloned()).collect();
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
    pub(super) fn withdraw(&self) {
        let status = self.status();
        self.layer.say(&status.service, Vec::new());
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
                self.say(&last);
            }
        }
    }

    fn say(&self, last: &Last) {
        let service = self.status().service.clone();
        let mut instances = Vec::new();
        for server in &last.servers {
            let addresses = match &server.host {
                Host::Address(address) => std::slice::from_ref(address),
                Host::Name(name) => last.addresses.get(name).map_or(&[][..], |known| &known.addresses),
            };
            let at = addresses.iter().filter_map(|address| server.instance(&service, *address));
            instances.extend(at.map(Arc::new));
        }
        let entries = instances.len();
        let is_new = self.layer.say(&service, instances);
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
impl Tell for Told {
    async fn found(&self, found: Vec<Server>, refused: Vec<Refused>) {
        let mut last = self.last.lock().await;
        let named = found.len();
        let (servers, instead) = self.options.judge(found, &last.servers);
        last.servers = servers;
        self.note(named, instead, refused);
        // What stands in for nothing stands in the configuration, and need not be remembered.
        if let Some(findings) = self.findings.as_ref().filter(|_| instead.is_none()) {
            findings.keep(&last.servers);
        }
        self.look_up(&mut last).await;
        self.say(&last);
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
