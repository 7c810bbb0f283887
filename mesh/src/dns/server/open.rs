//! The sockets that are answered on, for those who serve them and for a process that goes on with them.
//!
//! A socket is closed for good by [`OpenSockets::close`] once its task has let go of it: another process has a copy of the
//! same socket, with the same queue, so nothing in it is lost. Connections that are open go on until their clients end them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::udp;

/// One of them.
#[derive(Debug)]
enum Socket {
    Udp(Arc<udp::Socket>),
    Tcp(Arc<TcpListener>),
}

/// Every socket, and how many connections there are.
#[derive(Debug)]
pub(super) struct OpenSockets {
    sockets: Mutex<Vec<Socket>>,
    closed: CancellationToken,
    limit: usize,
    /// A permit a connection.
    pub(super) connections: Arc<Semaphore>,
}

impl OpenSockets {
    pub(super) fn new(connections: usize) -> Self {
        let limit = connections.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Self {
            sockets: Mutex::default(),
            closed: CancellationToken::new(),
            limit,
            connections: Arc::new(Semaphore::new(limit)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Socket>> {
        // Whole between any two calls.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, socket: Socket) -> usize {
        let mut sockets = self.lock();
        sockets.push(socket);
        sockets.len() - 1
    }

    /// Tells where it is found again.
    pub(super) fn add_udp(&self, socket: udp::Socket) -> usize {
        self.add(Socket::Udp(Arc::new(socket)))
    }

    /// Tells where it is found again.
    pub(super) fn add_tcp(&self, listener: TcpListener) -> usize {
        self.add(Socket::Tcp(Arc::new(listener)))
    }

    pub(super) fn udp(&self, at: usize) -> Option<Arc<udp::Socket>> {
        match self.lock().get(at)? {
            Socket::Udp(socket) => Some(Arc::clone(socket)),
            Socket::Tcp(_) => None,
        }
    }

    pub(super) fn tcp(&self, at: usize) -> Option<Arc<TcpListener>> {
        match self.lock().get(at)? {
            Socket::Udp(_) => None,
            Socket::Tcp(listener) => Some(Arc::clone(listener)),
        }
    }

    /// Copies of all of them. One that cannot be copied is opened anew by whoever wants it.
    pub(super) fn copies(&self) -> Vec<OwnedFd> {
        let sockets = self.lock();
        let sockets = sockets.iter().map(|socket| match socket {
            Socket::Udp(socket) => socket.as_fd(),
            Socket::Tcp(listener) => listener.as_fd(),
        });
        sockets.filter_map(|socket| socket.try_clone_to_owned().ok()).collect()
    }

    /// Nothing new is taken from now on.
    pub(super) fn close(&self) {
        self.closed.cancel();
        self.lock().clear();
    }

    pub(super) fn accepts(&self) -> bool {
        !self.closed.is_cancelled()
    }

    /// Completes when nothing new is to be taken.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Completes when there is no connection.
    pub(super) async fn unused(&self) {
        let all = u32::try_from(self.limit).unwrap_or(u32::MAX);
        // It is never closed.
        let _ = self.connections.acquire_many(all).await;
    }
}
