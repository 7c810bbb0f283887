//! The sockets of the interface: bound before anything runs, and accepted from until the drain.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nerve::tasks::Tasks;
use tokio::net::{TcpListener, TcpSocket};

use super::access::Origin;
use super::routes::Entrance;
use super::server::{ACCEPT_PAUSE, Server};
use super::socket::{Socket, SocketHandle};
use super::{Config, Error, Metrics};
use crate::drain::DrainWatcher;
use crate::inherited::{Inherited, Transport};

/// Connections that wait to be accepted; the kernel lets further ones try again a second later.
const BACKLOG: u32 = 1024;

/// Bound sockets that nobody serves yet.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<TcpListener>,
    socket: Option<Socket>,
}

impl Bound {
    /// Binds every configured address, with the sockets that are `inherited` where there are some. A unix socket that cannot be had is
    /// tried again by and by.
    ///
    /// # Errors
    /// An address cannot be bound.
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
        let socket = config.socket.clone().map(|socket| Socket::new(socket, inherited));
        Ok(Self { listeners, socket })
    }

    /// How its unix socket stands; as one that is well, where it has none.
    #[must_use]
    pub fn socket(&self) -> SocketHandle {
        self.socket.as_ref().map(Socket::handle).unwrap_or_default()
    }

    /// Copies of its TCP sockets, for another process to accept from as well. They keep the addresses taken for as long as they
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
        let entrance = Entrance::new(handles, &metrics, tasks.clone(), drain.clone());
        let server = Server::new(entrance, metrics, tasks);
        let accepting = self.listeners.iter().map(|listener| accept(&server, listener, drain.clone()));
        let by_socket = async {
            if let Some(socket) = self.socket {
                socket.run(&server, drain.clone()).await;
            }
        };
        tokio::join!(futures_util::future::join_all(accepting), by_socket);
    }
}

async fn accept(server: &Server, listener: &TcpListener, mut drain: DrainWatcher) {
    loop {
        let accepted = tokio::select! {
            () = drain.signaled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let local = stream.local_addr();
                let is_loopback = local.is_ok_and(|local| local.ip().to_canonical().is_loopback());
                let origin = if is_loopback { Origin::Loopback } else { Origin::Network };
                server.serve(stream, origin, drain.clone());
            }
            Err(error) => {
                server.note_not_accepted(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
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
