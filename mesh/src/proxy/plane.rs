//! The data plane: its threads, and the control plane's handle on them.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nerve::tasks::Tasks;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::listener::{Acceptor, Slots};
use super::metrics::{Metrics, ServiceMetrics};
use super::tcp::Route;
use super::{BindError, Config, socket};
use crate::balance::Balancer;

/// Commands that wait for a thread. Each is a listener to open; more than this means that the thread hangs.
const COMMANDS: usize = 1024;
/// Descriptors that are not for client connections: listeners, store, checks, DNS, files.
const RESERVED_DESCRIPTORS: u64 = 1024;

/// What to listen on, and for whom.
#[derive(Debug, Clone)]
pub struct ListenerSpec {
    /// The address; a wildcard IPv6 address takes both families.
    pub address: SocketAddr,
    /// Who gets the connections.
    pub balancer: Arc<Balancer>,
}

/// An open listener. Dropping it closes it at once, with its connections.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    open: Arc<AtomicU32>,
    stop: CancellationToken,
    force: CancellationToken,
}

/// The data-plane threads.
#[derive(Debug)]
pub struct DataPlane {
    config: Arc<Config>,
    metrics: Metrics,
    slots: Arc<Slots>,
    workers: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    commands: mpsc::Sender<Open>,
    thread: JoinHandle<()>,
}

/// One listening socket for one thread.
struct Open {
    listener: std::net::TcpListener,
    route: Arc<Route>,
    open: Arc<AtomicU32>,
    stop: CancellationToken,
}

impl DataPlane {
    /// Starts the threads. They inherit the network namespace of the calling thread.
    pub fn start(config: Config, metrics: Metrics) -> io::Result<Self> {
        let threads = config
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));
        let limit = config.max_connections.map_or_else(connections_by_descriptors, std::num::NonZeroU32::get);
        let slots = Arc::new(Slots::new(limit));
        let mut workers = Vec::with_capacity(threads.get());
        for index in 0..threads.get() {
            workers.push(Worker::start(index, Arc::clone(&slots), metrics.clone())?);
        }
        Ok(Self { config: Arc::new(config), metrics, slots, workers })
    }

    /// Opens a listener on every thread. When this returns the port answers.
    pub fn open(&self, spec: ListenerSpec) -> Result<Listener, BindError> {
        let failed = |source| BindError { address: spec.address, source };
        if spec.address.port() != 0 {
            socket::probe(spec.address).map_err(failed)?;
        }
        let mut address = spec.address;
        let mut sockets = Vec::with_capacity(self.workers.len());
        for _ in &self.workers {
            let listener = socket::listen(address).map_err(failed)?;
            address = listener.local_addr().map_err(failed)?;
            sockets.push(listener);
        }
        let listener = Listener {
            address,
            open: Arc::default(),
            stop: CancellationToken::new(),
            force: CancellationToken::new(),
        };
        let metrics = self.metrics.of_service(spec.balancer.service().as_str());
        for (worker, socket) in self.workers.iter().zip(sockets) {
            let open = Open {
                listener: socket,
                route: Arc::new(self.route(&spec.balancer, &metrics, &listener.force)),
                open: Arc::clone(&listener.open),
                stop: listener.stop.clone(),
            };
            worker.commands.try_send(open).map_err(|_| {
                failed(io::Error::other(
                    "a data-plane thread does not take it: it hangs or has ended; restart the agent",
                ))
            })?;
        }
        Ok(listener)
    }

    fn route(&self, balancer: &Arc<Balancer>, metrics: &ServiceMetrics, force: &CancellationToken) -> Route {
        Route {
            balancer: Arc::clone(balancer),
            config: Arc::clone(&self.config),
            metrics: metrics.clone(),
            force: force.clone(),
        }
    }

    /// How many client connections may be open at once.
    #[must_use]
    pub fn max_connections(&self) -> u32 {
        self.slots.limit()
    }

    /// Ends the threads, with what connections are left. Blocks until they have ended.
    pub fn shutdown(self) {
        for worker in self.workers {
            drop(worker.commands);
            if worker.thread.join().is_err() {
                tracing::error!("a data-plane thread ended by a panic");
            }
        }
    }
}

impl Worker {
    fn start(index: usize, slots: Arc<Slots>, metrics: Metrics) -> io::Result<Self> {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        // Made here, so that an error is the caller's and not the thread's.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name(format!("data-{index}"))
            .spawn(move || runtime.block_on(work(inbox, slots, metrics)))?;
        Ok(Self { commands, thread })
    }
}

async fn work(mut inbox: mpsc::Receiver<Open>, slots: Arc<Slots>, metrics: Metrics) {
    let tasks = Tasks::new();
    while let Some(open) = inbox.recv().await {
        let listener = match tokio::net::TcpListener::from_std(open.listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "a listener cannot be registered with its thread");
                continue;
            }
        };
        let acceptor = Acceptor {
            listener,
            route: open.route,
            slots: Arc::clone(&slots),
            open: open.open,
            accept_errors: metrics.accept_errors.clone(),
            stop: open.stop,
            tasks: tasks.clone(),
        };
        tasks.spawn("listener", acceptor.run());
    }
    // The runtime ends with this function, and what is left of connections with it.
}

impl Listener {
    /// Where it listens; the real port where 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Client connections that are open.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Takes no new connections from now on. What the kernel had completed already is still served.
    pub fn stop_accepting(&self) {
        self.stop.cancel();
    }

    /// Takes no new connections and waits until those that are open have ended, at most for `deadline`; then resets
    /// the rest. Tells how many were reset.
    pub async fn drain(self, deadline: Duration) -> u32 {
        /// How often the number of open connections is looked at; nobody waits for a drain to the millisecond.
        const LOOK: Duration = Duration::from_millis(20);
        self.stop_accepting();
        let all_ended = async {
            // Once more after the last accept, which the threads do when they see the stop.
            tokio::time::sleep(LOOK).await;
            while self.connections() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        match tokio::time::timeout(deadline, all_ended).await {
            Ok(()) => 0,
            Err(_) => self.connections(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.cancel();
        self.force.cancel();
    }
}

/// Two descriptors a connection, of what the process may have open.
fn connections_by_descriptors() -> u32 {
    let (soft, _) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let reserved = RESERVED_DESCRIPTORS.min(soft / 2);
    u32::try_from((soft - reserved) / 2).unwrap_or(u32::MAX).max(1)
}
