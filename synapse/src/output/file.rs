//! Services as files: `<service>.json`, the list of its backends that serve, as SmartStack's Synapse writes it for programs that read it.
//!
//! A file changes when what it says does, so that a program can wait for it; by renaming, so that nobody reads half of one. What a change
//! costs is the work of the services that changed. Where nothing is known of a service yet, the file of an earlier life stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nerve::model::{ServiceName, Weight};
use nerve::tasks::Tasks;
use serde::Serialize;
use tokio::sync::watch as signal;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::writing::{self, Becomes, Failure};
use crate::catalog::{Catalog, Endpoint, Service};
use crate::watch::{Watchers, store};

/// What could not be written, and what is not known yet, is looked at again so often.
const AGAIN: Duration = Duration::from_secs(2);
/// Changes that follow each other faster are written together; where writing takes longer, so long.
const PAUSE: Duration = Duration::from_millis(50);

/// Labels of a server that a watcher has found, and that are none of its place's.
const BESIDE: [&str; 3] = ["name", "id", "haproxy_server_options"];

/// Where which services are written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The directory; it need not exist.
    pub directory: PathBuf,
    /// Each with the name of its file, without the ending; `None`: all there are, by their names.
    pub services: Option<BTreeMap<ServiceName, String>>,
}

impl Target {
    /// The name of a service's file, if it has one here.
    fn file(&self, service: &ServiceName) -> Option<String> {
        match &self.services {
            Some(listed) => listed.get(service).cloned(),
            None => Some(service.to_string()),
        }
    }
}

/// The files, for whoever looks at them or changes which there are. Clones are the same.
#[derive(Debug, Clone)]
pub struct Files(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    targets: signal::Sender<Vec<Target>>,
    /// By directory.
    problems: Mutex<BTreeMap<PathBuf, String>>,
}

impl Files {
    /// Nothing is written yet.
    #[must_use]
    pub fn new(targets: Vec<Target>) -> Self {
        Self(Arc::new(Shared { targets: signal::Sender::new(targets), problems: Mutex::default() }))
    }

    /// Writes these from now on. What stands where nothing is written any more stays there.
    pub fn follow(&self, targets: Vec<Target>) {
        self.problems().retain(|directory, _| targets.iter().any(|target| target.directory == *directory));
        self.0.targets.send_if_modified(|current| {
            let changed = *current != targets;
            *current = targets;
            changed
        });
    }

    /// What cannot be written, and why.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.problems().values().cloned().collect()
    }

    /// Writes until the owner of `tasks` shuts down, from when the store's part of the catalog is known.
    pub fn keep(&self, catalog: Catalog, watchers: Watchers, store: store::Handle, tasks: &Tasks) {
        let (files, stop) = (self.clone(), tasks.stop_token());
        tasks.spawn_restarted("files of services", move || {
            let keeper =
                Keeper { files: files.clone(), catalog: catalog.clone(), watchers: watchers.clone() };
            keeper.run(store.clone(), stop.clone())
        });
    }

    fn problems(&self) -> MutexGuard<'_, BTreeMap<PathBuf, String>> {
        // Texts, which no panic leaves half-written.
        self.0.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what failed, once; `None`: it did not.
    fn note(&self, directory: &PathBuf, failure: Option<Failure>) {
        let mut problems = self.problems();
        let failure = failure.map(|Failure { path, error }| {
            format!("{} cannot be written: {error}; it is tried again", path.display())
        });
        match failure {
            Some(failure) if problems.get(directory) != Some(&failure) => {
                tracing::warn!("{failure}");
                problems.insert(directory.clone(), failure);
            }
            Some(_) => {}
            None => {
                if problems.remove(directory).is_some() {
                    tracing::info!(directory = %directory.display(), "files of services are written again");
                }
            }
        }
    }
}

struct Keeper {
    files: Files,
    catalog: Catalog,
    watchers: Watchers,
}

/// A target on its way to the disk.
struct Directory {
    target: Target,
    /// Files that were written here, by an earlier life too; `None`: their list was not read yet.
    ours: Option<BTreeSet<String>>,
    /// Files to be looked at, and whose they are; `None`: nobody's any more.
    due: BTreeMap<String, Option<ServiceName>>,
}

impl Directory {
    fn mark(&mut self, services: impl IntoIterator<Item = ServiceName>) {
        let files =
            services.into_iter().filter_map(|service| Some((self.target.file(&service)?, Some(service))));
        self.due.extend(files);
    }

    /// What an earlier life has left is looked at too.
    fn found(&mut self, ours: BTreeSet<String>) {
        for file in &ours {
            let service = self.target.services.is_none().then(|| file.parse().ok()).flatten();
            self.due.entry(file.clone()).or_insert(service);
        }
        self.ours = Some(ours);
    }

    fn waits(&self) -> bool {
        self.ours.is_none() || !self.due.is_empty()
    }
}

impl Keeper {
    async fn run(self, store: store::Handle, stop: CancellationToken) {
        // An empty catalog that nothing has filled yet must not replace what is on disk.
        if stop.run_until_cancelled(store.filled()).await.is_some() {
            self.follow(stop).await;
        }
    }

    async fn follow(self, stop: CancellationToken) {
        let (mut targets, mut changes) = (self.files.0.targets.subscribe(), self.catalog.subscribe());
        targets.mark_changed();
        let mut directories: Vec<Directory> = Vec::new();
        loop {
            let waits = directories.iter().any(Directory::waits);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = targets.changed() => {
                    directories = targets.borrow_and_update().iter().map(|target| self.begin(target)).collect();
                }
                changed = changes.changed() => {
                    directories.iter_mut().for_each(|directory| directory.mark(changed.iter().cloned()));
                }
                () = tokio::time::sleep(AGAIN), if waits => {}
            }
            let begun = Instant::now();
            for directory in directories.iter_mut().filter(|directory| directory.waits()) {
                self.write(directory).await;
            }
            let pause = tokio::time::sleep(PAUSE.max(begun.elapsed()));
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    fn begin(&self, target: &Target) -> Directory {
        let mut directory = Directory { target: target.clone(), ours: None, due: BTreeMap::new() };
        let listed = target.services.iter().flat_map(|listed| listed.keys().cloned());
        directory.mark(listed);
        directory.mark(self.catalog.services().iter().map(|service| service.name.clone()));
        directory
    }

    /// Writes what is due.
    async fn write(&self, directory: &mut Directory) {
        let path = directory.target.directory.clone();
        let Some(ours) = directory.ours.take() else {
            let of = path.clone();
            let read = tokio::task::spawn_blocking(move || writing::ours(&of)).await;
            match read.map_err(|panic| Failure::of(&path, panic)).flatten() {
                Ok(ours) => directory.found(ours),
                Err(failure) => self.files.note(&path, Some(failure)),
            }
            return;
        };
        let (unheard, is_listed) = (self.watchers.unheard(), directory.target.services.is_some());
        let (mut work, mut at_work) = (Vec::new(), BTreeMap::new());
        for (file, service) in std::mem::take(&mut directory.due) {
            let of = service.as_ref().map(|service| self.of(service, is_listed));
            let is_known = service.as_ref().is_none_or(|service| !unheard.contains(service));
            match of.unwrap_or(Of::Nobody) {
                Of::Servers(servers) => work.push((file.clone(), Of::Servers(servers))),
                // Nothing becomes of it until more is known.
                _ if !is_known => {
                    directory.due.insert(file, service);
                    continue;
                }
                none => work.push((file.clone(), none)),
            }
            at_work.insert(file, service);
        }
        let to = path.clone();
        let written = tokio::task::spawn_blocking(move || {
            // Here, for a list may be long.
            let work = work.into_iter().map(|(file, of)| (file, of.becomes())).collect();
            writing::apply(&to, ours, work)
        });
        let written = written.await;
        let failure = match written {
            Ok((ours, failure)) => {
                directory.ours = Some(ours);
                failure
            }
            // The list is read again.
            Err(panic) => Some(Failure::of(&path, panic)),
        };
        if failure.is_some() {
            // Those that were written are found to be so.
            directory.due.extend(at_work);
        }
        self.files.note(&path, failure);
    }

    fn of(&self, service: &ServiceName, is_listed: bool) -> Of {
        match self.catalog.service(service.as_str()) {
            Some(known) if known.serving().next().is_some() => Of::Servers(known),
            Some(_) => Of::NoServer,
            None if is_listed => Of::NoServer,
            None => Of::Nobody,
        }
    }
}

/// Of whom a file is.
#[derive(Debug)]
enum Of {
    /// A service with servers.
    Servers(Arc<Service>),
    /// One without.
    NoServer,
    /// No service.
    Nobody,
}

impl Of {
    fn becomes(&self) -> Becomes {
        match self {
            // Texts and numbers always have a form.
            Self::Servers(service) => {
                Becomes::Text(serde_json::to_string(&backends(service)).unwrap_or_default())
            }
            Self::NoServer => Becomes::Text("[]".to_owned()),
            Self::Nobody => Becomes::Nothing,
        }
    }
}

/// A server as Synapse tells of it.
#[derive(Debug, Serialize)]
struct Backend<'a> {
    name: Option<&'a str>,
    host: IpAddr,
    port: u16,
    /// The number that ZooKeeper gave its registration.
    id: Option<u64>,
    weight: Option<u16>,
    haproxy_server_options: Option<&'a str>,
    labels: Option<BTreeMap<&'a str, &'a str>>,
}

/// Those that serve, in the order of their ids.
fn backends(service: &Service) -> Vec<Backend<'_>> {
    // Where nobody has said a weight Synapse has none.
    let weighed = service.serving().any(|endpoint| endpoint.instance.weight != Weight::default());
    service.serving().filter_map(|endpoint| backend(endpoint, weighed)).collect()
}

fn backend(endpoint: &Endpoint, weighed: bool) -> Option<Backend<'_>> {
    let instance = &endpoint.instance;
    // Those of a watcher carry what their place says of them beside its labels.
    let is_watched = endpoint.watcher.is_some();
    let own = |label: &&str| is_watched && BESIDE.contains(label);
    let labels = instance.labels.iter().map(|(label, value)| (label.as_str(), value.as_str()));
    let labels: BTreeMap<&str, &str> = labels.filter(|(label, _)| !own(label)).collect();
    let of_place = |label: &str| instance.labels.get(label).filter(|_| is_watched).map(String::as_str);
    Some(Backend {
        name: of_place("name").or((!is_watched).then_some(instance.node.as_str())),
        host: instance.address,
        port: instance.port?.get(),
        id: of_place("id").and_then(|id| id.parse().ok()),
        weight: weighed.then_some(instance.weight.0.get()),
        haproxy_server_options: of_place("haproxy_server_options"),
        labels: (!labels.is_empty()).then_some(labels),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use nerve::document::{Document, Section};
    use nerve::model::{Instance, InstanceId};

    use super::*;
    use crate::Metrics;
    use crate::catalog::{Change, Writer};
    use crate::watch;

    fn web() -> ServiceName {
        "web".parse().unwrap()
    }

    fn instance(id: &str, more: &str) -> Arc<Instance> {
        let text = format!(
            r#"{{"service": "web", "id": "{id}", "node": "a", "address": "192.0.2.1", "port": 80{more}}}"#
        );
        Arc::new(serde_json::from_str(&text).unwrap())
    }

    /// A catalog whose services are written.
    struct World {
        catalog: Catalog,
        writer: Writer,
        watchers: Watchers,
        directory: tempfile::TempDir,
        tasks: Tasks,
    }

    impl World {
        fn new() -> Self {
            let (catalog, writer) = Catalog::new();
            let (metrics, tasks) = (Metrics::new().unwrap(), Tasks::new());
            let watchers = Watchers::new(writer.layers(), metrics, Path::new("/nowhere"), &tasks);
            Self { catalog, writer, watchers, directory: tempfile::tempdir().unwrap(), tasks }
        }

        fn target(&self, services: Option<&[(&str, &str)]>) -> Target {
            let listed = |services: &[(&str, &str)]| {
                services.iter().map(|(name, file)| (name.parse().unwrap(), (*file).to_owned())).collect()
            };
            Target { directory: self.directory.path().to_owned(), services: services.map(listed) }
        }

        /// Until its tasks are stopped.
        fn keep(&self, target: Target) -> (Files, Tasks) {
            let (files, tasks) = (Files::new(vec![target]), Tasks::new());
            let (catalog, watchers) = (self.catalog.clone(), self.watchers.clone());
            tasks.spawn(
                "files",
                Keeper { files: files.clone(), catalog, watchers }.follow(tasks.stop_token()),
            );
            (files, tasks)
        }

        /// Follows one server that is at no place, and then at one.
        fn watch(&self, place: &Path) {
            let text = format!("[[watch]]\nservice = \"web\"\nfile = \"{}\"\n", place.display());
            let read = |root: &mut Section<'_>| {
                root.list("watch", |section| watch::Config::read(section, Path::new("/")))
                    .into_iter()
                    .collect()
            };
            let configs: Vec<_> = Document::parse("x", &text).unwrap().decode(read).unwrap();
            self.watchers.follow(&configs);
        }

        async fn becomes(&self, file: &str, text: Option<&str>) {
            let path = self.directory.path().join(file);
            until(|| fs::read_to_string(&path).ok().as_deref() == text, &path).await;
        }
    }

    async fn until(holds: impl Fn() -> bool, of: &Path) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(seen.is_ok(), "{}: {:?}", of.display(), fs::read_to_string(of));
    }

    #[tokio::test]
    async fn each_service_is_the_list_of_its_backends_that_serve_and_goes_with_it() {
        let mut world = World::new();
        world.writer.apply([Change::PutInstance(instance("1", r#", "labels": {"az": "a", "name": "x"}"#))]);
        let (_files, tasks) = world.keep(world.target(None));
        let one = r#"{"name":"a","host":"192.0.2.1","port":80,"id":null,"weight":null,"haproxy_server_options":null,"labels":{"az":"a","name":"x"}}"#;
        world.becomes("web.json", Some(&format!("[{one}]"))).await;
        // One that has another weight gives all of them theirs; one that fails is not there.
        world.writer.apply([
            Change::PutInstance(instance("1", r#", "weight": 7"#)),
            Change::PutInstance(instance("2", r#", "health": "critical""#)),
            Change::PutInstance(instance("3", "")),
        ]);
        let weighed = |weight: u16| {
            format!(
                r#"{{"name":"a","host":"192.0.2.1","port":80,"id":null,"weight":{weight},"haproxy_server_options":null,"labels":null}}"#
            )
        };
        let usual = Weight::default().0.get();
        world.becomes("web.json", Some(&format!("[{},{}]", weighed(7), weighed(usual)))).await;
        let ids = ["1", "2", "3"].map(|id| Change::RemoveInstance(web(), InstanceId::new(id).unwrap()));
        world.writer.apply(ids);
        world.becomes("web.json", None).await;
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_watched_server_is_told_of_as_nerve_tells_and_a_listed_service_without_one_is_an_empty_list() {
        let world = World::new();
        let place = world.directory.path().join("place");
        let server = r#"[{"host": "192.0.2.7", "port": 81, "name": "web-07", "labels": {"az": "a", "haproxy_server_options": "backup"}}]"#;
        fs::write(&place, server).unwrap();
        world.watch(&place);
        let (_files, tasks) = world.keep(world.target(Some(&[("web", "Web_1"), ("api", "api")])));
        let told = r#"[{"name":"web-07","host":"192.0.2.7","port":81,"id":null,"weight":null,"haproxy_server_options":"backup","labels":{"az":"a"}}]"#;
        world.becomes("Web_1.json", Some(told)).await;
        world.becomes("api.json", Some("[]")).await;
        tasks.shutdown().await;
        world.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn what_an_earlier_life_has_left_stays_until_more_is_known_and_goes_with_its_service() {
        let world = World::new();
        let (_files, tasks) = world.keep(world.target(Some(&[("web", "web"), ("old", "old")])));
        world.becomes("web.json", Some("[]")).await;
        world.becomes("old.json", Some("[]")).await;
        tasks.shutdown().await;
        fs::write(world.directory.path().join("web.json"), "[1]").unwrap();
        // Its place cannot be read: nothing is known of it, be it written by itself or with all.
        let place = world.directory.path().join("place");
        world.watch(&place);
        for target in [world.target(Some(&[("web", "web"), ("new", "new")])), world.target(None)] {
            let is_listed = target.services.is_some();
            let (_files, tasks) = world.keep(target);
            world.becomes("new.json", is_listed.then_some("[]")).await;
            world.becomes("old.json", None).await;
            assert_eq!(fs::read_to_string(world.directory.path().join("web.json")).unwrap(), "[1]");
            tasks.shutdown().await;
        }
        // Then it can: there is no server.
        let (_files, tasks) = world.keep(world.target(Some(&[("web", "web")])));
        fs::write(&place, "[]").unwrap();
        world.becomes("web.json", Some("[]")).await;
        tasks.shutdown().await;
        world.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_a_problem_until_it_is() {
        let mut world = World::new();
        let blocked = world.directory.path().join("web.json");
        fs::create_dir_all(blocked.join("x")).unwrap();
        let (files, tasks) = world.keep(world.target(None));
        world.writer.apply([Change::PutInstance(instance("1", ""))]);
        until(|| files.failures().iter().any(|why| why.contains("web.json cannot be written")), &blocked)
            .await;
        fs::remove_dir_all(&blocked).unwrap();
        until(|| files.failures().is_empty() && blocked.is_file(), &blocked).await;
        // Another directory from now on; what stands in the first stays.
        let next = tempfile::tempdir().unwrap();
        let target = Target { directory: next.path().to_owned(), services: None };
        files.follow(vec![target]);
        let moved = next.path().join("web.json");
        until(|| moved.is_file() && blocked.is_file(), &moved).await;
        tasks.shutdown().await;
    }
}
