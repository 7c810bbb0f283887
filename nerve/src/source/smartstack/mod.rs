//! The source that is a configuration of SmartStack's Nerve, as it is: YAML or JSON, a main file and a directory of services.
//!
//! As Nerve, it reads when it starts and when it is told to (SIGHUP), and takes no notice of keys that it does not know.
//! Unlike Nerve, a service that is wrong is no reason to lose another: it keeps its last good version and is shown as a problem.

mod checks;
mod loose;
mod service;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use self::loose::Word;
use super::{Local, Located, Snapshot, Source, SourceProblem};
use crate::document::{Document, Errors, Problem};
use crate::tasks::Tasks;

/// So many services are read; more are refused with a problem.
const MAX_SERVICES: usize = 4096;
/// So many labels of a service are labels here, and so long, in bytes: the registration has them all.
const MAX_LABELS: usize = 60;
const MAX_LABEL: usize = 1024;
/// The file that says that somebody is alive is touched so often.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Which configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmartstackConfig {
    /// Nerve's main file.
    pub file: PathBuf,
    /// Instead of the file's `instance_id`.
    pub instance_id: Option<String>,
}

/// What a configuration of Nerve's defines. Clones share it.
#[derive(Debug, Clone)]
pub struct SmartstackSource {
    contents: Arc<Mutex<Contents>>,
    snapshots: Arc<watch::Sender<Arc<Snapshot>>>,
}

impl SmartstackSource {
    /// Reads the configuration.
    pub async fn start(config: SmartstackConfig, local: Local, tasks: &Tasks) -> Self {
        let source = Self {
            contents: Arc::new(Mutex::new(Contents::new(config, local))),
            snapshots: Arc::new(watch::Sender::new(Arc::default())),
        };
        source.reload().await;
        let contents = Arc::clone(&source.contents);
        tasks.spawn_until_stopped("heartbeat file", move || beat(Arc::clone(&contents)));
        source
    }

    /// Reads it again. What is wrong stays as it was.
    pub async fn reload(&self) {
        let contents = Arc::clone(&self.contents);
        // Off the control thread: names are looked up, and files may be on a network.
        let read = tokio::task::spawn_blocking(move || {
            let mut contents = lock(&contents);
            contents.load();
            contents.snapshot()
        });
        match read.await {
            Ok(snapshot) => drop(self.snapshots.send_replace(Arc::new(snapshot))),
            Err(error) => {
                tracing::error!(%error, "reading Nerve's configuration failed; what was read before stays")
            }
        }
    }

    /// What is wrong with a configuration, and how many instances it defines. Blocks.
    #[must_use]
    pub fn check(config: SmartstackConfig, local: Local) -> (usize, Vec<SourceProblem>) {
        let mut contents = Contents::new(config, local);
        contents.load();
        let snapshot = contents.snapshot();
        (snapshot.definitions.len(), snapshot.problems)
    }
}

impl Source for SmartstackSource {
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }
}

/// What the files said when they were last good.
#[derive(Debug)]
struct Contents {
    config: SmartstackConfig,
    local: Local,
    /// By name.
    services: BTreeMap<String, Vec<Arc<Located>>>,
    problems: Vec<SourceProblem>,
    heartbeat: Option<PathBuf>,
}

type Read = Result<(Vec<Located>, Vec<Problem>), Errors>;

/// What the main file says beside its services.
struct Globals {
    instance_id: String,
    directory: Option<PathBuf>,
    heartbeat: Option<PathBuf>,
}

impl Contents {
    fn new(config: SmartstackConfig, local: Local) -> Self {
        Self { config, local, services: BTreeMap::new(), problems: Vec::new(), heartbeat: None }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            definitions: self.services.values().flatten().cloned().collect(),
            problems: self.problems.clone(),
        }
    }

    fn load(&mut self) {
        self.problems.clear();
        if let Err(errors) = self.read_all() {
            let file = self.config.file.display().to_string();
            self.complain(file, format!("{}; what was read before stays in force", errors.summary()));
        }
    }

    fn complain(&mut self, place: String, message: String) {
        tracing::warn!(place, problem = message, "Nerve's configuration");
        self.problems.push(SourceProblem { place, message });
    }

    fn read_all(&mut self) -> Result<(), Errors> {
        let document = Document::read_yaml(&self.config.file)?;
        let (globals, unknown) = document.decode_tolerantly(|root| {
            for key in ["services", "statsd", "max_repeated_report_failures"] {
                root.allow(key);
            }
            let own = self.config.instance_id.clone().filter(|id| !id.is_empty());
            let named = root.given::<Word>("instance_id");
            let directory = root.optional::<PathBuf>("service_conf_dir");
            let heartbeat = root.optional::<PathBuf>("heartbeat_path");
            let named = named?.map(|Word(id)| id);
            let Some(instance_id) = own.or(named).filter(|id| !id.is_empty() && !id.contains('/')) else {
                return Err(root.invalid("instance_id", "it is missing, or has a slash", "this host's name"));
            };
            Ok(Globals { instance_id, directory, heartbeat })
        })?;
        report_unknown(&self.config.file, &unknown);
        let Globals { instance_id, directory, heartbeat } = globals;
        self.heartbeat = heartbeat;
        let parts = document.decode_parts("services", |name, section| {
            service::read(section, name, &instance_id, &self.local)
        })?;
        let main = self.config.file.clone();
        let mut read: BTreeMap<String, (PathBuf, Read)> =
            parts.into_iter().map(|(name, part)| (name, (main.clone(), part))).collect();
        let mut is_whole = true;
        if let Some(directory) = directory {
            // As it is for Nerve: from where the process runs.
            match list(&directory) {
                Ok(files) => {
                    let files = files.into_iter().map(|(name, file)| {
                        let service = self.read_file(&file, &name, &instance_id);
                        (name, (file, service))
                    });
                    read.extend(files);
                }
                Err(error) => {
                    is_whole = false;
                    let place = directory.display().to_string();
                    self.complain(
                        place,
                        format!("it cannot be listed ({error}); its services stay as they were"),
                    );
                }
            }
        }
        if is_whole {
            self.services.retain(|name, _| read.contains_key(name));
        }
        let excess = read.len().saturating_sub(MAX_SERVICES);
        if excess > 0 {
            let message =
                format!("{excess} services more than the {MAX_SERVICES} that are read are left out");
            self.complain(main.display().to_string(), message);
        }
        for (name, (file, service)) in read.into_iter().take(MAX_SERVICES) {
            self.take(name, &file, service);
        }
        Ok(())
    }

    fn read_file(&self, file: &Path, name: &str, instance_id: &str) -> Read {
        let document = Document::read_yaml(file)?;
        document.decode_tolerantly(|root| service::read(root, name, instance_id, &self.local))
    }

    fn take(&mut self, name: String, file: &Path, read: Read) {
        match read {
            Ok((located, unknown)) => {
                report_unknown(file, &unknown);
                self.services.insert(name, located.into_iter().map(Arc::new).collect());
            }
            Err(errors) => {
                let kept = if self.services.contains_key(&name) {
                    "its last good version stays in force"
                } else {
                    "nothing of it is in force"
                };
                self.complain(file.display().to_string(), format!("{}; {kept}", errors.summary()));
            }
        }
    }
}

/// Said, for a key may be mistyped; and no more, for real files have keys of other programs.
fn report_unknown(file: &Path, unknown: &[Problem]) {
    if unknown.is_empty() {
        return;
    }
    let keys: Vec<&str> = unknown.iter().map(|problem| problem.key.as_str()).collect();
    tracing::warn!(file = %file.display(), keys = keys.join(", "), "keys of Nerve's configuration that mean nothing here");
}

/// The files of services: by the service's name, which is the file's.
fn list(directory: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let is_ours = path.extension().is_some_and(|extension| extension == "yaml" || extension == "json");
        if let (true, Some(name)) = (is_ours, path.file_stem().and_then(|name| name.to_str())) {
            files.insert(name.to_owned(), path);
        }
    }
    Ok(files)
}

/// The address that a host is. Blocks while a name is looked up; of several, one that Nerve would take: IPv4.
fn resolve(host: &str) -> Result<IpAddr, String> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Ok(address);
    }
    let found =
        (host, 0).to_socket_addrs().map_err(|error| format!("{host:?} cannot be looked up: {error}"))?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    addresses.sort();
    addresses.first().copied().ok_or_else(|| format!("{host:?} has no address"))
}

/// Touches the file that a supervisor looks at.
async fn beat(contents: Arc<Mutex<Contents>>) {
    let mut failing = false;
    loop {
        let file = lock(&contents).heartbeat.clone();
        if let Some(file) = file {
            let touched = tokio::task::spawn_blocking(move || {
                let opened = OpenOptions::new().create(true).append(true).open(&file);
                opened.and_then(|opened| opened.set_modified(SystemTime::now()))
            });
            let failed = touched.await.map_err(io::Error::other).flatten().err();
            if let Some(error) = failed.as_ref().filter(|_| !failing) {
                tracing::warn!(%error, "the file of `heartbeat_path` cannot be touched");
            }
            failing = failed.is_some();
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

fn lock(contents: &Mutex<Contents>) -> std::sync::MutexGuard<'_, Contents> {
    // A panic leaves nothing half-done that the next load does not do anew.
    contents.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
