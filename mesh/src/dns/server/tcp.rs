//! TCP connections: bounded in number, in time without a word, in what they have unanswered.
//!
//! Queries of one connection are answered as their answers come, not in the order they were asked (RFC 7766 section
//! 6.2.1.1): one that waits for an upstream does not hold up the next. Where too many wait, no more are read.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::Service;
use crate::dns::frames::{Frames, framed};
use crate::dns::message::Reply;
use crate::dns::metrics::{Dropped, Metrics, Transport};

/// No query that we answer is longer.
const LONGEST_QUERY: usize = 4096;
/// Queries of one connection that may wait for an upstream.
const MOST_WAITING: usize = 16;
/// Where accepting fails for want of something (files, memory), it is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a connection ended; `None` in [`talk`]'s result is the client's own end.
type Ended = Option<Dropped>;

/// Accepts connections until the stop token is cancelled.
pub(super) async fn serve(listener: Arc<TcpListener>, service: Service) {
    let stop = service.tasks.stop_token();
    let metrics = &service.handler.metrics;
    let mut permit = None;
    loop {
        // Taken before the connection is: whoever waits until there are none waits for this one too.
        permit = permit.or_else(|| Arc::clone(&service.open.connections).try_acquire_owned().ok());
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            () = service.open.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                metrics.dropped.inc(Dropped::TcpAcceptFailed);
                tracing::warn!(%error, "DNS over TCP: accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let late = || Arc::clone(&service.open.connections).try_acquire_owned().ok();
        let Some(permit) = permit.take().or_else(late) else {
            metrics.dropped.inc(Dropped::TcpConnectionLimit);
            continue;
        };
        let connection = service.clone();
        service.tasks.spawn("dns tcp connection", async move {
            let metrics = Arc::clone(&connection.handler.metrics);
            let open = Open::new(&metrics);
            if let Some(reason) = talk(stream, client, &connection).await {
                metrics.dropped.inc(reason);
                tracing::debug!(%client, ?reason, "DNS over TCP: connection closed");
            }
            drop((open, permit));
        });
    }
}

/// Counts an open connection for as long as it lives.
struct Open<'a>(&'a Metrics);

impl<'a> Open<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.tcp_connections.inc();
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.tcp_connections.dec();
    }
}

async fn talk(stream: TcpStream, client: SocketAddr, service: &Service) -> Ended {
    // Answers are small and each is written whole: nothing to gain by holding them back.
    let _ = stream.set_nodelay(true);
    let stop = service.tasks.stop_token();
    let (read, mut write) = stream.into_split();
    let mut frames = Frames::new(read, LONGEST_QUERY);
    let mut waiting = FuturesUnordered::new();
    let mut reading = true;
    while reading || !waiting.is_empty() {
        let octets = tokio::select! {
            () = stop.cancelled(), if reading => {
                reading = false;
                continue;
            }
            Some(octets) = waiting.next(), if !waiting.is_empty() => octets,
            frame = timeout(service.idle, frames.next()), if reading && waiting.len() < MOST_WAITING => match frame {
                Ok(Ok(Some(query))) => match handle(&query, client, service) {
                    Reply::Now(octets) => octets,
                    Reply::Later(later) => {
                        waiting.push(later.wait());
                        continue;
                    }
                    Reply::Drop(reason) => return Some(reason),
                },
                // The client may close its side and still read what it asked for.
                Ok(Ok(None)) => {
                    reading = false;
                    continue;
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => return Some(Dropped::TcpQueryTooLong),
                Ok(Err(_)) => return Some(Dropped::ReceiveFailed),
                Err(_) if waiting.is_empty() => return Some(Dropped::TcpIdle),
                Err(_) => continue,
            },
        };
        match timeout(service.idle, write.write_all(&framed(&octets))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Some(Dropped::SendFailed),
            Err(_) => return Some(Dropped::TcpSlowReader),
        }
    }
    None
}

fn handle(query: &[u8], client: SocketAddr, service: &Service) -> Reply {
    let handled = catch_unwind(AssertUnwindSafe(|| service.handler.handle(query, client, Transport::Tcp)));
    handled.unwrap_or_else(|_| {
        tracing::error!(%client, "handling a DNS query panicked; its connection is closed");
        Reply::Drop(Dropped::Panic)
    })
}
