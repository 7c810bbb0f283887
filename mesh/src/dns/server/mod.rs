//! Sockets: bound first, then served until the drain begins. UDP and TCP on every configured address, TLS and HTTPS on those for
//! them.
//!
//! An address that cannot be bound does not stop the others: it is reported, and tried again on a slow tick. Binding
//! needs no runtime; the sockets join the one that [`Bound::run`] runs on, which may be single-threaded.
//! What an overload can cost is bounded here: answers from memory are written before the next message is read, what
//! waits for upstreams is limited by the forwarder, connections by a semaphore, and a connection's share of all by its
//! own limits.

mod accept;
mod asked;
mod bind;
mod certificate;
mod https;
mod open;
mod tcp;
mod threads;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nerve::tasks::Tasks;
use synapse::catalog::Catalog;
use tokio::net::TcpListener;

use accept::Spoken;
pub use bind::{BindError, Over};
use bind::{Sockets, Taken};
use certificate::Certificate;
use open::OpenSockets;
use threads::Threads;

use super::config::Config;
use super::fast::Fast;
use super::forward::{Destination, Forwarder, Means, Servers, Source, UpstreamReport};
use super::guard::Guard;
use super::message::Handler;
use super::metrics::{Dropped, Metrics};
use super::telling::{Teller, TopReport};
use super::zone::{Explanation, Outcome, Rule, Zone};
use crate::drain::DrainWatcher;
use crate::inherited::Inherited;

/// A configured address, and whether it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// As configured.
    pub wanted: SocketAddr,
    /// What it is for.
    pub over: Over,
    /// The address that is served (a port of 0 is chosen by the kernel), or why none is.
    pub state: Result<SocketAddr, String>,
}

/// What the rest of the agent sees of DNS. Clones share it.
#[derive(Debug, Clone)]
pub struct Handle {
    zone: Arc<Zone>,
    servers: Arc<Servers>,
    /// Why the upstreams could not be read.
    unread: Arc<Mutex<Option<String>>>,
    listeners: Arc<Mutex<Vec<Listener>>>,
    open: Arc<OpenSockets>,
    teller: Arc<Teller>,
    /// What clients of TLS are shown; or why nothing can be.
    certificate: Option<Result<Certificate, String>>,
}

/// A DNS server whose sockets are bound, and which does not answer yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    metrics: Arc<Metrics>,
    handle: Handle,
    tasks: Tasks,
    inherited: Inherited,
    /// One a listener, in the same order; `None` where binding failed.
    sockets: Vec<Option<Taken>>,
    failures: Vec<BindError>,
}

/// Why a connection ended; `None`: it was the client's own end.
type Ended = Option<Dropped>;

/// Binds every address of `config`, with the sockets that are `inherited` where there are some. What fails is in
/// [`Bound::failures`] and is tried again while it runs.
#[must_use]
pub fn bind(config: Config, catalog: Catalog, inherited: Inherited, metrics: Arc<Metrics>) -> Bound {
    // Seconds since 1970 grow from one start to the next, as a serial has to, until they wrap as serials do.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let serial = u32::try_from(now & u64::from(u32::MAX)).unwrap_or(1);
    let zone = Arc::new(Zone::new(&config, catalog, serial));
    let (mut listeners, mut sockets, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for (wanted, over) in wanted(&config) {
        match Taken::bind(wanted, over, config.threads, &inherited) {
            Ok(taken) => {
                listeners.push(Listener { wanted, over, state: Ok(taken.address()) });
                sockets.push(Some(taken));
            }
            Err(error) => {
                listeners.push(Listener { wanted, over, state: Err(error.to_string()) });
                sockets.push(None);
                failures.push(error);
            }
        }
    }
    let tasks = Tasks::new();
    let means = Means::new(&config, tasks.clone(), Arc::clone(&metrics));
    let servers = Arc::new(Servers::new(means, !config.forward_special_names));
    let open = Arc::new(OpenSockets::new(config.limits.tcp_connections));
    let unread = Arc::default();
    let certificate = config
        .encrypted
        .as_ref()
        .map(|encrypted| Certificate::new(encrypted.certificate.clone()).map_err(|error| error.to_string()));
    let listeners = Arc::new(Mutex::new(listeners));
    let teller = Arc::new(Teller::new(Arc::clone(&metrics), config.query_log));
    let handle = Handle { zone, servers, unread, listeners, open, teller, certificate };
    let bound = Bound { config, metrics, handle, tasks, inherited, sockets, failures };
    bound.handle.count(&bound.metrics);
    bound.read_upstreams();
    bound
}

/// Every address, and what it is for.
fn wanted(config: &Config) -> Vec<(SocketAddr, Over)> {
    let (tls, https) = config
        .encrypted
        .as_ref()
        .map_or((&[][..], &[][..]), |encrypted| (&encrypted.tls_listen, &encrypted.https_listen));
    let all = [(&config.listen[..], Over::Plain), (tls, Over::Tls), (https, Over::Https)];
    all.iter().flat_map(|(list, over)| list.iter().map(|wanted| (*wanted, *over))).collect()
}

impl Handle {
    /// What DNS would answer here for `name`, and why. A name without a final dot is taken as if it had one.
    #[must_use]
    pub fn explain(&self, name: &str) -> Explanation {
        let mut told = self.zone.explain(name);
        if told.rule == Rule::Outside {
            let (destination, how) = self.servers.explain(&told.name);
            told.outcome = match destination {
                Destination::Upstream => Outcome::Forwarded,
                Destination::Here | Destination::Missing => Outcome::NxDomain,
                Destination::Nobody => Outcome::Refused,
            };
            told.why.push_str("; ");
            told.why.push_str(&how);
        }
        told
    }

    /// Each configured address, and whether it is served.
    #[must_use]
    pub fn listeners(&self) -> Vec<Listener> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How everyone does whom names outside the domain are forwarded to.
    #[must_use]
    pub fn upstreams(&self) -> Vec<UpstreamReport> {
        self.servers.reports()
    }

    /// What is asked most.
    #[must_use]
    pub fn top(&self) -> TopReport {
        self.teller.top()
    }

    /// What keeps names outside the domain from being answered as it was meant, and clients of TLS from being spoken with.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let certificate = self.certificate.as_ref().and_then(|certificate| match certificate {
            Ok(certificate) => certificate.problem(),
            Err(error) => Some(error.clone()),
        });
        unread.into_iter().chain(self.servers.problems()).chain(certificate).collect()
    }

    /// One query in so many is logged from now on, or none.
    pub fn log_queries(&self, query_log: Option<NonZeroU32>) {
        self.teller.log_queries(query_log);
    }

    /// Every socket that is answered on, for another process to answer on as well.
    #[must_use]
    pub fn sockets(&self) -> Vec<OwnedFd> {
        self.open.copies()
    }

    /// Takes no new questions from now on but those on connections that are open, which go on as they would.
    pub fn stop_accepting(&self) {
        self.open.close();
    }

    /// Completes when no connection is open. Call it after [`Handle::stop_accepting`].
    pub async fn unused(&self) {
        self.open.unused().await;
    }

    fn set(&self, at: usize, state: Result<SocketAddr, String>) {
        if let Some(listener) = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).get_mut(at) {
            listener.state = state;
        }
    }

    fn count(&self, metrics: &Metrics) {
        let listeners = self.listeners();
        let served = listeners.iter().filter(|l| l.state.is_ok()).count();
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.listeners.set(gauge(served));
        metrics.listeners_failed.set(gauge(listeners.len() - served));
    }
}

impl Bound {
    /// The addresses that are bound.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().flatten().map(Taken::address).collect()
    }

    /// The addresses that could not be bound yet, each with what to do about it.
    #[must_use]
    pub fn failures(&self) -> &[BindError] {
        &self.failures
    }

    /// What the rest of the agent sees of it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Answers until the drain begins, then finishes what waits for upstreams and leaves. To be polled on the runtime
    /// that is to serve the sockets.
    pub async fn run(mut self, mut drain: DrainWatcher) {
        let tasks = self.tasks.clone();
        let forwarder = Forwarder::new(
            &self.config,
            Arc::clone(&self.handle.servers),
            tasks.clone(),
            Arc::clone(&self.metrics),
        );
        let guard = Arc::new(Guard::new(&self.config, Arc::clone(&self.metrics)));
        let zone = || Arc::clone(&self.handle.zone);
        let metrics = Arc::clone(&self.metrics);
        let handler = Handler::new(&self.config, zone(), forwarder, Arc::clone(&guard), metrics);
        let service = Service {
            handler: Arc::new(handler),
            fast: Arc::new(Fast::new(&self.config, zone(), Arc::clone(&guard))),
            open: Arc::clone(&self.handle.open),
            teller: Arc::clone(&self.handle.teller),
            certificate: self.handle.certificate.clone().and_then(Result::ok),
            idle: self.config.limits.tcp_idle,
            handshake: self.config.limits.tls_handshake,
            tasks: tasks.clone(),
        };
        let threads = Threads::start(self.config.threads);
        if let Some(certificate) = &service.certificate {
            certificate.follow(self.config.limits.retry, &tasks, &self.metrics);
        }
        let zone = Arc::clone(&self.handle.zone);
        let stop = tasks.stop_token();
        tasks.spawn_restarted("dns addresses", move || {
            let (zone, stop) = (Arc::clone(&zone), stop.clone());
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = zone.follow_addresses() => {}
                }
            }
        });
        let mut tick = tokio::time::interval(self.config.limits.retry);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.signaled() => break,
                _ = tick.tick(), if self.handle.open.accepts() => {
                    guard.tidy();
                    self.read_upstreams();
                    self.serve_what_is_bound(&service, &threads);
                    self.bind_what_is_not(&service, &threads);
                }
            }
        }
        self.handle.stop_accepting();
        tasks.shutdown().await;
        threads.end();
        // Held until here: a drain is over when the last answer is sent.
        drop(drain);
    }

    fn serve_what_is_bound(&mut self, service: &Service, threads: &Threads) {
        for at in 0..self.sockets.len() {
            let Some(taken) = self.sockets[at].take() else { continue };
            let address = taken.address();
            match service.serve(taken, threads) {
                Ok(()) => tracing::info!(%address, "DNS is served"),
                Err(error) => {
                    tracing::error!(%address, %error, "DNS sockets cannot join the runtime; they are bound anew");
                    self.handle.set(at, Err(error.to_string()));
                }
            }
        }
        self.handle.count(&self.metrics);
    }

    /// Level, not edge: whatever is configured and not served is tried, on every tick.
    fn bind_what_is_not(&mut self, service: &Service, threads: &Threads) {
        for (at, listener) in self.handle.listeners().into_iter().enumerate() {
            let Err(before) = listener.state else { continue };
            match Taken::bind(listener.wanted, listener.over, self.config.threads, &self.inherited) {
                Ok(taken) => {
                    self.handle.set(at, Ok(taken.address()));
                    self.sockets[at] = Some(taken);
                }
                Err(error) => {
                    let error = error.to_string();
                    if error != before {
                        tracing::warn!(address = %listener.wanted, error, "DNS address still cannot be bound");
                    }
                    self.handle.set(at, Err(error));
                }
            }
        }
        self.serve_what_is_bound(service, threads);
    }

    /// Reads whom to ask; what cannot be read leaves the lists as they were.
    fn read_upstreams(&self) {
        let mut listen = self.config.listen.clone();
        let listeners = self.handle.listeners().into_iter().filter(|listener| listener.over == Over::Plain);
        listen.extend(listeners.filter_map(|listener| listener.state.ok()));
        let read = Source { config: &self.config, listen: &listen }.read();
        let error = read.as_ref().err().map(ToString::to_string);
        if let Ok(lists) = read {
            let ourselves = lists.ourselves.clone();
            if self.handle.servers.replace(lists) {
                tracing::info!(upstreams = ?self.handle.servers.names(), "DNS forwards to");
                for address in ourselves {
                    tracing::info!(%address, "DNS does not forward to itself: the address is left out");
                }
            }
        }
        let mut unread = self.handle.unread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = error.as_ref().filter(|error| unread.as_ref() != Some(error)) {
            tracing::warn!(error, "DNS upstreams");
        }
        *unread = error;
    }
}

/// What every socket's tasks need.
#[derive(Debug, Clone)]
struct Service {
    handler: Arc<Handler>,
    fast: Arc<Fast>,
    open: Arc<OpenSockets>,
    teller: Arc<Teller>,
    certificate: Option<Certificate>,
    idle: Duration,
    handshake: Duration,
    tasks: Tasks,
}

impl Service {
    /// A task whose socket was closed for good has nothing to be restarted for.
    async fn wait_if_closed(&self) {
        if !self.open.accepts() {
            self.tasks.stop_token().cancelled().await;
        }
    }

    fn serve(&self, taken: Taken, threads: &Threads) -> io::Result<()> {
        match taken {
            Taken::Plain(Sockets { udp, tcp, wildcard, .. }) => {
                let tcp = TcpListener::from_std(tcp)?;
                for (number, socket) in udp.into_iter().enumerate() {
                    let service = self.clone();
                    threads.run_on(number, move || match udp::Socket::new(socket, wildcard) {
                        Ok(socket) => service.serve_udp(socket),
                        Err(error) => tracing::error!(%error, "a UDP socket for DNS cannot join its runtime"),
                    });
                }
                self.serve_stream("dns tcp", tcp, Spoken::Tcp);
            }
            Taken::Tls(listener, _) => {
                let certificate = self.certificate()?;
                let spoken = Spoken::Tls(certificate.for_tls().map_err(io::Error::other)?, certificate);
                self.serve_stream("dns tls", TcpListener::from_std(listener)?, spoken);
            }
            Taken::Https(listener, _) => {
                let certificate = self.certificate()?;
                let spoken = Spoken::Https(certificate.for_https().map_err(io::Error::other)?, certificate);
                self.serve_stream("dns https", TcpListener::from_std(listener)?, spoken);
            }
        }
        Ok(())
    }

    fn certificate(&self) -> io::Result<Certificate> {
        self.certificate.clone().ok_or_else(|| io::Error::other("TLS cannot be served on this machine"))
    }

    fn serve_udp(&self, socket: udp::Socket) {
        let (service, at) = (self.clone(), self.open.add_udp(socket));
        self.tasks.spawn_restarted("dns udp", move || {
            let (service, socket) = (service.clone(), service.open.udp(at));
            async move {
                if let Some(socket) = socket {
                    udp::serve(socket, service.clone()).await;
                }
                service.wait_if_closed().await;
            }
        });
    }

    fn serve_stream(&self, name: &'static str, listener: TcpListener, spoken: Spoken) {
        let (service, at) = (self.clone(), self.open.add_tcp(listener));
        self.tasks.spawn_restarted(name, move || {
            let (service, listener, spoken) = (service.clone(), service.open.tcp(at), spoken.clone());
            async move {
                if let Some(listener) = listener {
                    accept::serve(listener, spoken, service.clone()).await;
                }
                service.wait_if_closed().await;
            }
        });
    }
}

#[cfg(test)]
mod tests;
