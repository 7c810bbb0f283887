//! A listening socket on one thread, and where its clients go.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::acceptor::{Accepted, Acceptor};
use super::arena::Key;
use super::poll::{Poller, Subject};
use super::route::{OpenRoute, Route};

/// A socket that clients come from, and where they go.
pub(super) struct Listening {
    acceptor: Acceptor,
    pub(super) route: Arc<Route>,
    /// Those of all threads, in their order.
    routes: Arc<[Arc<Route>]>,
}

impl Listening {
    /// Of the thread with this index.
    pub(super) fn new(socket: Arc<OwnedFd>, routes: Arc<[Arc<Route>]>, thread: usize) -> Self {
        let route = Arc::clone(&routes[thread]);
        Self { acceptor: Acceptor::new(socket, route.is_unix), route, routes }
    }

    /// The way of a client that the thread with this index is to serve.
    pub(super) fn route_on(&self, thread: usize) -> OpenRoute {
        OpenRoute::new(&self.routes[thread])
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.acceptor.socket()
    }

    /// How many clients wait to be accepted; where that cannot be asked, how many may.
    pub(super) fn waiting(&self) -> u32 {
        self.acceptor.waiting()
    }

    pub(super) fn accept(&mut self) -> Accepted {
        self.acceptor.accept()
    }

    /// Stops watching for a moment, so that a thread that may accept nothing does not spin. Tells until when.
    pub(super) fn pause(&mut self, poller: &Poller, now: Instant, error: Errno) -> Instant {
        self.acceptor.pause(poller, now, error, self.route.balancer.service().as_str())
    }

    pub(super) fn is_paused(&self, now: Instant) -> bool {
        self.acceptor.is_paused(now)
    }

    pub(super) fn resume(&mut self, poller: &Poller, key: Key) {
        self.acceptor.resume(poller, Subject::Listener(key), self.route.balancer.service().as_str());
    }
}
