//! The source that is a configuration of SmartStack's Nerve, as it is: YAML or JSON, a main file and a directory of services.
//!
//! As Nerve, it reads when it starts and when it is told to (SIGHUP), and takes no notice of keys that it does not know.
//! Unlike Nerve, a service that is wrong is no reason to lose another: it keeps its last good version and is shown as a problem.

mod checks;
mod service;

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::{Local, Located, Snapshot, Source, SourceProblem};
use crate::document::{Document, Reported, Section};
use crate::smartstack::{Services, Word, Wrong};
use crate::tasks::Tasks;

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
    services: Services<Vec<Arc<Located>>>,
    heartbeat: Option<PathBuf>,
}

/// What the main file says beside its services.
struct Globals {
    instance_id: String,
    heartbeat: Option<PathBuf>,
}

impl Contents {
    fn new(config: SmartstackConfig, local: Local) -> Self {
        Self { config, local, services: Services::of("SmartStack's Nerve"), heartbeat: None }
    }

    fn snapshot(&self) -> Snapshot {
        let problem = |Wrong { place, message }: Wrong| SourceProblem { place, message };
        Snapshot {
            definitions: self.services.all().values().flatten().cloned().collect(),
            clients: Vec::new(),
            problems: self.services.wrong().iter().cloned().map(problem).collect(),
        }
    }

    fn load(&mut self) {
        let Self { config, local, services, heartbeat } = self;
        let globals = services.load(
            &config.file,
            Document::read_yaml,
            |root| globals(root, config.instance_id.as_ref()),
            |globals, name, section| {
                let located = service::read(section, name, &globals.instance_id, local)?;
                Ok(located.into_iter().map(Arc::new).collect())
            },
        );
        if let Some(globals) = globals {
            *heartbeat = globals.heartbeat;
        }
    }
}

fn globals(root: &mut Section<'_>, own: Option<&String>) -> Result<Globals, Reported> {
    for key in ["statsd", "max_repeated_report_failures"] {
        root.allow(key);
    }
    let named = root.given::<Word>("instance_id");
    let heartbeat = root.optional::<PathBuf>("heartbeat_path");
    let named = named?.map(|Word(id)| id);
    let own = own.filter(|id| !id.is_empty()).cloned();
    let Some(instance_id) = own.or(named).filter(|id| !id.is_empty() && !id.contains('/')) else {
        return Err(root.invalid("instance_id", "it is missing, or has a slash", "this host's name"));
    };
    Ok(Globals { instance_id, heartbeat })
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
