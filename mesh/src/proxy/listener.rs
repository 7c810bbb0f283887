//! Accepting: one listening socket on one data-plane thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nerve::tasks::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::tcp::{self, Route};
use super::{Dropped, socket};

/// Accepts in a row before connections of the thread get their turn.
const BURST: usize = 64;
/// Out of descriptors or memory: the kernel will not have more at once.
const PAUSE: Duration = Duration::from_millis(50);

/// A permission to hold one client connection, of a bounded number.
#[derive(Debug)]
pub(super) struct Slots {
    used: AtomicU32,
    limit: u32,
}

/// One of the slots, given back on drop.
struct Slot(Arc<Slots>);

impl Slots {
    pub(super) fn new(limit: u32) -> Self {
        Self { used: AtomicU32::new(0), limit }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    fn take(self: &Arc<Self>) -> Option<Slot> {
        if self.used.fetch_add(1, Ordering::Relaxed) < self.limit {
            return Some(Slot(Arc::clone(self)));
        }
        self.used.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Everything that one accept loop needs.
pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    pub(super) route: Arc<Route>,
    pub(super) slots: Arc<Slots>,
    pub(super) open: Arc<AtomicU32>,
    pub(super) accept_errors: prometheus::IntCounter,
    /// Cancelled when no more connections are to be taken.
    pub(super) stop: CancellationToken,
    pub(super) tasks: Tasks,
}

impl Acceptor {
    /// Accepts until told to stop; then takes what the kernel has completed already, so that closing the socket resets
    /// no client that believes itself connected.
    pub(super) async fn run(self) {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((client, _)) => self.take(client),
                    Err(error) => self.pause(&error).await,
                },
            }
            if !self.take_burst() {
                continue;
            }
            tokio::task::yield_now().await;
        }
        self.take_the_rest();
    }

    /// Takes what waits in the queue, at most a burst; tells whether there may be more.
    fn take_burst(&self) -> bool {
        let waker = futures_util::task::noop_waker();
        let mut context = std::task::Context::from_waker(&waker);
        for _ in 0..BURST {
            match self.listener.poll_accept(&mut context) {
                std::task::Poll::Ready(Ok((client, _))) => self.take(client),
                std::task::Poll::Ready(Err(_)) | std::task::Poll::Pending => return false,
            }
        }
        true
    }

    /// Takes what is in the kernel's queue now. Asks the kernel itself: the runtime may not have heard of the last ones.
    fn take_the_rest(&self) {
        let socket = socket2::SockRef::from(&self.listener);
        while let Ok((client, _)) = socket.accept() {
            let client = std::net::TcpStream::from(client);
            if client.set_nonblocking(true).is_ok()
                && let Ok(client) = TcpStream::from_std(client)
            {
                self.take(client);
            }
        }
    }

    fn take(&self, client: TcpStream) {
        let Some(slot) = self.slots.take() else {
            self.route.metrics.dropped(Dropped::Limit);
            socket::reset(client);
            return;
        };
        let guard = OpenGuard::new(&self.open, &self.route);
        self.tasks.spawn("connection", async move {
            tcp::serve(client, &guard.route).await;
            drop(slot);
        });
    }

    async fn pause(&self, error: &io::Error) {
        // The client gave up between handshake and accept: nothing of ours is wrong.
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return;
        }
        self.accept_errors.inc();
        tracing::warn!(service = %self.route.balancer.service(), %error, "cannot accept; it is tried again (raise LimitNOFILE if descriptors ran out)");
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Counts a connection as open for as long as it is served, also when its task panics.
struct OpenGuard {
    open: Arc<AtomicU32>,
    route: Arc<Route>,
}

impl OpenGuard {
    fn new(open: &Arc<AtomicU32>, route: &Arc<Route>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        route.metrics.active.inc();
        Self { open: Arc::clone(open), route: Arc::clone(route) }
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.route.metrics.active.dec();
    }
}
