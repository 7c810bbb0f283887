//! The data plane: its threads, and the control plane's handle on them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use nerve::model::{Address, NodeName};

use super::access::AccessTable;
use super::command::Command;
use super::inbox::Inbox;
use super::limit::ConnectionLimit;
use super::metrics::Metrics;
use super::route::{ListenerId, OpenConnections, Route};
use super::seat::Seat;
use super::transparent::Steering;
use super::tunnel_table::TunnelTable;
use super::worker::{Surroundings, Worker};
use super::{BindError, Config, Transport, socket, udp};
use crate::balance::{Balancer, OnClosing};
use crate::socket_file::SocketFile;

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
    /// Sockets that listen there already, from an earlier process or from systemd. They are used, whatever their number: what
    /// waits in their queues is served.
    pub inherited: Vec<Arc<OwnedFd>>,
    /// Others of ours have the port on addresses that overlap with this one: whether anybody else has it cannot be asked
    /// beforehand, for they would answer. The kernel prefers the more specific address.
    pub overlaps: bool,
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
    pub(super) id: ListenerId,
    address: Address,
    /// Of a unix socket that is ours to take away.
    file: Mutex<Option<SocketFile>>,
    /// The threads hold them, and close them when they stop accepting.
    sockets: Vec<Weak<OwnedFd>>,
    pub(super) open: Vec<Arc<OpenConnections>>,
    threads: Vec<Arc<Inbox<Command>>>,
    /// It was told to accept no more.
    pub(super) is_leaving: Arc<AtomicBool>,
}

/// The data-plane threads.
#[derive(Debug)]
pub struct DataPlane {
    pub(super) config: Arc<Config>,
    pub(super) metrics: Metrics,
    limit: Arc<ConnectionLimit>,
    pub(super) threads: Vec<Thread>,
    pub(super) steering: Arc<Steering>,
    pub(super) tunnels: Arc<TunnelTable>,
    pub(super) access: Arc<AccessTable>,
    next_listener: AtomicU64,
    /// UDP listeners by address, those too that have stopped and still have sessions.
    pub(super) udp: Mutex<HashMap<SocketAddr, (ListenerId, Weak<AtomicBool>)>>,
}

#[derive(Debug)]
pub(super) struct Thread {
    pub(super) seat: Arc<Seat>,
    handle: JoinHandle<()>,
}

impl DataPlane {
    /// Starts the threads. They inherit the network namespace of the calling thread.
    pub fn start(config: Config, metrics: Metrics) -> io::Result<Self> {
        let threads = config
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));
        let limit = config.max_connections.map_or_else(connections_by_descriptors, NonZeroU32::get);
        let limit = Arc::new(ConnectionLimit::new(limit));
        let sessions =
            config.udp.max_sessions.map_or_else(|| udp::max_sessions(limit.limit()), NonZeroU32::get);
        let sessions = usize::try_from(sessions).unwrap_or(usize::MAX).div_ceil(threads.get());
        let udp = udp::Limits { sessions, idle_timeout: config.udp.idle_timeout };
        let seats = (0..threads.get())
            .map(|_| Ok(Arc::new(Seat::new(Arc::new(Inbox::new()?)))))
            .collect::<io::Result<Arc<[_]>>>()?;
        let tunnels = Arc::<TunnelTable>::default();
        let surroundings = Surroundings {
            seats: Arc::clone(&seats),
            limit: Arc::clone(&limit),
            udp,
            tunnels: Arc::clone(&tunnels),
            tcp: config.tcp.clone(),
            metrics: metrics.clone(),
        };
        let threads = (0..threads.get())
            .map(|index| Thread::start(index, surroundings.clone()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            config: Arc::new(config),
            metrics,
            limit,
            threads,
            steering: Arc::default(),
            access: Arc::default(),
            tunnels,
            next_listener: AtomicU64::new(0),
            udp: Mutex::default(),
        })
    }

    /// Opens a listener on every thread. When this returns, the port answers.
    pub fn open(&self, spec: ListenerSpec) -> Result<Listener, BindError> {
        let failed = |source| BindError { address: spec.address, transport: Transport::Tcp, source };
        let sockets = self.sockets(&spec).map_err(failed)?;
        let listener = self.listener(&sockets).map_err(failed)?;
        self.serve(&spec.balancer, &listener, &sockets).map_err(failed)?;
        Ok(listener)
    }

    /// Lets the threads accept from the sockets.
    pub(super) fn serve(
        &self,
        balancer: &Arc<Balancer>,
        listener: &Listener,
        sockets: &[Arc<OwnedFd>],
    ) -> io::Result<()> {
        // With fewer sockets than threads, all of them are everyone's.
        let is_shared = sockets.len() < self.threads.len();
        let routes: Arc<[_]> =
            (0..self.threads.len()).map(|index| Arc::new(self.route(balancer, listener, index))).collect();
        for (index, thread) in self.threads.iter().enumerate() {
            let own =
                sockets.iter().enumerate().filter(|(n, _)| is_shared || n % self.threads.len() == index);
            for (_, socket) in own {
                let command = Command::Open(Arc::clone(socket), Arc::clone(&routes));
                thread.seat.inbox.send(command).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }

    /// The handle on a listener with these sockets of an IP address, of which there is one at least.
    pub(super) fn listener(&self, sockets: &[Arc<OwnedFd>]) -> io::Result<Listener> {
        Ok(self.listener_at(socket::local_address(&sockets[0])?.into(), sockets, None))
    }

    /// The handle on a listener with these sockets.
    pub(super) fn listener_at(
        &self,
        address: Address,
        sockets: &[Arc<OwnedFd>],
        file: Option<SocketFile>,
    ) -> Listener {
        Listener {
            id: ListenerId::new(self.next_listener.fetch_add(1, Ordering::Relaxed)),
            address,
            file: Mutex::new(file),
            sockets: sockets.iter().map(Arc::downgrade).collect(),
            open: self.threads.iter().map(|_| Arc::default()).collect(),
            threads: self.threads.iter().map(|thread| Arc::clone(&thread.seat.inbox)).collect(),
            is_leaving: Arc::default(),
        }
    }

    /// Inherited sockets, and as many more as the way of sharing needs; at least one.
    fn sockets(&self, spec: &ListenerSpec) -> io::Result<Vec<Arc<OwnedFd>>> {
        let wanted = match spec.sharing {
            Sharing::PerThread => self.threads.len(),
            Sharing::One => 1,
        };
        self.sockets_at(spec.address, wanted, &spec.inherited, spec.overlaps)
    }

    /// Inherited sockets, and as many more as are wanted.
    pub(super) fn sockets_at(
        &self,
        address: SocketAddr,
        wanted: usize,
        inherited: &[Arc<OwnedFd>],
        overlaps: bool,
    ) -> io::Result<Vec<Arc<OwnedFd>>> {
        let options = &self.config.tcp;
        let mut sockets = inherited.to_vec();
        sockets.iter().try_for_each(|socket| socket::adopt(socket, options))?;
        let mut address = match sockets.first() {
            Some(socket) => socket::local_address(socket)?,
            None => address,
        };
        if sockets.is_empty() && address.port() != 0 && !overlaps {
            socket::probe(address)?;
        }
        while sockets.len() < wanted {
            match socket::listen(address, options) {
                Ok(socket) => {
                    address = socket::local_address(&socket)?;
                    sockets.push(Arc::new(socket));
                }
                // Those that were inherited do not share their port: the threads share them.
                Err(_) if !inherited.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sockets)
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
            trusted_proxies: Arc::clone(&self.config.trusted_proxies),
            steering: Arc::clone(&self.steering),
            access: Arc::clone(&self.access),
            tunnels: Arc::clone(&self.tunnels),
            is_unix: matches!(listener.address, Address::Unix(_)),
            load: Arc::clone(&self.threads[thread].seat.load),
        }
    }

    /// Ends connections of endpoints, when a balancer says so. It outlives the threads and then does nothing.
    #[must_use]
    pub fn closer(&self) -> OnClosing {
        let threads: Vec<_> = self.threads.iter().map(|thread| Arc::clone(&thread.seat.inbox)).collect();
        Arc::new(move |endpoint, closing| {
            for thread in &threads {
                let _ = thread.send(Command::Close(Arc::clone(endpoint), closing));
            }
        })
    }

    /// Where it is said which endpoints can be shown the client's address; none until somebody says so.
    #[must_use]
    pub fn steering(&self) -> Arc<Steering> {
        Arc::clone(&self.steering)
    }

    /// Where it is said who may be connected to what; everyone to everything until somebody says so.
    #[must_use]
    pub fn access(&self) -> Arc<AccessTable> {
        Arc::clone(&self.access)
    }

    /// Where it is said which nodes are reached by tunnels, and what is shown there; none until somebody says so.
    #[must_use]
    pub fn tunnels(&self) -> Arc<TunnelTable> {
        Arc::clone(&self.tunnels)
    }

    /// Breaks off what goes by tunnels to a node, or comes by those from it: it is believed no longer.
    pub fn cut_tunnels(&self, node: &NodeName) {
        for thread in &self.threads {
            // A thread that has ended has none.
            let _ = thread.seat.inbox.send(Command::CutTunnels(node.clone()));
        }
    }

    /// How many client connections may be open at once.
    #[must_use]
    pub fn max_connections(&self) -> u32 {
        self.limit.limit()
    }

    /// Ends the threads, with what connections are left. Blocks until they have ended.
    pub fn shutdown(self) {
        for thread in &self.threads {
            // One that has ended already needs no telling.
            let _ = thread.seat.inbox.send(Command::End);
        }
        for thread in self.threads {
            if thread.handle.join().is_err() {
                tracing::error!("a data-plane thread ended by a panic");
            }
        }
    }
}

impl Thread {
    fn start(index: usize, surroundings: Surroundings) -> io::Result<Self> {
        let seat = Arc::clone(&surroundings.seats[index]);
        // Says whether it could start, so that an error is the caller's and not the thread's.
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let handle = std::thread::Builder::new().name(format!("data-{index}")).spawn(move || {
            match Worker::new(index, surroundings) {
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
        Ok(Self { seat, handle })
    }
}

impl Listener {
    /// Where it listens; the real port where 0 was asked for.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Can clients find it? Somebody may have taken the file of a unix socket away.
    #[must_use]
    pub fn can_be_found(&self) -> bool {
        self.file().as_ref().is_none_or(SocketFile::is_there)
    }

    fn file(&self) -> MutexGuard<'_, Option<SocketFile>> {
        // A single value, replaced whole.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Client connections that are open.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.open.iter().map(|open| open.count()).sum()
    }

    /// The sockets that clients come from, for a process that takes over; none when it has stopped accepting.
    #[must_use]
    pub fn sockets(&self) -> Vec<Arc<OwnedFd>> {
        self.sockets.iter().filter_map(Weak::upgrade).collect()
    }

    /// Takes no new connections from now on. What the kernel had completed already is still served.
    pub fn stop_accepting(&self) {
        self.remove_file();
        self.is_leaving.store(true, Ordering::Release);
        self.tell(Command::StopAccepting);
    }

    /// Lets go of the sockets, which another process has as well: what waits in them is that one's from now on.
    pub fn hand_over(&self) {
        // The file is the other process's now.
        drop(self.file().take());
        self.is_leaving.store(true, Ordering::Release);
        self.tell(Command::HandOver);
    }

    fn remove_file(&self) {
        if let Some(file) = self.file().take() {
            file.remove();
        }
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
        /// How long threads may take to reset what is left; it is their next step.
        const RESET_WITHIN: Duration = Duration::from_secs(1);
        if !self.is_leaving.load(Ordering::Acquire) {
            self.stop_accepting();
        }
        let has_ended = || self.open.iter().all(|open| open.has_stopped()) && self.connections() == 0;
        let all_ended = async {
            while !has_ended() {
                tokio::time::sleep(LOOK).await;
            }
        };
        match tokio::time::timeout(deadline, all_ended).await {
            Ok(()) => 0,
            Err(_) => {
                let left = self.connections();
                self.tell(Command::Reset);
                // Not before clients are told: the route of a virtual address goes next, and with it the way to them.
                let reset = async {
                    while self.connections() > 0 {
                        tokio::time::sleep(LOOK).await;
                    }
                };
                let _ = tokio::time::timeout(RESET_WITHIN, reset).await;
                left
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // What waits in the sockets is not taken only to be reset, and the file of a unix socket stays: a process that fails
        // to take over must leave both to the one that runs.
        self.tell(Command::HandOver);
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
