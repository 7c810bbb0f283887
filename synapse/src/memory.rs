//! The last known good on disk: what an agent serves that starts while the store is out of reach.
//!
//! One JSON file, replaced whole (written beside, synchronised, renamed), a few seconds after a change and at the end. Saving
//! never takes more than a twentieth of a core: the pause grows with the time that the last one took. A file that cannot be
//! read is set aside, said once, and the agent starts without.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::model::{Instance, Node, ServiceName, ServiceSettings};
use nerve::store::Revision;
use nerve::tasks::Tasks;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::Metrics;
use crate::catalog::{Catalog, Change, Service};
use crate::watch::Recalled;
use crate::watch::store::Handle as Watcher;

const FORMAT: u32 = 1;
/// The shortest pause between two saves.
const PAUSE: Duration = Duration::from_secs(3);
/// The pause in terms of the last save's duration.
const PAUSE_FACTOR: u32 = 20;

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    format: u32,
    saved: SystemTime,
    revision: u64,
    nodes: Vec<Arc<Node>>,
    services: Vec<SavedService>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedService {
    name: ServiceName,
    settings: Arc<ServiceSettings>,
    instances: Vec<Arc<Instance>>,
}

/// Reads what was saved at `file`; `None` if nothing was, or nothing that can be used.
#[must_use]
pub fn recall(file: &Path) -> Option<Recalled> {
    match read(file) {
        Ok(saved) => {
            let services = saved.services.len();
            tracing::info!(file = %file.display(), services, "recalled the catalog of an earlier run");
            Some(saved.into())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let aside = file.with_extension("unreadable");
            let moved = std::fs::rename(file, &aside);
            tracing::warn!(file = %file.display(), %error, set_aside = moved.is_ok(), "the saved catalog cannot be used; starting without");
            None
        }
    }
}

fn read(file: &Path) -> io::Result<Saved> {
    let saved: Saved = serde_json::from_reader(BufReader::new(File::open(file)?))?;
    if saved.format != FORMAT {
        return Err(io::Error::other(format!(
            "it is of format {}, this version reads {FORMAT}",
            saved.format
        )));
    }
    Ok(saved)
}

impl From<Saved> for Recalled {
    fn from(saved: Saved) -> Self {
        let nodes = saved.nodes.into_iter().map(Change::PutNode);
        let services = saved.services.into_iter().flat_map(|service| {
            let settings = Change::PutSettings(service.name, service.settings);
            std::iter::once(settings).chain(service.instances.into_iter().map(Change::PutInstance))
        });
        let changes = nodes.chain(services).collect();
        Self { changes, revision: Revision(saved.revision), saved: saved.saved }
    }
}

/// Saves `catalog` to `file` whenever it has changed, and once more at the end.
pub fn keep(file: PathBuf, catalog: Catalog, watcher: Watcher, metrics: Metrics, tasks: &Tasks) {
    let stop = tasks.stop_token();
    tasks.spawn_restarted("memory", move || {
        let keeper = Keeper {
            file: Arc::new(file.clone()),
            catalog: catalog.clone(),
            watcher: watcher.clone(),
            metrics: metrics.clone(),
            failing: false,
        };
        keeper.run(stop.clone())
    });
}

struct Keeper {
    file: Arc<PathBuf>,
    catalog: Catalog,
    watcher: Watcher,
    metrics: Metrics,
    failing: bool,
}

impl Keeper {
    async fn run(mut self, stop: tokio_util::sync::CancellationToken) {
        // An empty catalog that nothing has filled yet must not replace what is on disk.
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.watcher.filled() => {}
        }
        let mut subscription = self.catalog.subscribe();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = subscription.changed() => {}
            }
            let begun = Instant::now();
            self.save().await;
            let pause = PAUSE.max(begun.elapsed() * PAUSE_FACTOR);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.save().await;
    }

    async fn save(&mut self) {
        let (file, catalog, revision) =
            (Arc::clone(&self.file), self.catalog.clone(), self.watcher.status().revision);
        let saved = tokio::task::spawn_blocking(move || write(&file, &catalog, revision)).await;
        let result = saved.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        self.metrics.memory_saves.with_label_values(&[if result.is_ok() { "ok" } else { "failed" }]).inc();
        match result {
            Ok(()) if self.failing => {
                tracing::info!(file = %self.file.display(), "the catalog is saved again")
            }
            Err(ref error) if !self.failing => tracing::warn!(
                file = %self.file.display(), %error,
                "cannot save the catalog: after a restart while the store is out of reach, this node would know nothing; check state_dir"
            ),
            _ => {}
        }
        self.failing = result.is_err();
    }
}

fn write(file: &Path, catalog: &Catalog, revision: Revision) -> io::Result<()> {
    let services = catalog.services();
    let saved = Saved {
        format: FORMAT,
        saved: SystemTime::now(),
        revision: revision.0,
        nodes: catalog.nodes(),
        services: services.iter().map(|service| saved_service(service)).collect(),
    };
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let beside = file.with_extension("tmp");
    let mut out = BufWriter::new(File::create(&beside)?);
    serde_json::to_writer(&mut out, &saved)?;
    out.flush()?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(&beside, file)
}

fn saved_service(service: &Service) -> SavedService {
    SavedService {
        name: service.name.clone(),
        settings: Arc::clone(&service.settings),
        instances: service.endpoints.iter().map(|e| Arc::clone(&e.instance)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_recalled() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("deep/catalog.json");
        let (catalog, mut writer) = Catalog::new();
        let instance: Instance = serde_json::from_str(
            r#"{"service":"web","id":"1","node":"a","address":"192.0.2.1","port":80,"health":"critical","health_reason":"refused"}"#,
        )
        .unwrap();
        let settings: ServiceSettings =
            serde_json::from_str(r#"{"published":[{"port":8080}],"newer":1}"#).unwrap();
        writer.apply([
            Change::PutInstance(Arc::new(instance)),
            Change::PutSettings(ServiceName::new("web").unwrap(), Arc::new(settings)),
        ]);
        write(&file, &catalog, Revision(7)).unwrap();
        let recalled = recall(&file).unwrap();
        assert_eq!(recalled.revision, Revision(7));
        let (again, mut writer) = Catalog::new();
        writer.apply(recalled.changes);
        let (one, other) = (catalog.service("web").unwrap(), again.service("web").unwrap());
        assert_eq!((&one.settings, &one.endpoints), (&other.settings, &other.endpoints));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("catalog.json");
        for text in [
            "{",
            r#"{"format":9,"saved":{"secs_since_epoch":0,"nanos_since_epoch":0},"revision":1,"nodes":[],"services":[]}"#,
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(recall(&file), None);
            assert!(!file.exists() && file.with_extension("unreadable").exists());
        }
    }
}
