//! The agent: every room, composed into one running program. Reads top-down as the list of everything that runs.
//!
//! An [`Agent`] is a thread with the control plane's runtime; data plane and DNS have threads of their own, made from it, so
//! that all of them are in the network namespace of whoever started the agent. Nothing else in the program makes
//! runtimes or root tasks.

pub(crate) mod attachments;
pub mod demo;
mod estate;
mod handover;
mod leave;
mod logging;
mod metrics;
mod name_server;
mod phase;
mod replace;
mod rooms;
mod run;
mod seams;
mod signals;
mod start;
mod synapse_conf;
mod systemd;
mod trust;
mod who_may;

use std::sync::Arc;

use anyhow::Context;
use nerve::registrar;
use nerve::store::Store;
use synapse::catalog::Catalog;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use phase::Phase;
pub use run::run;

use crate::config::Config;
use crate::inherited::Inherited;
use crate::readiness::Readiness;
use crate::{ingress, overlay};
use rooms::{Ending, Rooms};

/// Reloads that wait while one is applied: the newest is what counts, so one is enough.
const RELOADS: usize = 1;

/// A running agent. Dropping it leaves it running; [`Agent::stop`] and [`Agent::join`] end it.
#[derive(Debug)]
pub struct Agent {
    catalog: Catalog,
    ingress: ingress::Handle,
    readiness: Readiness,
    phase: watch::Receiver<Phase>,
    took_over: bool,
    overlay: overlay::Handle,
    registrar: registrar::Handle,
    stop: CancellationToken,
    reload: mpsc::Sender<Config>,
    ended: oneshot::Receiver<()>,
}

/// What an agent starts from.
#[derive(Debug, Default)]
struct Origin {
    /// A store that others in this process use too.
    shared: Option<Arc<dyn Store>>,
    /// Sockets that the service manager opened.
    inherited: Inherited,
    /// How it stands to other agents of its state directory; `None`: there are none, before or after.
    succession: Option<Succession>,
}

/// What to do about an agent that runs with the same state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// Refuse to start.
    Alone,
    /// Take over from it; without one, start as ever.
    TakeOver,
}

/// What the starting thread is told when the rooms are up.
struct Started {
    catalog: Catalog,
    ingress: ingress::Handle,
    readiness: Readiness,
    phase: watch::Receiver<Phase>,
    took_over: bool,
    overlay: overlay::Handle,
    registrar: registrar::Handle,
}

impl Agent {
    /// Starts an agent; `shared` is a store that others in this process use too, else it opens its own. Returns when its
    /// sockets are bound; [`Phase::Ready`] comes later.
    pub fn start(config: Config, shared: Option<Arc<dyn Store>>) -> anyhow::Result<Self> {
        Self::start_from(config, Origin { shared, ..Origin::default() })
    }

    fn start_from(config: Config, origin: Origin) -> anyhow::Result<Self> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let (end, ended) = oneshot::channel();
        let (reload, reloads) = mpsc::channel(RELOADS);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            runtime.block_on(async {
                match Box::pin(Rooms::start(config, origin)).await {
                    Ok(mut rooms) => {
                        // The receiver waits for this; were it gone, the process is ending.
                        let _ = tell.send(Ok(rooms.started()));
                        match rooms.serve(stopped, reloads).await {
                            Ending::Leave => Box::pin(leave::leave(rooms)).await,
                            Ending::HandedOver(successor) => Box::pin(leave::to(successor, rooms)).await,
                        }
                    }
                    Err(error) => {
                        let _ = tell.send(Err(error));
                    }
                }
            });
            let _ = end.send(());
        })?;
        let started = told.recv().context("the control thread ended while it started")??;
        let Started { catalog, ingress, readiness, phase, took_over, overlay, registrar } = started;
        Ok(Self { catalog, ingress, readiness, phase, took_over, overlay, registrar, stop, reload, ended })
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.clone()
    }

    /// Waits until it is known that the node's name is its own.
    ///
    /// # Errors
    /// Another agent has it, and goes on.
    async fn has_its_name(&self) -> Result<(), registrar::Refusal> {
        self.registrar.has_its_name().await
    }

    /// Did it take over from another agent?
    #[must_use]
    pub fn has_taken_over(&self) -> bool {
        self.took_over
    }

    /// Its part in overlay networks. What it is asked to do belongs to the network namespace of whoever asks.
    #[must_use]
    pub fn overlay(&self) -> overlay::Handle {
        self.overlay.clone()
    }

    /// What it waits for before it is ready.
    #[must_use]
    pub fn awaited(&self) -> String {
        let awaited = self.readiness.awaited();
        if awaited.is_empty() { "nothing is awaited any more".to_owned() } else { awaited.join(", ") }
    }

    /// Applies what may be changed while it runs.
    pub async fn reload(&self, config: Config) {
        if self.reload.send(config).await.is_err() {
            tracing::warn!("the agent is leaving; the configuration is not read again");
        }
    }

    /// Asks it to leave: deregister, be seen to have gone, stop accepting, drain.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Completes when it has left.
    pub async fn join(self) {
        // An error means that the thread panicked, which it has logged.
        let _ = self.ended.await;
    }

    /// Completes when so many endpoints serve here and so many ports of services are open.
    pub async fn wait_until_serving(&self, endpoints: usize, ports: usize) {
        let mut changes = self.catalog.subscribe();
        loop {
            let serving: usize =
                self.catalog.services().iter().map(|service| service.serving().count()).sum();
            if serving >= endpoints && self.ingress.open() >= ports {
                return;
            }
            // A port opens a moment after the catalog has changed, without a change of its own.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(50), changes.changed()).await;
        }
    }
}
