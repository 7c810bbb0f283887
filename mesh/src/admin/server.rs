//! The HTTP server: sockets bound first, then one task a connection, all of them bounded.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nerve::tasks::Tasks;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use super::consul::MAX_WAITING;
use super::metrics::Open;
use super::routes::{self, Routers};
use super::{Config, Error, Metrics};
use crate::drain::DrainWatcher;
use crate::inherited::{Inherited, Transport};

/// Connections at the same time, beside those on which somebody waits for a change; further ones are closed and counted. Each container
/// that a runtime starts is one.
const MAX_CONNECTIONS: usize = 1024 + MAX_WAITING;
/// Connections that wait to be accepted; the kernel lets further ones try again a second later.
const BACKLOG: u32 = 1024;
/// How long a client may take for the head of a request, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failed `accept` (no file descriptor left, mostly): long enough not to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bound sockets that nobody serves yet.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<TcpListener>,
}

impl Bound {
    /// No interface.
    #[must_use]
    pub fn none() -> Self {
        Self { listeners: Vec::new() }
    }

    /// Binds every configured address, with the sockets that are `inherited` where there are some.
    ///
    /// # Errors
    /// One of them cannot be bound.
    pub async fn bind(config: &Config, inherited: &Inherited) -> Result<Self, Error> {
        let mut listeners = Vec::with_capacity(config.listen.len());
        for &address in &config.listen {
            let given = inherited.take(Transport::Tcp, address);
            if !given.is_empty() {
                for socket in given {
                    listeners.push(adopt(socket).map_err(|source| Error::Bind { address, source })?);
                }
                continue;
            }
            listeners.push(listen(address).map_err(|source| Error::Bind { address, source })?);
        }
        Ok(Self { listeners })
    }

    /// Copies of its sockets, for another process to accept from as well. They keep the addresses taken for as long as they
    /// live.
    #[must_use]
    pub fn sockets(&self) -> Vec<OwnedFd> {
        self.listeners.iter().filter_map(|listener| listener.as_fd().try_clone_to_owned().ok()).collect()
    }

    /// Where it listens: with the ports that the kernel chose where the configuration said 0.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves `handles` until `drain` is signalled, then finishes the requests that are open. `tasks` owns the connections.
    pub async fn run(self, handles: super::Handles, metrics: Metrics, tasks: Tasks, drain: DrainWatcher) {
        let mut addresses = self.addresses().into_iter();
        if let Some(address) = addresses.find(|address| !address.ip().to_canonical().is_loopback())
            && handles.rules.shut_out_the_network()
        {
            tracing::warn!(
                %address,
                "the admin interface listens there and lets nobody do anything: [admin] has no token, and no network_role"
            );
        }
        let routers = routes::routers(handles, &metrics, tasks.clone(), drain.clone());
        let server = Server { routers, metrics, tasks, free: Arc::new(Semaphore::new(MAX_CONNECTIONS)) };
        let accepting = self.listeners.iter().map(|listener| server.accept(listener, drain.clone()));
        futures_util::future::join_all(accepting).await;
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // What an agent before had open may linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn adopt(socket: OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

struct Server {
    routers: Routers,
    metrics: Metrics,
    tasks: Tasks,
    free: Arc<Semaphore>,
}

impl Server {
    async fn accept(&self, listener: &TcpListener, mut drain: DrainWatcher) {
        loop {
            let accepted = tokio::select! {
                () = drain.signaled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.serve(stream, drain.clone()),
                Err(error) => {
                    self.metrics.refused.with_label_values(&["accept"]).inc();
                    tracing::warn!(%error, "the admin interface cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, mut drain: DrainWatcher) {
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
            self.metrics.refused.with_label_values(&["too_many_connections"]).inc();
            return;
        };
        let loopback = stream.local_addr().is_ok_and(|local| local.ip().to_canonical().is_loopback());
        let router = if loopback { self.routers.loopback.clone() } else { self.routers.network.clone() };
        let open = self.metrics.connections.clone();
        self.tasks.spawn("admin connection", async move {
            let _open = Open::new(open);
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = drain.signaled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "an admin connection broke off");
            }
            drop((permit, drain));
        });
    }
}

/// What to say about an address that cannot be bound.
pub(super) fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there: stop it, or set another [admin] listen",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE: set another [admin] listen"
        }
        io::ErrorKind::AddrNotAvailable => "the address is not of this machine: set another [admin] listen",
        _ => "set another [admin] listen",
    }
}
