//! Starting the rooms, in the order in which data flows.
//!
//! What can fail is bound and opened first; then, where this agent takes over from another one, that one stops writing; then
//! everything runs. So an agent that cannot be leaves the one before it as it was.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nerve::source::{ApiSource, ConfigSource, DockerSource, FileSource, SmartstackSource, Source};
use nerve::store::{self, Store};
use nerve::tasks::Tasks;
use nerve::{announce, registrar};
use prometheus::Registry;
use synapse::catalog::{Catalog, Writer};
use synapse::output::haproxy;
use synapse::watch::Recalled;
use synapse::{memory, output, watch as watcher};
use tokio::sync::watch;

use super::attachments::{self, Attachments};
use super::handover::{Door, Left, Outcome, SERVE_WITHIN, Taking, be_alone};
use super::metrics::Metrics;
use super::name_server::NameServer;
use super::rooms::{Owners, Rooms, findings_file, memory_file, sections_file};
use super::seams::{Problems, examiner, name_server, seen_instead, watchers as watcher_states};
use super::synapse_conf::SynapseConf;
use super::trust;
use super::who_may::{self, Snapshots};
use super::{Origin, Phase, Succession};
use crate::api::TookOver;
use crate::config::Config;
use crate::drain;
use crate::inherited::Inherited;
use crate::proxy::DataPlane;
use crate::readiness::Readiness;
use crate::{admin, balance, dns, docker, identity, ingress, link_local, overlay, proxy, routes, steer, vip};

/// How long a start waits for places where services are found besides the store. One that is out of reach says so, mostly sooner.
const WATCHED_WITHIN: Duration = Duration::from_secs(3);
/// How long after the catalog is known a socket may wait for whoever wants it, before it is said that nobody does.
const UNWANTED_AFTER: Duration = Duration::from_secs(5);

/// How long the kernel may take to tell its routes: a moment, and nothing else is to wait for it for long.
const RANGES_WITHIN: Duration = Duration::from_secs(2);

/// What is opened before anything runs.
struct Bound {
    admin: admin::Bound,
    plane: Arc<DataPlane>,
    names: Option<dns::Bound>,
    vip: vip::Prepared,
    catalog: Catalog,
    writer: Writer,
}

/// What an earlier life, or another process, has left.
struct Estate {
    shared: Option<Arc<dyn Store>>,
    inherited: Inherited,
    recalled: Option<Recalled>,
    left: Left,
}

impl Rooms {
    /// Binds what is to be bound and starts what is to run. What cannot run but need not stop the rest is a problem that
    /// `plexus status` shows; what nothing runs without is an error.
    pub(super) async fn start(config: Config, origin: Origin) -> anyhow::Result<Self> {
        let Origin { shared, inherited, succession } = origin;
        let registry = Registry::new();
        let metrics = Metrics::register(&registry)?;
        let (mut taking, offered) = match succession {
            Some(Succession::TakeOver) => Taking::begin(&config, &inherited).await?.unzip(),
            Some(Succession::Alone) => {
                be_alone(&config.state_dir).await?;
                (None, None)
            }
            None => (None, None),
        };
        let door = succession.map(|_| Door::make(&config.state_dir));
        let bound = Bound::bind(&config, &inherited, &registry).await?;
        let recalled = offered.flatten().or_else(|| memory::recall(&memory_file(&config)));
        let left = match &mut taking {
            Some(taking) => taking.prepare().await?,
            None => Left::default(),
        };
        let estate = Estate { shared, inherited: inherited.clone(), recalled, left };
        let (mut rooms, admin) = Self::compose(config, bound, estate, &registry, metrics).await?;
        rooms.keep_memory();
        rooms.enter(Phase::Starting);
        let took_over = match taking {
            Some(taking) => Some(rooms.serve_instead(taking, &inherited).await?),
            None => {
                rooms.report_unwanted(inherited);
                None
            }
        };
        rooms.open_door(door);
        rooms.start_docker(&registry)?;
        rooms.start_admin(admin, took_over, registry)?;
        Ok(rooms)
    }

    /// Everything but the admin interface, which is given back.
    async fn compose(
        config: Config,
        bound: Bound,
        Estate { shared, inherited, recalled, left }: Estate,
        registry: &Registry,
        metrics: Metrics,
    ) -> anyhow::Result<(Self, admin::Bound)> {
        let (owners, readiness) = (Owners::default(), Readiness::new());
        let starting = readiness.block("the catalog: from the store, or from the memory of an earlier run");
        let owns_store = shared.is_none();
        let store = open_store(&config, shared, left.store.as_deref(), registry)?;

        // What is known: from memory at once, then from the store.
        let synapse_metrics = metrics_of_synapse(registry)?;
        let filled = (bound.writer, recalled, &synapse_metrics);
        let (synapse_conf, watcher, watchers) = start_watching(&config, &store, filled, &owners.rest).await;

        // What is done with it: connections and names.
        let catalog = bound.catalog;
        let name_server = start_name_server(bound.names)?;
        let link_local = link_local::start(config.link_local(), &owners.vip).await;
        let vip = start_vip(bound.vip, &catalog, &store, registry, &owners.vip).await?;
        let (usual_way, tell_usual_way) = usual_way();
        let steer = start_steering(&config, &catalog, &bound.plane, usual_way, registry, &owners.vip)?;
        let overlay = start_overlay(&config, &catalog, &store, tell_usual_way, registry, &owners.vip)?;

        // What runs on this node, and what it says of that.
        let services = ConfigSource::new(config.services.clone());
        let identity = trust::start_identity(&config, &catalog, &store, registry, &owners.rest)?;
        let (of, sources) = ((&config, &identity), (&services, &overlay, left.registrar));
        let started = start_registrar(of, &store, sources, registry, &owners.registrar).await?;
        let (registrar, smartstack, told) = started;
        let announcements = start_announcing(&config, &registrar, registry, &owners)?;

        // Who may come in, by who runs here; and then whoever comes.
        let rules = who_may::start(&catalog, &bound.plane, (told, &watcher), registry, &owners.rest).await?;
        let of = (&bound.plane, &identity, &catalog, &registrar);
        let mtls = trust::start_mtls(&config, of, &rules, inherited.clone(), registry, &owners)?;
        let means = (&catalog, &vip, &bound.plane, inherited.clone());
        let ingress = start_ingress((&config, &synapse_conf), means, registry, &owners.ingress)?;

        // What other programs are told.
        let haproxy = haproxy::Handle::new(synapse_conf.haproxy(&config), registry)?;
        let problems = Problems {
            ingress: ingress.clone(),
            vip,
            steer,
            overlay,
            docker: docker::Handle::default(),
            link_local,
            dns: name_server.as_ref().map(|name_server| name_server.handle.clone()),
            watcher: watcher.clone(),
            watchers: watchers.clone(),
            announcements,
            synapse_conf: synapse_conf.clone(),
            files: output::Files::new(synapse_conf.targets(&config)),
            haproxy: haproxy.clone(),
            identity,
            mtls,
            admin: bound.admin.socket(),
            reload: Arc::default(),
            door: Arc::default(),
        };
        let rooms = Self {
            admin_rules: admin::Rules::new(config.admin().access),
            config,
            catalog,
            registrar,
            services,
            smartstack,
            synapse_conf,
            files: problems.files.clone(),
            plane: bound.plane,
            ingress,
            rules,
            docker_server: None,
            name_server,
            admin: None,
            inherited,
            admin_sockets: Vec::new(),
            problems,
            readiness,
            owners,
            store,
            owns_store,
            watcher,
            watchers,
            synapse_metrics,
            haproxy,
            writes: true,
            took_over: false,
            door: None,
            phase: watch::Sender::new(Phase::Starting),
            phase_word: watch::Sender::new(Phase::Starting.as_str()),
            metrics,
            starting: Some(starting),
        };
        Ok((rooms, bound.admin))
    }

    /// Lets the agent before leave, once this one answers on every socket that it is to.
    async fn serve_instead(&mut self, taking: Taking, inherited: &Inherited) -> anyhow::Result<TookOver> {
        let settled = tokio::time::timeout(SERVE_WITHIN, self.ingress.settled()).await;
        settled.with_context(|| {
            format!(
                "take over from the agent that runs: this one did not listen on everything within {SERVE_WITHIN:?}; it gives \
                 up, and the other one goes on"
            )
        })?;
        let took_over = taking.serving().await?;
        // What the agent before still has in the queues of these, it takes itself.
        for socket in inherited.left() {
            tracing::info!(%socket, "the agent before listened there, and nothing is to any more");
        }
        inherited.close_rest();
        self.metrics.note_handover(Outcome::TookOver);
        self.took_over = true;
        tracing::info!(pid = took_over.pid, version = took_over.version, "took over");
        Ok(took_over)
    }

    /// Says once which sockets of the service manager nothing listens on. They are kept: a port may be published later.
    fn report_unwanted(&self, inherited: Inherited) {
        if inherited.left().is_empty() {
            return;
        }
        let (watcher, stop) = (self.watcher.clone(), self.owners.rest.stop_token());
        self.owners.rest.spawn("unwanted sockets", async move {
            let known = async {
                watcher.filled().await;
                tokio::time::sleep(UNWANTED_AFTER).await;
            };
            if stop.run_until_cancelled(known).await.is_none() {
                return;
            }
            for socket in inherited.left() {
                tracing::warn!(
                    %socket,
                    "the service manager opened a socket that nothing here listens on so far: compare ListenStream= and \
                     ListenDatagram= of the socket unit with [dns] listen, [admin] listen and the published ports"
                );
            }
        });
    }

    /// From now on the next agent finds this one.
    fn open_door(&mut self, door: Option<std::io::Result<Door>>) {
        let Some(door) = door else { return };
        match door.and_then(|door| door.open().map(|()| door)) {
            Ok(door) => self.door = Some(door),
            Err(error) => {
                let problem =
                    format!("no other agent can take over from this one: {error}; restart it for an upgrade");
                tracing::warn!("{problem}");
                self.problems.note_door(problem);
            }
        }
    }

    /// The agent before served Docker until now.
    fn start_docker(&mut self, registry: &Registry) -> anyhow::Result<()> {
        let Some((config, links)) = self.config.docker().zip(self.problems.overlay.docker().cloned()) else {
            return Ok(());
        };
        let metrics = docker::Metrics::new()?;
        metrics.register(registry)?;
        let (trigger, drained) = drain::channel();
        docker::start(
            config,
            links,
            self.took_over,
            &self.problems.docker,
            metrics,
            &self.owners.rest,
            drained,
        );
        self.docker_server = Some(trigger);
        Ok(())
    }

    fn start_admin(
        &mut self,
        bound: admin::Bound,
        took_over: Option<TookOver>,
        registry: Registry,
    ) -> anyhow::Result<()> {
        let metrics = admin::Metrics::default();
        metrics.register(&registry)?;
        let listed = self.problems.clone();
        let handles = admin::Handles {
            rules: self.admin_rules.clone(),
            node: Arc::new(this_node(&self.config)),
            started: tokio::time::Instant::now(),
            took_over,
            phase: self.phase_word.subscribe(),
            readiness: self.readiness.clone(),
            catalog: self.catalog.clone(),
            registrar: self.registrar.clone(),
            store: Arc::clone(&self.store),
            registry,
            traffic: Arc::new(self.ingress.clone()),
            virtual_addresses: virtual_addresses(&self.problems.vip),
            plain: plain(&self.problems.steer),
            who_may: self.rules.clone(),
            watchers: watcher_states(self.watcher.clone(), self.watchers.clone()),
            attacher: Arc::new(Attachments::new(self.problems.overlay.clone(), self.config.node.local())),
            host_routes: Arc::new(|| Box::pin(routes::read())),
            examiner: examiner(&self.problems.overlay),
            resolver: resolver(self.name_server.as_ref()),
            name_server: name_server(&self.config, &self.problems),
            identity: Some(self.problems.identity.clone()),
            mtls: Some(self.problems.mtls.clone()),
            problems: Arc::new(move || listed.list()),
        };
        self.admin_sockets = bound.sockets().into_iter().map(Arc::new).collect();
        let (admin, drained) = drain::channel();
        let tasks = self.owners.rest.clone();
        self.owners.rest.spawn("admin", bound.run(handles, metrics, tasks, drained));
        self.admin = Some(admin);
        Ok(())
    }
}

impl Bound {
    async fn bind(config: &Config, inherited: &Inherited, registry: &Registry) -> anyhow::Result<Self> {
        let admin = admin::Bound::bind(&config.admin(), inherited).await?;
        let plane = start_data_plane(config, registry)?;
        let (catalog, writer) = Catalog::new();
        let vip = vip::Prepared::new(config.vip());
        let names = bind_names(config, &catalog, vip.handle(), inherited, registry)?;
        Ok(Self { admin, plane, names, vip, catalog, writer })
    }
}

fn this_node(config: &Config) -> nerve::model::Node {
    nerve::model::Node {
        name: config.node.name.clone(),
        address: config.node.address,
        region: config.node.region.clone(),
        zone: config.node.zone.clone(),
        signer_port: config.registrar().signer_port,
        tunnel_port: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        draining: false,
    }
}

fn start_data_plane(config: &Config, registry: &Registry) -> anyhow::Result<Arc<DataPlane>> {
    let metrics = proxy::Metrics::new()?;
    metrics.register(registry)?;
    Ok(Arc::new(DataPlane::start(config.proxy(), metrics).context("start the data-plane threads")?))
}

async fn start_vip(
    prepared: vip::Prepared,
    catalog: &Catalog,
    store: &Arc<dyn Store>,
    registry: &Registry,
    tasks: &Tasks,
) -> anyhow::Result<vip::Handle> {
    let metrics = vip::Metrics::new()?;
    metrics.register(registry)?;
    let vip = prepared.start(catalog.clone(), Arc::clone(store), metrics, tasks);
    ranges_are_judged(&vip).await;
    Ok(vip)
}

/// Ports of virtual addresses are among those that are open when ingress has settled, which a take-over waits for.
async fn ranges_are_judged(vip: &vip::Handle) {
    if tokio::time::timeout(RANGES_WITHIN, vip.judged()).await.is_err() {
        tracing::warn!(
            "the kernel does not say within {RANGES_WITHIN:?} which virtual addresses are local; they follow later"
        );
    }
}

fn start_name_server(bound: Option<dns::Bound>) -> anyhow::Result<Option<NameServer>> {
    bound.map(NameServer::start).transpose().context("start the name server's thread")
}

fn start_steering(
    config: &Config,
    catalog: &Catalog,
    plane: &DataPlane,
    usual_way: steer::UsualWay,
    registry: &Registry,
    tasks: &Tasks,
) -> anyhow::Result<steer::Handle> {
    let metrics = steer::Metrics::new()?;
    metrics.register(registry)?;
    Ok(steer::start(config.steer(), catalog.clone(), plane.steering(), usual_way, metrics, tasks))
}

/// Who steers answers says what way packets by tunnels have to take, and overlay networks which they take.
fn usual_way() -> (steer::UsualWay, overlay::UsualWay) {
    let ((ask, asked), (give, given)) = (watch::channel(true), watch::channel(false));
    (steer::UsualWay { asks: Arc::new(ask), given }, overlay::UsualWay { asked, given: give })
}

fn start_overlay(
    config: &Config,
    catalog: &Catalog,
    store: &Arc<dyn Store>,
    usual_way: overlay::UsualWay,
    registry: &Registry,
    tasks: &Tasks,
) -> anyhow::Result<overlay::Handle> {
    let metrics = overlay::Metrics::new()?;
    metrics.register(registry)?;
    overlay::start(config.overlay(), catalog, store, usual_way, &metrics, tasks)
        .context("read which addresses containers have")
}

fn start_ingress(
    (config, synapse_conf): (&Config, &SynapseConf),
    (catalog, vip, plane, inherited): (&Catalog, &vip::Handle, &Arc<DataPlane>, Inherited),
    registry: &Registry,
    tasks: &Tasks,
) -> anyhow::Result<ingress::Handle> {
    let metrics = ingress::Metrics::new()?;
    metrics.register(registry)?;
    let surroundings = balance::Surroundings {
        place: balance::Place {
            node: Some(config.node.name.clone()),
            region: config.node.region.clone(),
            zone: config.node.zone.clone(),
            fleet: Some(catalog.clone()),
        },
        metrics: balance::Metrics::new()?,
        on_closing: plane.closer(),
    };
    surroundings.metrics.register(registry)?;
    let means = ingress::Means { plane: Arc::clone(plane), surroundings, inherited, metrics };
    Ok(ingress::start(synapse_conf.ingress(config), catalog.clone(), vip.usable(), means, tasks))
}

/// The name server's sockets; none where DNS is off. Addresses that cannot be bound are problems and no errors.
fn bind_names(
    config: &Config,
    catalog: &Catalog,
    vip: &vip::Handle,
    inherited: &Inherited,
    registry: &Registry,
) -> anyhow::Result<Option<dns::Bound>> {
    let Some(config) = config.dns() else { return Ok(None) };
    let config = dns::Config { virtual_ranges: vip.usable().into(), ..config };
    let metrics = dns::Metrics::default();
    metrics.register(registry)?;
    let bound = dns::bind(config, catalog.clone(), inherited.clone(), Arc::new(metrics));
    for address in bound.addresses() {
        tracing::info!(%address, "answering DNS");
    }
    for error in bound.failures() {
        tracing::error!(%error, "no DNS on an address; it is tried again");
    }
    Ok(Some(bound))
}

fn virtual_addresses(vip: &vip::Handle) -> admin::VirtualAddresses {
    let vip = vip.clone();
    Arc::new(
        move |service| {
            if service.settings.wants_vip() { vip.effective(&service.vips).collect() } else { Vec::new() }
        },
    )
}

fn plain(steer: &steer::Handle) -> admin::Plain {
    let steer = steer.clone();
    Arc::new(move |service, instance| steer.shown(service, instance).map(seen_instead).unwrap_or_default())
}

fn resolver(name_server: Option<&NameServer>) -> Option<Arc<dyn admin::Resolver>> {
    name_server.map(|name_server| Arc::new(name_server.handle.clone()) as Arc<dyn admin::Resolver>)
}

/// The store that is shared with this agent, or one of its own, which may go on with what another process has left.
fn open_store(
    config: &Config,
    shared: Option<Arc<dyn Store>>,
    left: Option<&[u8]>,
    registry: &Registry,
) -> anyhow::Result<Arc<dyn Store>> {
    let metrics = store::Metrics::default();
    metrics.register(registry)?;
    match shared {
        Some(store) => Ok(store),
        None => Ok(store::open_inherited(&config.store(), &metrics, left)?),
    }
}

fn metrics_of_synapse(registry: &Registry) -> prometheus::Result<synapse::Metrics> {
    let metrics = synapse::Metrics::new()?;
    metrics.register(registry)?;
    Ok(metrics)
}

/// The store first: what it says goes before what any other place does.
async fn start_watching(
    config: &Config,
    store: &Arc<dyn Store>,
    (writer, recalled, metrics): (Writer, Option<Recalled>, &synapse::Metrics),
    tasks: &Tasks,
) -> (SynapseConf, watcher::store::Handle, watcher::Watchers) {
    let watchers = watcher::Watchers::new(writer.layers(), metrics.clone(), &findings_file(config), tasks);
    let synapse_conf = SynapseConf::read(config).await.following(watchers.data(&sections_file(config)));
    watchers.layers().settle(synapse_conf.settings());
    let usual = watcher::store::Config::default();
    let store = watcher::store::start(usual, Arc::clone(store), writer, recalled, metrics.clone(), tasks);
    watchers.follow(&synapse_conf.watchers(config));
    // What they know is no news: an agent that takes over is to have it before it serves.
    tokio::join!(watchers.first_words(WATCHED_WITHIN), synapse_conf.first_words(WATCHED_WITHIN));
    watchers.layers().settle(synapse_conf.settings());
    (synapse_conf, store, watchers)
}

async fn start_registrar(
    (config, identity): (&Config, &identity::Handle),
    store: &Arc<dyn Store>,
    (services, overlay, carried): (&ConfigSource, &overlay::Handle, Option<registrar::Carried>),
    registry: &Registry,
    tasks: &Tasks,
) -> anyhow::Result<(registrar::Handle, Option<SmartstackSource>, Snapshots)> {
    let metrics = registrar::Metrics::default();
    metrics.register(registry)?;
    let local = config.node.local();
    let directory = config.services_dir.clone();
    let files = FileSource::start(directory, local.clone(), tasks, metrics.sources.clone()).await;
    let docker = match config.docker_source() {
        Some(docker) => Some(DockerSource::start(docker, local.clone(), tasks).await),
        None => None,
    };
    let attached = attachments::source(overlay, &local, tasks);
    let smartstack = match config.smartstack_source() {
        Some(smartstack) => Some(SmartstackSource::start(smartstack, local.clone(), tasks).await),
        None => None,
    };
    let api = ApiSource::open(Some(&config.state_dir), local);
    let mut sources: Vec<&dyn Source> = vec![services, &files];
    sources.extend(docker.as_ref().map(|docker| docker as &dyn Source));
    sources.extend(attached.as_ref().map(|attached| attached as &dyn Source));
    sources.extend(smartstack.as_ref().map(|smartstack| smartstack as &dyn Source));
    let told = sources.iter().map(|source| source.snapshots()).chain([api.snapshots()]).collect();
    let tunnel_port = trust::tunnel_port(config, identity);
    let config = registrar::Config { tunnel_port, ..config.registrar() };
    let registrar = registrar::start(config, Arc::clone(store), &sources, api, tasks, metrics, carried);
    Ok((registrar, smartstack, told))
}

fn start_announcing(
    config: &Config,
    registrar: &registrar::Handle,
    registry: &Registry,
    owners: &Owners,
) -> anyhow::Result<announce::Handle> {
    let metrics = announce::Metrics::register(registry)?;
    let session_ttl = config.registrar().session_ttl.get();
    let Owners { registrar: followers, rest: writers, .. } = owners;
    Ok(announce::Handle::start(registrar.clone(), session_ttl, metrics, followers, writers))
}
