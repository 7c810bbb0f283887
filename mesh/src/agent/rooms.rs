//! The rooms of one agent: started in the order in which data flows, kept until it leaves.

use std::sync::Arc;

use anyhow::Context;
use nerve::registrar;
use nerve::source::{ApiSource, ConfigSource, FileSource, Source};
use nerve::store::{self, Store};
use nerve::tasks::Tasks;
use prometheus::Registry;
use synapse::catalog::Catalog;
use synapse::{memory, watch as watcher};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use super::name_server::NameServer;
use super::seams::Problems;
use super::{Phase, Started};
use crate::config::{self, Config};
use crate::drain::{self, DrainTrigger};
use crate::proxy::DataPlane;
use crate::readiness::{Guard, Readiness};
use crate::{admin, balance, dns, ingress, proxy};

/// The catalog on disk, in the state directory.
const MEMORY_FILE: &str = "catalog.json";

/// Everything that runs.
pub(super) struct Rooms {
    pub(super) config: Config,
    pub(super) catalog: Catalog,
    pub(super) registrar: registrar::Handle,
    pub(super) services: ConfigSource,
    pub(super) plane: Arc<DataPlane>,
    pub(super) ingress: ingress::Handle,
    pub(super) name_server: Option<NameServer>,
    pub(super) admin: DrainTrigger,
    pub(super) problems: Problems,
    pub(super) readiness: Readiness,
    /// Ingress has tasks of its own: it stops opening ports before the other tasks end.
    pub(super) ingress_tasks: Tasks,
    pub(super) tasks: Tasks,
    pub(super) store: Arc<dyn Store>,
    pub(super) owns_store: bool,
    pub(super) watcher: watcher::store::Handle,
    phase: watch::Sender<Phase>,
    phase_word: watch::Sender<&'static str>,
    metrics: Metrics,
    /// Held until the catalog has something to say.
    starting: Option<Guard>,
}

impl Rooms {
    /// Binds what is to be bound and starts what is to run. What cannot run but need not stop the rest is a problem that
    /// `plexus status` shows; what nothing runs without is an error.
    pub(super) async fn start(config: Config, shared: Option<Arc<dyn Store>>) -> anyhow::Result<Self> {
        let (registry, tasks, ingress_tasks) = (Registry::new(), Tasks::new(), Tasks::new());
        let readiness = Readiness::new();
        let starting = readiness.block("the catalog: from the store, or from the memory of an earlier run");
        let metrics = Metrics::register(&registry)?;
        let admin_socket = admin::Bound::bind(&config.admin()).await?;

        let store_metrics = store::Metrics::default();
        store_metrics.register(&registry)?;
        let owns_store = shared.is_none();
        let store = match shared {
            Some(store) => store,
            None => store::open(&config.store(), &store_metrics)?,
        };

        // What is known: from memory at once, then from the store.
        let synapse_metrics = synapse::Metrics::new()?;
        synapse_metrics.register(&registry)?;
        let (catalog, writer) = Catalog::new();
        let memory_file = config.state_dir.join(MEMORY_FILE);
        let recalled = memory::recall(&memory_file);
        let watcher = watcher::store::start(
            watcher::store::Config::default(),
            Arc::clone(&store),
            writer,
            recalled,
            synapse_metrics.clone(),
            &tasks,
        );
        memory::keep(memory_file, catalog.clone(), watcher.clone(), synapse_metrics, &tasks);

        // What is done with it: connections and names.
        let plane = start_data_plane(&config, &registry)?;
        let ingress = start_ingress(&config, &catalog, &plane, &registry, &ingress_tasks)?;
        let name_server = start_name_server(&config, &catalog, &registry)?;

        // What this node says of itself.
        let services = ConfigSource::new(config.services.clone());
        let registrar = start_registrar(&config, &store, &services, &registry, &tasks).await?;

        let problems = Problems {
            ingress: ingress.clone(),
            dns: name_server.as_ref().map(|name_server| name_server.handle.clone()),
            watcher: watcher.clone(),
            reload: Arc::default(),
        };
        let (phase_word, word) = watch::channel(Phase::Starting.as_str());
        let listed = problems.clone();
        let handles = admin::Handles {
            node: Arc::new(this_node(&config)),
            started: tokio::time::Instant::now(),
            phase: word,
            readiness: readiness.clone(),
            catalog: catalog.clone(),
            registrar: registrar.clone(),
            store: Arc::clone(&store),
            registry: registry.clone(),
            traffic: Arc::new(ingress.clone()),
            resolver: resolver(name_server.as_ref()),
            problems: Arc::new(move || listed.list()),
        };
        let admin_metrics = admin::Metrics::default();
        admin_metrics.register(&registry)?;
        let (admin, drained) = drain::channel();
        tasks.spawn("admin", admin_socket.run(handles, admin_metrics, tasks.clone(), drained));

        let rooms = Self {
            config,
            catalog,
            registrar,
            services,
            plane,
            ingress,
            name_server,
            admin,
            problems,
            readiness,
            ingress_tasks,
            tasks,
            store,
            owns_store,
            watcher,
            phase: watch::Sender::new(Phase::Starting),
            phase_word,
            metrics,
            starting: Some(starting),
        };
        rooms.enter(Phase::Starting);
        Ok(rooms)
    }

    /// For whoever started the agent.
    pub(super) fn started(&self) -> Started {
        Started {
            catalog: self.catalog.clone(),
            ingress: self.ingress.clone(),
            readiness: self.readiness.clone(),
            phase: self.phase.subscribe(),
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.metrics.enter(phase);
        self.metrics.note_panics(self.tasks.panics() + self.ingress_tasks.panics());
        self.phase_word.send_replace(phase.as_str());
        self.phase.send_replace(phase);
        tracing::info!(node = %self.config.node.name, %phase, "agent");
    }

    /// Serves until `stop`, applying reloads.
    pub(super) async fn serve(&mut self, stop: CancellationToken, mut reloads: mpsc::Receiver<Config>) {
        let watcher = self.watcher.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = watcher.filled(), if self.starting.is_some() => {
                    self.starting = None;
                    self.enter(Phase::Ready);
                }
                Some(config) = reloads.recv() => self.reload(config),
            }
        }
    }

    fn reload(&mut self, config: Config) {
        let reload = config::diff(&self.config, &config);
        let needs_restart = reload.needs_restart();
        tracing::info!(applied = reload.live.join(", "), "configuration read again");
        if let Some(message) = &needs_restart {
            tracing::warn!("{message}");
        }
        self.problems.note_reload(needs_restart);
        self.services.replace(config.services.clone());
        self.ingress.reload(&config.ingress());
        // The rest stays what it is until a restart, and is compared with what runs next time too.
        self.config.services = config.services;
        self.config.ingress.localhost = config.ingress.localhost;
        self.config.drain = config.drain;
        self.config.log = config.log;
    }
}

fn this_node(config: &Config) -> nerve::model::Node {
    nerve::model::Node {
        name: config.node.name.clone(),
        address: config.node.address,
        zone: config.node.zone.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        draining: false,
    }
}

fn start_data_plane(config: &Config, registry: &Registry) -> anyhow::Result<Arc<DataPlane>> {
    let metrics = proxy::Metrics::new()?;
    metrics.register(registry)?;
    Ok(Arc::new(DataPlane::start(config.proxy(), metrics).context("start the data-plane threads")?))
}

fn start_ingress(
    config: &Config,
    catalog: &Catalog,
    plane: &Arc<DataPlane>,
    registry: &Registry,
    tasks: &Tasks,
) -> anyhow::Result<ingress::Handle> {
    let metrics = ingress::Metrics::new()?;
    metrics.register(registry)?;
    let surroundings = balance::Surroundings {
        place: balance::Place {
            node: Some(config.node.name.clone()),
            zone: config.node.zone.clone(),
            fleet: Some(catalog.clone()),
        },
        metrics: balance::Metrics::new()?,
        on_closing: plane.closer(),
    };
    surroundings.metrics.register(registry)?;
    let (catalog, plane) = (catalog.clone(), Arc::clone(plane));
    Ok(ingress::start(config.ingress(), catalog, plane, surroundings, metrics, tasks))
}

/// The name server; none where DNS is off. Addresses that cannot be bound are problems and no errors.
fn start_name_server(
    config: &Config,
    catalog: &Catalog,
    registry: &Registry,
) -> anyhow::Result<Option<NameServer>> {
    let Some(config) = config.dns() else { return Ok(None) };
    let metrics = dns::Metrics::default();
    metrics.register(registry)?;
    let bound = dns::bind(config, catalog.clone(), Arc::new(metrics));
    for address in bound.addresses() {
        tracing::info!(%address, "answering DNS");
    }
    for error in bound.failures() {
        tracing::error!(%error, "no DNS on an address; it is tried again");
    }
    Ok(Some(NameServer::start(bound).context("start the name server's thread")?))
}

fn resolver(name_server: Option<&NameServer>) -> Option<Arc<dyn admin::Resolver>> {
    name_server.map(|name_server| Arc::new(name_server.handle.clone()) as Arc<dyn admin::Resolver>)
}

async fn start_registrar(
    config: &Config,
    store: &Arc<dyn Store>,
    services: &ConfigSource,
    registry: &Registry,
    tasks: &Tasks,
) -> anyhow::Result<registrar::Handle> {
    let metrics = registrar::Metrics::default();
    metrics.register(registry)?;
    let local = config.node.local();
    let directory = config.services_dir.clone();
    let files = FileSource::start(directory, local.clone(), tasks, metrics.sources.clone()).await;
    let api = ApiSource::open(Some(&config.state_dir), local);
    let sources: [&dyn Source; 2] = [services, &files];
    Ok(registrar::start(config.registrar(), Arc::clone(store), &sources, api, tasks, metrics))
}
