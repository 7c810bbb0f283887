//! The rooms of one agent, kept until it leaves: their phases, reloads, and the change of process.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nerve::registrar;
use nerve::source::{ConfigSource, SmartstackSource};
use nerve::store::Store;
use nerve::tasks::Tasks;
use synapse::catalog::Catalog;
use synapse::output::haproxy;
use synapse::{memory, output, watch as watcher};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::handover::{Door, Outcome, Successor, Wire, give};
use super::metrics::Metrics;
use super::name_server::NameServer;
use super::seams::Problems;
use super::synapse_conf::SynapseConf;
use super::{Phase, Started};
use crate::config::{self, Config};
use crate::drain::DrainTrigger;
use crate::inherited::Inherited;
use crate::proxy::DataPlane;
use crate::readiness::{Guard, Readiness};
use crate::{admin, ingress, rules};

/// The catalog on disk, in the state directory.
const MEMORY_FILE: &str = "catalog.json";
const FINDINGS_FILE: &str = "watchers.json";
/// What stands in ZooKeeper of Synapse's configuration.
const SECTIONS_FILE: &str = "sections.json";

/// Everything that runs.
pub(super) struct Rooms {
    pub(super) config: Config,
    pub(super) catalog: Catalog,
    pub(super) registrar: registrar::Handle,
    pub(super) services: ConfigSource,
    /// `None` where no configuration of Nerve's is read.
    pub(super) smartstack: Option<SmartstackSource>,
    pub(super) synapse_conf: SynapseConf,
    pub(super) files: output::Files,
    pub(super) plane: Arc<DataPlane>,
    pub(super) ingress: ingress::Handle,
    pub(super) rules: rules::Rules,
    /// `None` where Docker is not served.
    pub(super) docker_server: Option<DrainTrigger>,
    pub(super) name_server: Option<NameServer>,
    /// `None` until it answers, which is the last thing that an agent starts with.
    pub(super) admin: Option<DrainTrigger>,
    /// Knows which sockets are the service manager's.
    pub(super) inherited: Inherited,
    /// For the next agent; they keep the addresses taken.
    pub(super) admin_sockets: Vec<Arc<OwnedFd>>,
    /// Who may do what there.
    pub(super) admin_rules: admin::Rules,
    pub(super) problems: Problems,
    pub(super) readiness: Readiness,
    pub(super) owners: Owners,
    pub(super) store: Arc<dyn Store>,
    pub(super) owns_store: bool,
    pub(super) watcher: watcher::store::Handle,
    pub(super) watchers: watcher::Watchers,
    pub(super) synapse_metrics: synapse::Metrics,
    pub(super) haproxy: haproxy::Handle,
    /// Does this agent write to the store and to the disk? Not while another one is about to.
    pub(super) writes: bool,
    /// Another agent ran before it, and handed over.
    pub(super) took_over: bool,
    /// Where the next agent knocks; `None` where none can.
    pub(super) door: Option<Door>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) phase_word: watch::Sender<&'static str>,
    pub(super) metrics: Metrics,
    /// Held until the catalog has something to say.
    pub(super) starting: Option<Guard>,
}

/// Whose the tasks are: what has to end before the rest has an owner of its own.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Everything else.
    pub(super) rest: Tasks,
    /// Ingress stops opening ports first.
    pub(super) ingress: Tasks,
    /// Claims and routes of virtual addresses, the link-local address, what steers answers, and overlay networks: another agent goes on with them at once.
    pub(super) vip: Tasks,
    /// Another agent may go on with the session while connections here are finished.
    pub(super) registrar: Tasks,
    /// Only one agent saves the catalog, and tells other programs of this node of it.
    pub(super) memory: Tasks,
}

/// How an agent's service ends.
#[derive(Debug)]
pub(super) enum Ending {
    /// It was asked to leave.
    Leave,
    /// Another agent goes on.
    HandedOver(Successor),
}

/// Where a catalog is saved.
pub(super) fn memory_file(config: &Config) -> PathBuf {
    config.state_dir.join(MEMORY_FILE)
}

pub(super) fn findings_file(config: &Config) -> PathBuf {
    config.state_dir.join(FINDINGS_FILE)
}

pub(super) fn sections_file(config: &Config) -> PathBuf {
    config.state_dir.join(SECTIONS_FILE)
}

impl Rooms {
    /// For whoever started the agent.
    pub(super) fn started(&self) -> Started {
        Started {
            catalog: self.catalog.clone(),
            ingress: self.ingress.clone(),
            readiness: self.readiness.clone(),
            phase: self.phase.subscribe(),
            took_over: self.took_over,
            overlay: self.problems.overlay.clone(),
            registrar: self.registrar.clone(),
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.metrics.enter(phase);
        let Owners { rest, ingress, vip, registrar, memory } = &self.owners;
        self.metrics
            .note_panics([rest, ingress, vip, registrar, memory].iter().map(|tasks| tasks.panics()).sum());
        self.phase_word.send_replace(phase.as_str());
        self.phase.send_replace(phase);
        tracing::info!(node = %self.config.node.name, %phase, "agent");
    }

    /// Has the catalog something to say?
    pub(super) fn is_filled(&self) -> bool {
        self.starting.is_none()
    }

    /// Saves the catalog from now on, for this program and for others, and tells HAProxy of it.
    pub(super) fn keep_memory(&mut self) {
        self.owners.memory = Tasks::new();
        memory::keep(
            memory_file(&self.config),
            self.catalog.clone(),
            self.watcher.clone(),
            self.synapse_metrics.clone(),
            &self.owners.memory,
        );
        self.watchers.keep_findings(findings_file(&self.config), &self.owners.memory);
        self.files.keep(
            self.catalog.clone(),
            self.watchers.clone(),
            self.watcher.clone(),
            &self.owners.memory,
        );
        let means = haproxy::Means {
            catalog: self.catalog.clone(),
            watcher: self.watcher.clone(),
            node: self.config.node.name.clone(),
        };
        self.haproxy.run(means, &self.owners.memory);
    }

    /// Serves until `stop`, or until another agent has taken over, applying reloads.
    pub(super) async fn serve(
        &mut self,
        stop: CancellationToken,
        mut reloads: mpsc::Receiver<Config>,
    ) -> Ending {
        let watcher = self.watcher.clone();
        let door = self.door.take();
        let mut sections = self.synapse_conf.changes();
        loop {
            tokio::select! {
                () = sections() => if self.synapse_conf.heed().await {
                    self.follow_synapse_conf(&self.config);
                },
                () = stop.cancelled() => return Ending::Leave,
                () = watcher.filled(), if self.starting.is_some() => {
                    self.starting = None;
                    self.enter(Phase::Ready);
                }
                Some(config) = reloads.recv() => self.reload(config).await,
                wire = knock(door.as_ref()) => match give(self, wire, &stop).await {
                    Ok(successor) => {
                        self.metrics.note_handover(Outcome::HandedOver);
                        door.into_iter().for_each(Door::leave_to_the_next);
                        return Ending::HandedOver(successor);
                    }
                    Err(error) => {
                        self.metrics.note_handover(Outcome::of(&error));
                        tracing::error!(%error, "another agent did not take over; this one goes on");
                    }
                },
            }
        }
    }

    async fn reload(&mut self, config: Config) {
        let reload = config::diff(&self.config, &config);
        let needs_restart = reload.needs_restart();
        tracing::info!(applied = reload.live.join(", "), "configuration read again");
        if let Some(message) = &needs_restart {
            tracing::warn!("{message}");
        }
        self.problems.note_reload(needs_restart);
        self.services.replace(config.services.clone());
        self.admin_rules.replace(config.admin().access);
        if let Some(name_server) = &self.name_server {
            name_server.handle.log_queries(config.dns.query_log.0);
        }
        if let Some(smartstack) = self.smartstack.clone() {
            let reload = async move { smartstack.reload().await };
            self.owners.registrar.spawn_while_wanted("Nerve's configuration", reload);
        }
        self.synapse_conf.read_again().await;
        self.follow_synapse_conf(&config);
        self.problems.mtls.reload(&config.mtls());
        // The rest stays what it is until a restart, and is compared with what runs next time too.
        self.config.services = config.services;
        self.config.watchers = config.watchers;
        self.config.output = config.output;
        self.config.ingress.localhost = config.ingress.localhost;
        self.config.drain = config.drain;
        self.config.admin = self.config.admin.clone().reloaded(config.admin);
        self.config.log = config.log;
        self.config.dns.query_log = config.dns.query_log;
        self.config.mtls = config::Mtls { listen: self.config.mtls.listen.clone(), ..config.mtls };
    }

    /// Tells everyone what is in force of it, and of what our own configuration says of the same.
    fn follow_synapse_conf(&self, config: &Config) {
        self.watchers.layers().settle(self.synapse_conf.settings());
        self.watchers.follow(&self.synapse_conf.watchers(config));
        self.ingress.reload(&self.synapse_conf.ingress(config));
        self.files.follow(self.synapse_conf.targets(config));
        self.haproxy.configure(self.synapse_conf.haproxy(config));
    }
}

/// The next agent that says something. Never, without a door. Whoever knocks and says nothing only wanted to know whether
/// somebody lives here.
async fn knock(door: Option<&Door>) -> Wire {
    let Some(door) = door else { return std::future::pending().await };
    loop {
        match door.knock().await {
            Ok(Some(wire)) => return wire,
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the next agent cannot be heard");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}
