//! Mutual TLS between nodes: who is reached by tunnels (`proxy`), by what they are proved (`identity`), and what is never reached
//! otherwise.
//!
//! `keeper` tells the data plane, `targets` says where what arrives may go, and `wall` sees to it that the packet filter refuses
//! other hosts that come to strict instances in the clear, by the rules of `ruleset` (pure). *Never* in the path of a packet.

mod keeper;
mod metrics;
mod ruleset;
mod targets;
mod wall;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nerve::model::{Instance, MtlsMode, NodeName};
use nerve::tasks::Tasks;
use synapse::catalog::Catalog;
use tokio::sync::watch;

use keeper::Keeper;
use targets::Targets;
use wall::{Wall, Wanted};

pub use metrics::Metrics;
use ruleset::TABLE;

use crate::identity;
use crate::inherited::Inherited;
use crate::nft::Kept;
use crate::proxy::{DataPlane, Listener};
use crate::rules::Rules;

/// The port that other nodes' tunnels come to.
pub const TUNNEL_PORT: u16 = 7443;

/// What this room is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub node: NodeName,
    /// What holds here for services that say nothing else, unless the mesh asks for more.
    pub mode: MtlsMode,
    /// Where other nodes' tunnels are taken; the first port is the one that they are told.
    pub listen: Vec<SocketAddr>,
    /// Names of links by which only what is on this host comes, `*` at the end for any end.
    pub local_links: Arc<[String]>,
}

/// The instances that this node is about to register, has registered, and is taking back.
#[derive(Clone)]
pub struct Registered {
    /// Those.
    pub instances: Arc<dyn Fn() -> Vec<Instance> + Send + Sync>,
    /// Changes when they do.
    pub changes: watch::Receiver<u64>,
}

/// What this room works with.
pub struct Means {
    /// Carries tunnels.
    pub plane: Arc<DataPlane>,
    /// What this node proves itself by.
    pub identity: identity::Handle,
    /// Nodes, and services' settings.
    pub catalog: Catalog,
    /// What is here.
    pub registered: Registered,
    /// Who may be connected to it.
    pub rules: Rules,
    /// Tells other nodes where tunnels are taken; `None`: nowhere.
    pub offer: Arc<dyn Fn(Option<u16>) + Send + Sync>,
    /// Sockets of an earlier process.
    pub inherited: Inherited,
    /// What is counted.
    pub metrics: Metrics,
}

/// How it stands. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    config: Arc<watch::Sender<Config>>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    listeners: Vec<Listener>,
    /// What the mesh asks for.
    of_mesh: MtlsMode,
    problems: BTreeMap<Problem, String>,
}

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Problem {
    Listen,
    Credentials,
    Wall,
}

/// Whose the tasks are.
#[derive(Debug, Clone, Copy)]
pub struct Owners<'a> {
    /// Tells the data plane, for as long as there are connections.
    pub keeper: &'a Tasks,
    /// Sets the packet filter, until another agent goes on with that.
    pub wall: &'a Tasks,
}

/// Takes out of this node's packet filter what keeps other hosts from strict instances: for when its agent is gone for good. Tells
/// which table that was, if there was one.
///
/// # Errors
/// The kernel refuses, or there is no `nft` and it cannot be told whether there are rules.
pub async fn cleanup() -> io::Result<Option<String>> {
    let listed = TABLE.list().await.map_err(io::Error::other)?;
    TABLE.remove().await.map_err(io::Error::other)?;
    Ok(listed.map(|_| TABLE.to_string()))
}

/// Starts the tasks. When this returns, tunnels are taken that an agent before has taken.
#[must_use]
pub fn start(config: Config, means: Means, owners: Owners<'_>) -> Handle {
    let Means { plane, identity, catalog, registered, rules, offer, inherited, metrics } = means;
    let handle = Handle { config: Arc::new(watch::Sender::new(config)), shared: Arc::default() };
    let (wanted, of_wall) = watch::channel(None::<Wanted>);
    let (run, targets, wanted) = (handle.clone(), Arc::new(Targets::new(rules)), Arc::new(wanted));
    let counts = metrics.clone();
    let make = move || Keeper {
        handle: run.clone(),
        config: run.config.subscribe(),
        plane: Arc::clone(&plane),
        identity: identity.clone(),
        catalog: catalog.clone(),
        registered: registered.clone(),
        offer: Arc::clone(&offer),
        inherited: inherited.clone(),
        metrics: counts.clone(),
        targets: Arc::clone(&targets),
        wanted: Arc::clone(&wanted),
        known: HashMap::new(),
        modes: HashMap::new(),
        revoked: HashSet::new(),
        fresh_until: None,
        force: keeper::Force::default(),
    };
    make().begin();
    owners.keeper.spawn_until_stopped("mutual TLS", move || make().run());
    let refuses = handle.clone();
    owners.wall.spawn_until_stopped("strict instances", move || {
        let wall = Wall {
            handle: refuses.clone(),
            wanted: of_wall.clone(),
            metrics: metrics.clone(),
            kept: Kept::new([TABLE]),
            counted: 0,
            is_said: false,
        };
        wall.run()
    });
    handle
}

impl Handle {
    /// Follows another configuration. Where to listen stays what it was.
    pub fn reload(&self, config: &Config) {
        self.config.send_if_modified(|before| {
            let now = Config { listen: before.listen.clone(), ..config.clone() };
            let is_new = *before != now;
            *before = now;
            is_new
        });
    }

    /// What holds for services that say nothing else.
    #[must_use]
    pub fn mode(&self) -> MtlsMode {
        let own = self.config.borrow().mode;
        own.max(self.lock().of_mesh)
    }

    /// The mesh asks for this.
    fn settle(&self, of_mesh: MtlsMode) {
        let before = std::mem::replace(&mut self.lock().of_mesh, of_mesh);
        if before != of_mesh {
            tracing::info!(mode = %of_mesh, "how nodes reach each other's instances");
        }
    }

    /// The port where other nodes' tunnels are taken; `None`: they are not.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        let shared = self.lock();
        shared.listeners.iter().find_map(|listener| Some(listener.address().ip()?.port()))
    }

    /// What is wrong, a sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.lock().problems.values().cloned().collect()
    }

    /// The sockets that tunnels come to, for another process.
    #[must_use]
    pub fn sockets(&self) -> Vec<Arc<OwnedFd>> {
        self.lock().listeners.iter().flat_map(Listener::sockets).collect()
    }

    /// Takes no new tunnels and waits for the streams that have arrived; resets what is left after `deadline`, and tells how
    /// many those were.
    pub async fn drain(&self, deadline: Duration) -> u32 {
        let listeners = std::mem::take(&mut self.lock().listeners);
        let drained =
            futures_util::future::join_all(listeners.into_iter().map(|listener| listener.drain(deadline)));
        drained.await.into_iter().sum()
    }

    /// The same where another process goes on with the sockets.
    pub async fn hand_over(&self, deadline: Duration) -> u32 {
        self.lock().listeners.iter().for_each(Listener::hand_over);
        self.drain(deadline).await
    }

    fn is_open(&self, address: SocketAddr) -> bool {
        let is_it = |listener: &Listener| listener.address().ip() == Some(address);
        self.lock().listeners.iter().any(is_it)
    }

    fn opened(&self, listener: Listener) {
        self.lock().listeners.push(listener);
    }

    fn note(&self, of: Problem, problem: Option<String>) {
        let mut shared = self.lock();
        match problem {
            Some(problem) => {
                if shared.problems.get(&of) != Some(&problem) {
                    tracing::error!("mutual TLS: {problem}");
                }
                shared.problems.insert(of, problem);
            }
            None => drop(shared.problems.remove(&of)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Each change is a single one.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
