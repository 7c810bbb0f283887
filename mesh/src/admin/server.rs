//! The HTTP server: one task a connection, all of them bounded, wherever they come from.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nerve::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore};

use super::Metrics;
use super::access::Origin;
use super::consul::MAX_WAITING;
use super::metrics::Open;
use super::routes::Entrance;
use crate::drain::DrainWatcher;

/// Connections at the same time, beside those on which somebody waits for a change; further ones are closed and counted. Each container
/// that a runtime starts is one.
const MAX_CONNECTIONS: usize = 1024 + MAX_WAITING;
/// How long a client may take for the head of a request, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failed `accept` (no file descriptor left, mostly): long enough not to spin, short enough not to be noticed.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long who has connected and not asked yet is waited for when the server is to end: what it asks is on its way.
const ASKS_WITHIN: Duration = Duration::from_millis(500);

/// What answers, for every socket.
pub(super) struct Server {
    entrance: Entrance,
    metrics: Metrics,
    tasks: Tasks,
    free: Arc<Semaphore>,
}

impl Server {
    pub(super) fn new(entrance: Entrance, metrics: Metrics, tasks: Tasks) -> Self {
        Self { entrance, metrics, tasks, free: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }

    pub(super) fn note_not_accepted(&self, error: &io::Error) {
        self.metrics.refused.with_label_values(&["accept"]).inc();
        tracing::warn!(%error, "the admin interface cannot accept a connection");
    }

    /// Answers what comes by a connection, in a task of its own.
    pub(super) fn serve<S>(&self, stream: S, origin: Origin, mut drain: DrainWatcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
            self.metrics.refused.with_label_values(&["too_many_connections"]).inc();
            return;
        };
        let (entrance, open) = (self.entrance.clone(), self.metrics.connections.clone());
        self.tasks.spawn("admin connection", async move {
            let _open = Open::new(open);
            let asks = Notify::new();
            let answer = service_fn(|request| {
                asks.notify_one();
                entrance.clone().pass(origin, request)
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer);
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = drain.signaled() => tokio::select! {
                    ended = connection.as_mut() => ended,
                    _ = tokio::time::timeout(ASKS_WITHIN, asks.notified()) => {
                        connection.as_mut().graceful_shutdown();
                        connection.as_mut().await
                    }
                },
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "an admin connection broke off");
            }
            drop((permit, drain));
        });
    }
}
