//! What watchers found, on disk: what an agent begins with while a place is out of reach.
//!
//! One JSON file for all of them, replaced whole a moment after a change. What is kept is of a place: a watcher that is sent elsewhere
//! does not begin with the servers of where it was.
//! Files of format 1, in which a watcher had one service and did not say which, are read as well.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nerve::model::ServiceName;
use nerve::tasks::Tasks;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::lock::lock;
use super::place::{Copies, Services};
use super::server::Server;
use crate::whole_file;

const FORMAT: u32 = 2;
/// What earlier versions wrote.
const OF_ONE_SERVICE: u32 = 1;
/// After a change it is waited so long for others.
const PAUSE: Duration = Duration::from_secs(1);
/// The largest file that is read or written.
const MOST: u64 = 64 * 1024 * 1024;

/// What all watchers found. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    found: Mutex<BTreeMap<String, Found>>,
    /// It differs from what is on disk.
    unsaved: AtomicBool,
    changed: Notify,
}

/// What one of them found.
#[derive(Debug, Clone)]
pub(super) struct Findings {
    memory: Memory,
    watcher: Arc<str>,
    place: String,
    /// Of the one service that it fills, if it is one.
    service: Option<ServiceName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    place: String,
    #[serde(default)]
    services: Services,
    /// Of format 1: those of the one service of the watcher.
    #[serde(default, skip_serializing)]
    servers: Vec<Server>,
}

#[derive(Debug, Deserialize)]
struct Saved {
    format: u32,
    watchers: BTreeMap<String, Found>,
}

#[derive(Debug, Serialize)]
struct Saving<'a> {
    format: u32,
    watchers: &'a BTreeMap<String, Found>,
}

impl Memory {
    /// What an earlier run kept in `file`.
    pub(super) fn recalled_from(file: &Path) -> Self {
        let memory = Self::default();
        match read(file) {
            Ok(found) => *lock(&memory.0.found) = found,
            Err(error) => {
                tracing::warn!(file = %file.display(), error, "what watchers found cannot be read; starting without");
            }
        }
        memory
    }

    /// Keeps what is found from now on in `file`, until the tasks end.
    pub(super) fn keep_in(&self, file: PathBuf, tasks: &Tasks) {
        let (memory, stop) = (self.clone(), tasks.stop_token());
        tasks.spawn_restarted("watchers' memory", move || memory.clone().keep(file.clone(), stop.clone()));
    }

    /// The part of a watcher of a place, and of the one service that it fills, if it is one.
    pub(super) fn of(&self, watcher: &str, place: String, service: Option<&ServiceName>) -> Findings {
        Findings { memory: self.clone(), watcher: watcher.into(), place, service: service.cloned() }
    }

    async fn keep(self, file: PathBuf, stop: CancellationToken) {
        let mut failing = false;
        loop {
            let is_changed = stop.run_until_cancelled(self.0.changed.notified()).await.is_some();
            if is_changed {
                let _ = stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
            }
            if self.0.unsaved.swap(false, Ordering::AcqRel) {
                let error = self.save(&file).await.err();
                if let Some(error) = error.as_ref().filter(|_| !failing) {
                    tracing::warn!(file = %file.display(), error, "what watchers found cannot be saved; check state_dir");
                }
                failing = error.is_some();
            }
            if !is_changed {
                return;
            }
        }
    }

    async fn save(&self, file: &Path) -> Result<(), String> {
        let (found, file) = (lock(&self.0.found).clone(), file.to_owned());
        let write = move || whole_file::write(&file, MOST, &Saving { format: FORMAT, watchers: &found });
        let written = tokio::task::spawn_blocking(write).await.map_err(|panic| panic.to_string());
        written
            .and_then(|written| written.map_err(|error| error.to_string()))
            .inspect_err(|_| self.0.change())
    }
}

impl Shared {
    fn change(&self) {
        self.unsaved.store(true, Ordering::Release);
        self.changed.notify_one();
    }
}

impl Findings {
    /// What an earlier run found there.
    pub(super) fn recalled(&self) -> Services {
        let found = lock(&self.memory.0.found);
        let of_place = found.get(&*self.watcher).filter(|found| found.place == self.place);
        let Some(Found { services, servers, .. }) = of_place.cloned() else { return Services::new() };
        let Some(service) = &self.service else { return services };
        // The place is what counts, whatever it filled before.
        let copies = services.into_values().next().unwrap_or(Copies { servers, published: Vec::new() });
        if copies == Copies::default() {
            return Services::new();
        }
        Services::from([(service.clone(), copies)])
    }

    /// It found these.
    pub(super) fn keep(&self, services: Services) {
        let now = Found { place: self.place.clone(), services, servers: Vec::new() };
        let mut found = lock(&self.memory.0.found);
        if found.get(&*self.watcher) != Some(&now) {
            found.insert((*self.watcher).to_owned(), now);
            self.memory.0.change();
        }
    }

    /// The watcher is no more.
    pub(super) fn forget(&self) {
        let mut found = lock(&self.memory.0.found);
        // Another one of this name may have begun elsewhere.
        if found.get(&*self.watcher).is_some_and(|found| found.place == self.place) {
            found.remove(&*self.watcher);
            self.memory.0.change();
        }
    }
}

fn read(file: &Path) -> Result<BTreeMap<String, Found>, String> {
    let text = match whole_file::read(file, MOST) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.to_string()),
    };
    match serde_json::from_slice(&text) {
        Ok(Saved { format: FORMAT | OF_ONE_SERVICE, watchers }) => Ok(watchers),
        Ok(Saved { format, .. }) => Err(format!("it is of format {format}, this version reads {FORMAT}")),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Services {
        let server = |text: &str| -> Server { text.parse().unwrap() };
        let servers =
            vec![server("192.0.2.1:80"), Server { name: Some("a".to_owned()), ..server("a.example:80") }];
        let published = vec!["8080".parse().unwrap()];
        Services::from([("web".parse().unwrap(), Copies { servers, published })])
    }

    #[tokio::test]
    async fn what_was_found_at_a_place_is_recalled_for_that_place() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("deep/watchers.json");
        let of = |memory: &Memory, watcher: &str, place: &str| memory.of(watcher, place.to_owned(), None);
        let tasks = Tasks::new();
        let memory = Memory::recalled_from(&file);
        memory.keep_in(file.clone(), &tasks);
        // It has begun.
        tokio::task::yield_now().await;
        assert_eq!(of(&memory, "one", "x").recalled(), Services::new());
        of(&memory, "one", "x").keep(found());
        of(&memory, "two", "y").keep(found());
        of(&memory, "two", "z").forget();
        tasks.shutdown().await;
        let tasks = Tasks::new();
        let memory = Memory::recalled_from(&file);
        memory.keep_in(file.clone(), &tasks);
        // It has begun.
        tokio::task::yield_now().await;
        assert_eq!(of(&memory, "one", "x").recalled(), found());
        assert_eq!(of(&memory, "one", "elsewhere").recalled(), Services::new());
        assert_eq!(of(&memory, "two", "y").recalled(), found());
        of(&memory, "two", "y").forget();
        tasks.shutdown().await;
        assert_eq!(read(&file).unwrap().len(), 1);
        for bad in ["{", "{\"format\": 9, \"watchers\": {}}"] {
            std::fs::write(&file, bad).unwrap();
            assert!(read(&file).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_an_earlier_version_kept_is_of_the_one_service_of_its_watcher() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("watchers.json");
        let servers = serde_json::to_value(&found().values().next().unwrap().servers).unwrap();
        let text = serde_json::json!({"format": 1, "watchers": {"one": {"place": "x", "servers": servers}}});
        std::fs::write(&file, text.to_string()).unwrap();
        let memory = Memory::recalled_from(&file);
        let of = |service: &str| memory.of("one", "x".to_owned(), Some(&service.parse().unwrap())).recalled();
        let [(service, copies)] = of("web").into_iter().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((service.as_str(), copies.servers.len()), ("web", 2));
        memory.of("one", "x".to_owned(), None).keep(found());
        assert_eq!(of("web"), found());
        // It fills another service since.
        assert_eq!(of("api").into_keys().next().unwrap().as_str(), "api");
        memory.of("one", "x".to_owned(), None).keep(Services::new());
        assert_eq!(of("web"), Services::new());
    }
}
