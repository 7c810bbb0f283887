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

/// The two sockets of an address.
type Pair = (Arc<udp::Socket>, Arc<TcpListener>);

/// Every socket, and how many connections there are.
#[derive(Debug)]
pub(super) struct OpenSockets {
    sockets: Mutex<Vec<Pair>>,
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

    fn lock(&self) -> MutexGuard<'_, Vec<Pair>> {
        // Whole between any two calls.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells where they are found again.
    pub(super) fn add(&self, udp: udp::Socket, tcp: TcpListener) -> usize {
        let mut sockets = self.lock();
        sockets.push((Arc::new(udp), Arc::new(tcp)));
        sockets.len() - 1
    }

    pub(super) fn udp(&self, at: usize) -> Option<Arc<udp::Socket>> {
        self.lock().get(at).map(|(udp, _)| Arc::clone(udp))
    }

    pub(super) fn tcp(&self, at: usize) -> Option<Arc<TcpListener>> {
        self.lock().get(at).map(|(_, tcp)| Arc::clone(tcp))
    }

    /// Copies of all of them. One that cannot be copied is opened anew by whoever wants it.
    pub(super) fn copies(&self) -> Vec<OwnedFd> {
        let sockets = self.lock();
        let pairs = sockets.iter().flat_map(|(udp, tcp)| [udp.as_fd(), tcp.as_fd()]);
        pairs.filter_map(|socket| socket.try_clone_to_owned().ok()).collect()
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
