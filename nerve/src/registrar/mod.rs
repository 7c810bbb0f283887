//! Keeps the store equal to what is well here.
//!
//! Desired = sources × health × drains (`board`); actual = the store; the `writer` repairs the difference, on every change and
//! on a slow tick, under one session a node. An instance that fails its checks stays registered, as critical and with the
//! reason, so that every node can say why it gets no traffic.
//!
//! What it never does: make a check wait for the store, overwrite what another node owns, or write a state that has
//! been overtaken.

mod board;
mod carried;
mod handle;
mod lapse;
mod leave;
mod metrics;
mod pace;
mod pause;
mod settle;
mod status;
mod writer;

#[cfg(test)]
mod handed_over;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use futures_util::future::select_all;
use tokio::sync::watch;

pub use carried::{Carried, CarriedInstance, CarriedRecord, CarriedSession};
pub use handle::Handle;
pub use metrics::Metrics;
pub use status::{LocalInstance, Problem, Refusal, Registration, ReportError};

use board::Board;
use writer::{Asked, Orders, Writer};

use crate::check::{Damping, Runner};
use crate::model::{NodeName, Region, Zone};
use crate::period::Period;
use crate::source::{ApiSource, Drains, Snapshot, Source, merge};
use crate::store::Store;
use crate::tasks::Tasks;

/// What the registrar is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node's name.
    pub node: NodeName,
    /// The address that other nodes reach it by.
    pub address: IpAddr,
    /// Where it stands.
    pub region: Option<Region>,
    /// Where in the region.
    pub zone: Option<Zone>,
    /// The port where it certifies other nodes, if it does.
    pub signer_port: Option<u16>,
    /// The port where it takes other nodes' tunnels at first, if it does; see [`Handle::offer_tunnel`].
    pub tunnel_port: Option<u16>,
    /// The agent's version.
    pub version: String,
    /// How long the store remembers this node after it has fallen silent.
    pub session_ttl: Period,
    /// How often every record is looked at, whether anything happened or not.
    pub repair_interval: Period,
    /// How many probes run at a time; each is a file descriptor.
    pub max_probes: NonZeroUsize,
    /// When an instance that comes and goes is held down.
    pub damping: Damping,
}

impl Config {
    /// The defaults: a time to live of 10 s, a repair every 30 s, 512 probes at a time.
    #[must_use]
    pub fn new(node: NodeName, address: IpAddr, version: &str) -> Self {
        const PROBES: NonZeroUsize = NonZeroUsize::new(512).unwrap();
        Self {
            node,
            address,
            region: None,
            zone: None,
            signer_port: None,
            tunnel_port: None,
            version: version.to_owned(),
            session_ttl: Period::seconds(10),
            repair_interval: Period::seconds(30),
            max_probes: PROBES,
            damping: Damping::default(),
        }
    }
}

/// Leaving was not confirmed by the store in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the store did not confirm that this node is deregistered: {reason}; its records end at the latest {ttl} from now"
)]
pub struct LeaveError {
    /// The session's time to live.
    pub ttl: Period,
    /// What the store said last.
    pub reason: String,
}

/// Handing over did not come about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the registrar still writes to the store after {within:?}, or the agent leaves; ask again in a moment"
)]
pub struct HandOverError {
    /// How long it was given.
    pub within: std::time::Duration,
}

/// Starts checking and registering what `sources` define, the first taking precedence, and after them the run-time API.
/// Ends with `tasks`; without [`Handle::deregister_all`] before, the records stay for the session's time to live, so that
/// an agent that is restarted finds them again. `carried` is what a process that this one replaces gave it.
#[must_use]
pub fn start(
    config: Config,
    store: Arc<dyn Store>,
    sources: &[&dyn Source],
    api: ApiSource,
    tasks: &Tasks,
    metrics: Metrics,
    carried: Option<Carried>,
) -> Handle {
    let Carried { session, records, instances } = carried.unwrap_or_default();
    let mut snapshots: Vec<_> = sources.iter().map(|source| source.snapshots()).collect();
    snapshots.push(api.snapshots());
    let drains = api.drains();
    let runner = Runner::new(tasks.clone(), config.max_probes, config.damping, metrics.checks.clone());
    let board = Arc::new(Board::new(config.clone(), metrics.clone()));
    board.inherit(&records, instances);
    take_in(&board, &mut snapshots, &mut drains.clone(), &runner);

    let (followed, stop) = (Arc::clone(&board), tasks.stop_token());
    tasks.spawn_restarted("registrar sources", move || {
        let follow = follow(Arc::clone(&followed), snapshots.clone(), drains.clone(), runner.clone());
        let stop = stop.clone();
        async move {
            let _ = stop.run_until_cancelled(follow).await;
        }
    });

    let (ask, asked) = watch::channel(Asked::Serve);
    let ((tell_left, left), (tell_paused, paused)) = (watch::channel(None), watch::channel(None));
    let orders = Orders {
        asked,
        left: Arc::new(tell_left),
        paused: Arc::new(tell_paused),
        carried: Arc::new(Mutex::new(session.map(|session| (session, records)))),
    };
    let (written, stop) = (Arc::clone(&board), tasks.stop_token());
    tasks.spawn_restarted("registrar writer", move || {
        let (store, board) = (Arc::clone(&store), Arc::clone(&written));
        let writer = Writer::new(store, board, config.clone(), metrics.clone(), orders.clone());
        let stop = stop.clone();
        async move {
            let _ = stop.run_until_cancelled(Box::pin(writer.run())).await;
        }
    });
    let (lapsing, deregisters, stop) = (Arc::clone(&board), api.clone(), tasks.stop_token());
    tasks.spawn_restarted("registrar lapses", move || {
        let lapse = lapse::run(Arc::clone(&lapsing), deregisters.clone());
        let stop = stop.clone();
        async move {
            let _ = stop.run_until_cancelled(lapse).await;
        }
    });
    Handle { board, api, ask: Arc::new(ask), left, paused }
}

/// Takes in what the sources say now.
fn take_in(
    board: &Arc<Board>,
    snapshots: &mut [watch::Receiver<Arc<Snapshot>>],
    drains: &mut watch::Receiver<Arc<Drains>>,
    runner: &Runner,
) {
    let newest: Vec<_> =
        snapshots.iter_mut().map(|snapshots| Arc::clone(&snapshots.borrow_and_update())).collect();
    board.define(merge(&newest), runner);
    let drains = Arc::clone(&drains.borrow_and_update());
    board.drain(drains);
}

async fn follow(
    board: Arc<Board>,
    mut snapshots: Vec<watch::Receiver<Arc<Snapshot>>>,
    mut drains: watch::Receiver<Arc<Drains>>,
    runner: Runner,
) {
    loop {
        take_in(&board, &mut snapshots, &mut drains, &runner);
        let sources = select_all(snapshots.iter_mut().map(|snapshots| Box::pin(changed(snapshots))));
        tokio::select! {
            _ = sources => {}
            () = changed(&mut drains) => {}
        }
    }
}

/// Waits for something new; a source that has ended says nothing new, and what it last said stays.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
