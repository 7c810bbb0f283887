//! A watcher: one place, of one service or of those that it names itself, followed for as long as the agent runs.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use nerve::document::{Reported, Section};
use nerve::model::ServiceName;
use nerve::tasks::Tasks;
use serde::Serialize;
use tokio::sync::watch as signal;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::findings::{Findings, Memory};
use super::kind::{Looks, Means};
use super::lock::lock;
use super::options::Options;
use super::place::follow_directory;
use super::told::{Status, Told};
use super::zookeeper::Data;
use crate::Metrics;
use crate::catalog::{Layers, Rank};

/// The longest name of a watcher.
const MAX_NAME: usize = 64;

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// What it is called, among the watchers of this node.
    pub name: String,
    /// Where it looks, and for what.
    #[serde(flatten)]
    pub looks: Looks,
    /// What counts of what it finds.
    #[serde(flatten)]
    pub options: Options,
}

impl Config {
    /// Reads one `[[watch]]` table. Paths begin at `base`.
    ///
    /// # Errors
    /// What is wrong was reported.
    pub fn read(section: &mut Section<'_>, base: &Path) -> Result<Self, Reported> {
        let name = section.given::<String>("name");
        let looks = Looks::read(section, base);
        let options = Options::read(section);
        let (name, looks, options) = (name?, looks?, options?);
        let name = name.unwrap_or_else(|| match looks.service() {
            Some(service) => format!("{service}-{}", looks.kind()),
            None => looks.kind().to_owned(),
        });
        let is_good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_good) {
            let expected = format!("1 to {MAX_NAME} letters, digits, \"-\", \"_\" and \".\"");
            return Err(section.invalid("name", format!("{name:?} is no name of a watcher"), expected));
        }
        if looks.service().is_none() && !options.default_servers.is_empty() {
            let why = "it fills several services, each of which has servers of its own";
            return Err(section.invalid("default_servers", why, "a `service`, or none of them"));
        }
        Ok(Self { name, looks, options })
    }
}

/// Watchers, for whoever looks at them or changes them. Clones are the same.
#[derive(Debug, Clone)]
pub struct Watchers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    writer: Layers,
    metrics: Metrics,
    tasks: Tasks,
    means: Means,
    memory: Memory,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    watchers: Vec<Watcher>,
    /// How many were started so far.
    lives: u64,
}

#[derive(Debug)]
struct Watcher {
    config: Config,
    /// Among the watchers that may say something of its service.
    place: u32,
    status: Arc<Mutex<Status>>,
    spoke: signal::Receiver<bool>,
    /// Nothing is kept of what stands in the configuration.
    findings: Option<Findings>,
    /// Ended when it is dropped, and what it said with it.
    _wanted: DropGuard,
}

impl Watchers {
    /// No watchers yet. They begin with what those of an earlier run found, by what [`Watchers::keep_findings`] wrote to `memory`.
    #[must_use]
    pub fn new(writer: Layers, metrics: Metrics, memory: &Path, tasks: &Tasks) -> Self {
        Self(Arc::new(Shared {
            writer,
            metrics,
            tasks: tasks.clone(),
            means: Means::default(),
            memory: Memory::recalled_from(memory),
            running: Mutex::default(),
        }))
    }

    /// Keeps what they find in `memory`, until the tasks end.
    pub fn keep_findings(&self, memory: PathBuf, tasks: &Tasks) {
        self.0.memory.keep_in(memory, tasks);
    }

    /// Follows these from now on, of which the first goes before the next. Those that stay what they are, and where they are among
    /// the watchers of their service, go on.
    pub fn follow(&self, configs: &[Config]) {
        let mut running = lock(&self.0.running);
        let mut before: HashMap<String, Watcher> = std::mem::take(&mut running.watchers)
            .into_iter()
            .map(|watcher| (watcher.config.name.clone(), watcher))
            .collect();
        let mut places = Places::default();
        for config in configs {
            let place = places.next(config.looks.service());
            let stays = |known: &Watcher| known.place == place && known.config == *config;
            let watcher = match before.remove(&config.name) {
                Some(known) if stays(&known) => known,
                changed => {
                    // Ended with the others that do not go on.
                    before.extend(changed.map(|known| (config.name.clone(), known)));
                    running.lives += 1;
                    self.start(config, Rank { place, life: running.lives })
                }
            };
            running.watchers.push(watcher);
        }
        // What others say stands in the catalog before what these have said goes.
        for gone in before.into_values() {
            if configs.iter().all(|config| config.name != gone.config.name) {
                gone.findings.iter().for_each(Findings::forget);
            }
        }
    }

    /// The data of nodes of ZooKeeper, over the sessions that these watchers have; what was read is kept in `file`.
    #[must_use]
    pub fn data(&self, file: &Path) -> Data {
        Data::new(self.0.means.zookeeper.clone(), file, &self.0.tasks)
    }

    /// The parts of the catalog that they fill.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.0.writer
    }

    /// The services of which not everything is known, since one of their places was never heard.
    #[must_use]
    pub fn unheard(&self) -> Unheard {
        let running = lock(&self.0.running);
        let unheard = running.watchers.iter().filter(|watcher| !lock(&watcher.status).heard);
        let services = unheard.map(|watcher| watcher.config.looks.service().cloned());
        services.collect::<Option<_>>().map_or(Unheard::Any, Unheard::These)
    }

    /// Waits until each has told what stands at its place, or that it cannot be heard; for at most so long.
    pub async fn first_words(&self, within: Duration) {
        let running: Vec<_> =
            lock(&self.0.running).watchers.iter().map(|watcher| watcher.spoke.clone()).collect();
        let all = async {
            for mut spoke in running {
                let _ = spoke.wait_for(|spoke| *spoke).await;
            }
        };
        // Who has not spoken by then does so later.
        let _ = tokio::time::timeout(within, all).await;
    }

    /// How each stands, in their order.
    #[must_use]
    pub fn statuses(&self) -> Vec<Status> {
        lock(&self.0.running).watchers.iter().map(|watcher| lock(&watcher.status).clone()).collect()
    }

    fn start(&self, config: &Config, rank: Rank) -> Watcher {
        let Shared { writer, metrics, tasks, means, memory, .. } = &*self.0;
        let status = Arc::new(Mutex::new(Status {
            watcher: config.name.as_str().into(),
            service: config.looks.service().cloned(),
            kind: config.looks.kind(),
            place: config.looks.place(),
            connected: false,
            heard: false,
            since: SystemTime::now(),
            last_change: None,
            entries: 0,
            instead: None,
            refused: Vec::new(),
            last_error: None,
        }));
        let layer = writer.layer(rank, &config.name);
        let of_place = || memory.of(&config.name, config.looks.place(), config.looks.service());
        let findings = (!config.looks.is_here()).then(of_place);
        let told =
            Told::new(config.options.clone(), layer, metrics.clone(), Arc::clone(&status), findings.clone());
        let (spoke, told) = (told.spoke(), Arc::new(told));
        let (watched, wanted) = (Arc::new(config.clone()), CancellationToken::new());
        let (is_wanted, means) = (wanted.clone(), means.clone());
        tasks.spawn_until_done("watcher", move || {
            let (told, config, wanted, means) =
                (Arc::clone(&told), Arc::clone(&watched), is_wanted.clone(), means.clone());
            async move {
                let _ = wanted.run_until_cancelled(run(&config, &means, &told)).await;
                told.withdraw().await;
            }
        });
        Watcher {
            config: config.clone(),
            place: rank.place,
            status,
            spoke,
            findings,
            _wanted: wanted.drop_guard(),
        }
    }
}

/// Numbers watchers so that those of a service are in their order, and one of all services is where it stands among those of any; what
/// comes before a watcher and is of another service does not count.
#[derive(Debug, Default)]
struct Places<'a> {
    /// So many watchers of all services came before.
    of_all: u16,
    of_one: HashMap<&'a ServiceName, u16>,
}

impl<'a> Places<'a> {
    fn next(&mut self, service: Option<&'a ServiceName>) -> u32 {
        let (first, second) = match service {
            Some(service) => {
                let next = self.of_one.entry(service).or_default();
                (self.of_all, std::mem::replace(next, next.saturating_add(1).min(u16::MAX - 1)))
            }
            None => {
                let next = self.of_all.saturating_add(1);
                (std::mem::replace(&mut self.of_all, next), u16::MAX)
            }
        };
        u32::from(first) << 16 | u32::from(second)
    }
}

/// Services of which not everything is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unheard {
    /// These.
    These(HashSet<ServiceName>),
    /// It may be any: a place that names services itself was never heard.
    Any,
}

impl Unheard {
    /// Is this one of them?
    #[must_use]
    pub fn contains(&self, service: &ServiceName) -> bool {
        match self {
            Self::These(services) => services.contains(service),
            Self::Any => true,
        }
    }
}

/// Never returns.
async fn run(config: &Config, means: &Means, told: &Told) {
    let place = config.looks.open(&config.options, means);
    told.begin().await;
    tokio::select! {
        never = follow_directory(&*place, told) => match never {},
        () = told.keep_looking_up() => {}
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;
    use crate::catalog::Catalog;

    fn configs(text: &str) -> Result<Vec<Config>, String> {
        let read = |root: &mut Section<'_>| {
            root.list("watch", |section| Config::read(section, Path::new("/etc"))).into_iter().collect()
        };
        Document::parse("x", text).unwrap().decode(read).map_err(|errors| errors.to_string())
    }

    async fn becomes(catalog: &Catalog, expected: &[&str]) {
        let mut changes = catalog.subscribe();
        let shown = || -> Vec<String> {
            let web = catalog.service("web");
            let endpoints = web.iter().flat_map(|web| &web.endpoints);
            endpoints.map(|one| format!("{} {}", one.instance.id, one.watcher.as_deref().unwrap())).collect()
        };
        let until = async {
            while shown() != expected {
                changes.changed().await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(20), until).await;
        assert!(seen.is_ok(), "{:?} instead of {expected:?}", shown());
    }

    #[tokio::test]
    async fn watchers_come_go_and_change_places_and_what_they_say_with_them() {
        let (catalog, writer) = Catalog::new();
        let (metrics, tasks) = (Metrics::new().unwrap(), Tasks::new());
        let watchers = Watchers::new(writer.layers(), metrics, Path::new("/nowhere"), &tasks);
        let one =
            "[[watch]]\nservice = \"web\"\nname = \"one\"\nstatic = [\"192.0.2.1:80\", \"192.0.2.2:80\"]\n";
        let two =
            "[[watch]]\nservice = \"web\"\nname = \"two\"\nstatic = [\"192.0.2.2:80\", \"127.0.0.1:81\"]\n";
        watchers.follow(&configs(&format!("{one}{two}")).unwrap());
        becomes(&catalog, &["127.0.0.1:81 two", "192.0.2.1:80 one", "192.0.2.2:80 one"]).await;
        let since = watchers.statuses()[0].since;
        watchers.follow(&configs(&format!("{one}{}", two.replace("81", "82"))).unwrap());
        becomes(&catalog, &["127.0.0.1:82 two", "192.0.2.1:80 one", "192.0.2.2:80 one"]).await;
        assert_eq!(watchers.statuses()[0].since, since, "it goes on");
        let other = "[[watch]]\nservice = \"api\"\nstatic = [\"192.0.2.9:80\"]\n";
        watchers.follow(&configs(&format!("{other}{one}{}", two.replace("81", "82"))).unwrap());
        assert_eq!(watchers.statuses()[1].since, since, "those of other services do not matter");
        watchers.follow(&configs(&format!("{two}{one}")).unwrap());
        becomes(&catalog, &["127.0.0.1:81 two", "192.0.2.1:80 one", "192.0.2.2:80 two"]).await;
        watchers.follow(&configs(one).unwrap());
        becomes(&catalog, &["192.0.2.1:80 one", "192.0.2.2:80 one"]).await;
        watchers.follow(&[]);
        becomes(&catalog, &[]).await;
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_name_is_looked_up_and_one_that_cannot_be_costs_itself_alone() {
        let (catalog, writer) = Catalog::new();
        let (metrics, tasks) = (Metrics::new().unwrap(), Tasks::new());
        let watchers = Watchers::new(writer.layers(), metrics, Path::new("/nowhere"), &tasks);
        let text = "[[watch]]\nservice = \"web\"\nstatic = [\"no.such.invalid:80\", \"192.0.2.1:80\"]\nlabel_filters = []";
        watchers.follow(&configs(text).unwrap());
        becomes(&catalog, &["192.0.2.1:80 web-static"]).await;
        let status = watchers.statuses().remove(0);
        assert_eq!(
            (status.refused[0].0.as_str(), status.entries, status.connected),
            ("no.such.invalid", 1, true)
        );
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn default_servers_stand_in_until_the_place_is_heard() {
        let (catalog, writer) = Catalog::new();
        let (metrics, tasks) = (Metrics::new().unwrap(), Tasks::new());
        let watchers = Watchers::new(writer.layers(), metrics, Path::new("/nowhere"), &tasks);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("place");
        let text = format!(
            "[[watch]]\nservice = \"web\"\nfile = \"{}\"\ndefault_servers = [\"192.0.2.9:80\"]\n",
            file.display()
        );
        watchers.follow(&configs(&text).unwrap());
        becomes(&catalog, &["192.0.2.9:80 web-file"]).await;
        assert_eq!(watchers.unheard(), Unheard::These(HashSet::from(["web".parse().unwrap()])));
        std::fs::write(&file, "[\"192.0.2.1:80\"]").unwrap();
        becomes(&catalog, &["192.0.2.1:80 web-file"]).await;
        assert_eq!(watchers.unheard(), Unheard::These(HashSet::new()));
        tasks.shutdown().await;
    }

    #[test]
    fn watchers_of_all_services_stand_in_their_order_among_those_of_each() {
        let (web, api): (ServiceName, ServiceName) = ("web".parse().unwrap(), "api".parse().unwrap());
        let order = |of: &[Option<&ServiceName>]| {
            let of = of.to_vec();
            let mut places = Places::default();
            of.iter().map(|service| places.next(*service)).collect::<Vec<u32>>()
        };
        let all = order(&[Some(&web), None, Some(&web), Some(&api), None, Some(&api)]);
        assert!(all.iter().zip(&all[1..3]).all(|(before, after)| before < after), "{all:?}");
        assert!(all[1] < all[3] && all[3] < all[4] && all[4] < all[5], "{all:?}");
        // One of another service, before or between them, moves none of them.
        let more = order(&[Some(&api), Some(&web), None, Some(&web)]);
        assert_eq!(more[1..], all[..3]);
    }

    #[test]
    fn a_swarm_fills_all_its_services_or_one() {
        let swarm = "[[watch]]\nswarm = [\"unix:///d\"]\n";
        let all = configs(swarm).unwrap().remove(0);
        assert_eq!((all.name.as_str(), all.looks.service(), all.looks.kind()), ("swarm", None, "swarm"));
        let one = configs(&format!("{swarm}service = \"web\"\nname = \"x\"")).unwrap().remove(0);
        assert_eq!((one.name.as_str(), one.looks.service().unwrap().as_str()), ("x", "web"));
        let part = "[[watch]]\nservice = \"web\"\nmulti = \"union\"\n[[watch.part]]\nname = \"a\"\nswarm = [\"unix:///d\"]\n";
        for (text, said) in [
            (format!("{swarm}default_servers = [\"192.0.2.1:80\"]"), "it fills several services"),
            (format!("{swarm}service = \"web\"\nstatic = []"), "it names two places"),
            (part.to_owned(), "no part of several places"),
            ("[[watch]]\nswarm = []".to_owned(), "it names no manager"),
        ] {
            let told = configs(&text).unwrap_err();
            assert!(told.contains(said), "{text}: {told}");
        }
    }

    #[test]
    fn a_watcher_has_one_place_and_a_name_that_can_stand_in_a_metric() {
        for (text, said) in [
            ("service = \"web\"", "it names no place"),
            ("service = \"web\"\nfile = \"x\"\nstatic = []", "it names two places"),
            ("service = \"web\"\nfile = \"x\"\nname = \"a b\"", "is no name of a watcher"),
            ("service = \"web\"\nstatic = [\"192.0.2.1\"]", "is no host:port"),
            ("file = \"x\"", "service"),
        ] {
            let told = configs(&format!("[[watch]]\n{text}")).unwrap_err();
            assert!(told.contains(said), "{told}");
        }
        let file = configs("[[watch]]\nservice = \"web\"\nfile = \"x.json\"").unwrap().remove(0);
        assert_eq!((file.name.as_str(), file.looks.place()), ("web-file", "/etc/x.json".to_owned()));
    }
}
