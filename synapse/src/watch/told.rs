//! What a place has told, on its way into the catalog: filtered, with names looked up, and with what stands in for nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nerve::model::ServiceName;
use tokio::net::lookup_host;
use tokio::sync::watch as signal;
use tokio::time::timeout;

use super::options::{Instead, Options};
use super::server::{Host, Server};
use crate::Metrics;
use crate::catalog::Layer;

/// Names are looked up again so often.
const LOOK_UP_EVERY: Duration = Duration::from_secs(30);
/// How long a look-up may take.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(5);
/// So much that cannot be used is shown.
const MAX_REFUSED: usize = 100;

/// What stands at a place and cannot be used, and why.
pub type Refused = (String, String);

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
    last: tokio::sync::Mutex<Last>,
    /// It has told something, or that nothing can be heard.
    spoke: signal::Sender<bool>,
}

#[derive(Debug, Default)]
struct Last {
    /// What counted.
    servers: Vec<Server>,
    /// Of names, as they were looked up last.
    addresses: BTreeMap<Arc<str>, Vec<IpAddr>>,
}

impl Told {
    pub(super) fn new(options: Options, layer: Layer, metrics: Metrics, status: Arc<Mutex<Status>>) -> Self {
        let (last, spoke) = (tokio::sync::Mutex::default(), signal::Sender::new(false));
        Self { options, layer, metrics, status, last, spoke }
    }

    /// Becomes true with the first word, good or bad.
    pub(super) fn spoke(&self) -> signal::Receiver<bool> {
        self.spoke.subscribe()
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        lock(&self.status)
    }

    /// What is configured to stand in does so until the place has said something.
    pub(super) async fn begin(&self) {
        let mut last = self.last.lock().await;
        if !self.options.default_servers.is_empty() {
            (last.servers, _) = self.options.judge(Vec::new(), &[]);
            self.look_up(&mut last).await;
            self.say(&last);
        }
    }

    /// All that stands there now. `refused` is what cannot be used, with the reason.
    pub(super) async fn found(&self, found: Vec<Server>, refused: Vec<Refused>) {
        let mut last = self.last.lock().await;
        let named = found.len();
        let (servers, instead) = self.options.judge(found, &last.servers);
        last.servers = servers;
        self.note(named, instead, refused);
        self.look_up(&mut last).await;
        self.say(&last);
        self.status().heard = true;
        self.spoke.send_replace(true);
    }

    /// The place is out of reach, or cannot be understood; what it last said stays.
    pub(super) fn failed(&self, error: String) {
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

    /// Looks up the names of the servers. One that cannot be looked up keeps its addresses.
    async fn look_up(&self, last: &mut Last) {
        let mut addresses = BTreeMap::new();
        for server in &last.servers {
            let Host::Name(name) = &server.host else { continue };
            if addresses.contains_key(name) {
                continue;
            }
            let looked_up = timeout(LOOK_UP_WITHIN, lookup_host((&**name, server.port.get()))).await;
            let found = looked_up.map_err(|_| format!("no answer within {LOOK_UP_WITHIN:?}"));
            let found = found.and_then(|found| found.map_err(|error| error.to_string()));
            let found: Vec<IpAddr> = match found {
                Ok(found) => found.map(|address| address.ip()).collect(),
                Err(why) => {
                    let refused = (name.to_string(), format!("it cannot be looked up: {why}"));
                    let mut status = self.status();
                    if !status.refused.contains(&refused) && status.refused.len() < MAX_REFUSED {
                        tracing::warn!(watcher = %status.watcher, %name, why, "a server's name cannot be looked up");
                        status.refused.push(refused);
                    }
                    last.addresses.get(name).cloned().unwrap_or_default()
                }
            };
            addresses.insert(Arc::clone(name), found);
        }
        last.addresses = addresses;
    }

    /// It says nothing any more.
    pub(super) fn withdraw(&self) {
        let status = self.status();
        self.layer.say(&status.service, Vec::new());
        self.metrics.watchers.forget(&status.watcher);
        self.metrics.note_size(&self.layer.catalog());
    }

    /// Looks up names from time to time. Never returns.
    pub(super) async fn keep_looking_up(&self) {
        loop {
            tokio::time::sleep(LOOK_UP_EVERY).await;
            let mut last = self.last.lock().await;
            if last.servers.iter().any(|server| matches!(server.host, Host::Name(_))) {
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
                Host::Name(name) => last.addresses.get(name).map_or(&[][..], Vec::as_slice),
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

/// Nothing is left half-done behind it by a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
