//! The data plane: its threads, and the control plane's handle on them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::inbox::Inbox;
use super::limit::ConnectionLimit;
use super::metrics::Metrics;
use super::route::Route;
use super::worker::Worker;
use super::{BindError, Config, Transport, socket, udp};
use crate::balance::Balancer;

/// Descriptors that are not for client connections: listeners, store, checks, DNS, files.
const RESERVED_DESCRIPTORS: u64 = 1024;

/// What to listen on, and for whom.
#[derive(Debug, Clone)]
pub struct ListenerSpec {
    /// The address; a wildcard IPv6 address takes both families.
    pub address: SocketAddr,
    /// Who gets the connections.
    pub balancer: Arc<Balancer>,
    /// How the threads come to their connections.
    pub sharing: Sharing,
}

/// How the threads share a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// A socket a thread (`SO_REUSEPORT`): the kernel spreads clients, and no thread touches what another one uses.
    #[default]
    PerThread,
    /// One socket that all threads watch: for thousands of listeners, of which each costs a descriptor.
    One,
}

/// An open listener. Dropping it closes it at once, with its connections.
#[derive(Debug)]
pub struct Listener {
    id: ListenerId,
    address: SocketAddr,
    open: Vec<Arc<OpenConnections>>,
    threads: Vec<Arc<Inbox<Command>>>,
    is_leaving: Arc<AtomicBool>,
}

/// The data-plane threads.
#[derive(Debug)]
pub struct DataPlane {
    config: Arc<Config>,
    metrics: Metrics,
    limit: Arc<ConnectionLimit>,
    threads: Vec<Thread>,
    next_listener: AtomicU64,
    /// UDP listeners by address, also those that have stopped and still have sessions.
    udp: Mutex<HashMap<SocketAddr, (ListenerId, Weak<AtomicBool>)>>,
}

#[derive(Debug)]
struct Thread {
    inbox: Arc<Inbox<Command>>,
    handle: JoinHandle<()>,
}

/// Which listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListenerId(u64);

impl ListenerId {
    /// One of `count` places: those after one another get different ones.
    #[allow(clippy::cast_possible_truncation, reason = "less than `count`")]
    fn spread(self, count: usize) -> usize {
        (self.0 % count.max(1) as u64) as usize
    }
}

/// What the control plane tells a thread.
#[derive(Debug)]
pub(super) enum Command {
    /// Listen on the socket.
    Open(Arc<OwnedFd>, Box<Route>),
    /// Take datagrams from the socket.
    OpenUdp(Arc<OwnedFd>, Box<udp::Route>),
    /// Take what waits, then nothing more.
    StopAccepting(ListenerId),
    /// Reset the listener's connections.
    Reset(ListenerId),
    /// End, with what connections there are.
    End,
}

/// What one thread has open of one listener. Written by that thread alone.
#[derive(Debug, Default)]
pub(super) struct OpenConnections {
    count: AtomicU32,
    /// It accepts no more.
    stopped: AtomicBool,
}

impl OpenConnections {
    pub(super) fn add(&self) {
        self.count.store(self.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub(super) fn sub(&self) {
        self.count.store(self.count.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }
}

impl DataPlane {
    /// Starts the threads. They inherit the network namespace of the calling thread.
    pub fn start(config: Config, metrics: Metrics) -> io::Result<Self> {
        let threads = config
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));
        let limit = config.max_connections.map_or_else(connections_by_descriptors, NonZeroU32::get);
        let limit = Arc::new(ConnectionLimit::new(limit));
        let max_sessions =
            config.udp.max_sessions.map_or_else(|| udp::max_sessions(limit.limit()), NonZeroU32::get);
        let sessions = usize::try_from(max_sessions).unwrap_or(usize::MAX).div_ceil(threads.get());
        let udp = udp::Limits { sessions, idle_timeout: config.udp.idle_timeout };
        let threads = (0..threads.get())
            .map(|index| Thread::start(index, &limit, udp, &metrics))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            config: Arc::new(config),
            metrics,
            limit,
            threads,
            next_listener: AtomicU64::new(0),
            udp: Mutex::default(),
        })
    }

    /// Opens a listener on every thread. When this returns, the port answers.
    pub fn open(&self, spec: ListenerSpec) -> Result<Listener, BindError> {
        let failed = |source| BindError { address: spec.address, transport: Transport::Tcp, source };
        if spec.address.port() != 0 {
            socket::probe(spec.address).map_err(failed)?;
        }
        let count = match spec.sharing {
            Sharing::PerThread => self.threads.len(),
            Sharing::One => 1,
        };
        let mut address = spec.address;
        let mut sockets = Vec::with_capacity(count);
        for _ in 0..count {
            let socket = socket::listen(address).map_err(failed)?;
            address = socket::local_address(&socket).map_err(failed)?;
            sockets.push(Arc::new(socket));
        }
        let listener = self.listener(address);
        for (index, thread) in self.threads.iter().enumerate() {
            let socket = Arc::clone(&sockets[index % count]);
            let route = Box::new(self.route(&spec.balancer, &listener, index));
            thread
                .inbox
                .send(Command::Open(socket, route))
                .map_err(|error| failed(io::Error::other(error)))?;
        }
        Ok(listener)
    }

    /// Opens a listener for datagrams: a socket a thread, or with [`Sharing::One`] one socket on one thread, since a client's
    /// sessions must not be on several. When this returns, the port answers. A listener on the same address that has stopped
    /// gives way, with what sessions it has left: its clients are better off with whoever has the port now.
    pub fn open_udp(&self, spec: ListenerSpec) -> Result<Listener, BindError> {
        let failed = |source| BindError { address: spec.address, transport: Transport::Udp, source };
        let mut known = self.udp.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.get(&spec.address).and_then(|(id, leaving)| Some((*id, leaving.upgrade()?)));
        match before.filter(|(_, leaving)| leaving.load(Ordering::Acquire)) {
            Some((id, _)) => self.tell(|| Command::Reset(id)),
            None if spec.address.port() != 0 => udp::probe(spec.address).map_err(failed)?,
            None => {}
        }
        let count = match spec.sharing {
            Sharing::PerThread => self.threads.len(),
            Sharing::One => 1,
        };
        let mut address = spec.address;
        let mut sockets = Vec::with_capacity(count);
        for _ in 0..count {
            let socket = udp::listen(address).map_err(failed)?;
            address = socket::local_address(&socket).map_err(failed)?;
            sockets.push(Arc::new(socket));
        }
        let listener = self.listener(address);
        let first = match spec.sharing {
            Sharing::PerThread => 0,
            Sharing::One => listener.id.spread(self.threads.len()),
        };
        for (offset, socket) in sockets.into_iter().enumerate() {
            let route = Box::new(self.udp_route(&spec.balancer, &listener, first + offset));
            self.threads[first + offset]
                .inbox
                .send(Command::OpenUdp(socket, route))
                .map_err(|error| failed(io::Error::other(error)))?;
        }
        // A thread that has no part in it has nothing to stop.
        listener
            .open
            .iter()
            .enumerate()
            .filter(|(n, _)| !(first..first + count).contains(n))
            .for_each(|(_, o)| o.stop());
        known.retain(|_, (_, leaving)| leaving.strong_count() > 0);
        known.insert(address, (listener.id, Arc::downgrade(&listener.is_leaving)));
        Ok(listener)
    }

    fn listener(&self, address: SocketAddr) -> Listener {
        Listener {
            id: ListenerId(self.next_listener.fetch_add(1, Ordering::Relaxed)),
            address,
            open: self.threads.iter().map(|_| Arc::default()).collect(),
            threads: self.threads.iter().map(|thread| Arc::clone(&thread.inbox)).collect(),
            is_leaving: Arc::default(),
        }
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for thread in &self.threads {
            // A thread that has ended has closed everything.
            let _ = thread.inbox.send(command());
        }
    }

    fn udp_route(&self, balancer: &Arc<Balancer>, listener: &Listener, thread: usize) -> udp::Route {
        udp::Route {
            listener: listener.id,
            open: Arc::clone(&listener.open[thread]),
            balancer: Arc::clone(balancer),
            config: Arc::clone(&self.config),
            tally: self.metrics.udp.tally(balancer.service().as_str(), thread),
        }
    }

    fn route(&self, balancer: &Arc<Balancer>, listener: &Listener, thread: usize) -> Route {
        let service = balancer.service().as_str();
        Route {
            listener: listener.id,
            open: Arc::clone(&listener.open[thread]),
            balancer: Arc::clone(balancer),
            config: Arc::clone(&self.config),
            tally: self.metrics.tally(service, thread),
            connect_time: self.metrics.connect_time(service),
        }
    }

    /// How many client connections may be open at once.
    #[must_use]
    pub fn max_connections(&self) -> u32 {
        self.limit.limit()
    }

    /// Ends the threads, with what connections are left. Blocks until they have ended.
    pub fn shutdown(self) {
        self.tell(|| Command::End);
        for thread in self.threads {
            if thread.handle.join().is_err() {
                tracing::error!("a data-plane thread ended by a panic");
            }
        }
    }
}

impl Thread {
    fn start(
        index: usize,
        limit: &Arc<ConnectionLimit>,
        udp: udp::Limits,
        metrics: &Metrics,
    ) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::new()?);
        let (limit, metrics, worker_inbox) = (Arc::clone(limit), metrics.clone(), Arc::clone(&inbox));
        // Says whether it could start, so that an error is the caller's and not the thread's.
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let handle = std::thread::Builder::new().name(format!("data-{index}")).spawn(move || {
            match Worker::new(worker_inbox, limit, udp, metrics) {
                Ok(worker) => {
                    let _ = tell.send(Ok(()));
                    worker.run();
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        })?;
        told.recv().map_err(io::Error::other)??;
        Ok(Self { inbox, handle })
    }
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
        self.open.iter().map(|open| open.count.load(Ordering::Relaxed)).sum()
    }

    /// Takes no new connections from now on. What the kernel had completed already is still served.
    pub fn stop_accepting(&self) {
        self.is_leaving.store(true, Ordering::Release);
        self.tell(Command::StopAccepting);
    }

    fn tell(&self, command: impl Fn(ListenerId) -> Command) {
        for thread in &self.threads {
            // A thread that has ended has closed everything.
            let _ = thread.send(command(self.id));
        }
    }

    /// Takes no new connections and waits until those that are open have ended, at most for `deadline`; then resets
    /// the rest. Tells how many were reset.
    pub async fn drain(self, deadline: Duration) -> u32 {
        /// How often the number of open connections is looked at; nobody waits for a drain to the millisecond.
        const LOOK: Duration = Duration::from_millis(20);
        self.stop_accepting();
        let has_ended =
            || self.open.iter().all(|open| open.stopped.load(Ordering::Acquire)) && self.connections() == 0;
        let all_ended = async {
            while !has_ended() {
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
        self.tell(Command::StopAccepting);
        self.tell(Command::Reset);
    }
}

/// Two descriptors a connection, of what the process may have open.
fn connections_by_descriptors() -> u32 {
    let (soft, _) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let reserved = RESERVED_DESCRIPTORS.min(soft / 2);
    u32::try_from((soft - reserved) / 2).unwrap_or(u32::MAX).max(1)
}
