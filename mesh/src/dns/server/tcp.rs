//! Messages on a connection, over TCP or TLS: bounded in time without a word, and in what is unanswered.
//!
//! Queries of one connection are answered as their answers come, not in the order they were asked (RFC 7766 section
//! 6.2.1.1): one that waits for an upstream does not hold up the next. Where too many wait, no more are read.

use std::io;
use std::net::SocketAddr;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::asked::{Asked, LONGEST_QUERY};
use super::{Ended, Service};
use crate::dns::frames::{Frames, framed};
use crate::dns::metrics::{Dropped, Stream};

/// Queries of one connection that may wait for an upstream.
const MOST_WAITING: usize = 16;

/// Until the client has what it wants, or is too slow.
pub(super) async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    over: Stream,
    client: SocketAddr,
    service: &Service,
) -> Ended {
    let stop = service.tasks.stop_token();
    let (read, mut write) = tokio::io::split(stream);
    let mut frames = Frames::new(read, LONGEST_QUERY);
    let mut waiting = FuturesUnordered::new();
    let (mut reading, mut ended) = (true, None);
    while reading || !waiting.is_empty() {
        let octets = tokio::select! {
            () = stop.cancelled(), if reading => {
                reading = false;
                continue;
            }
            Some(octets) = waiting.next(), if !waiting.is_empty() => octets,
            frame = timeout(service.idle, frames.next()), if reading && waiting.len() < MOST_WAITING => match frame {
                Ok(Ok(Some(query))) => match service.ask(&query, client, over.into()) {
                    Asked::Now(octets) => octets,
                    Asked::Later(later) => {
                        waiting.push(later);
                        continue;
                    }
                    Asked::Drop(reason) => return Some(reason),
                },
                // The client may close its side and still read what it asked for.
                Ok(Ok(None)) => {
                    reading = false;
                    continue;
                }
                // What TLS finds wrong is of that kind too, and says what it is.
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData && error.get_ref().is_none() => {
                    return Some(Dropped::TcpQueryTooLong);
                }
                // Over TLS: gone without its closing word, which costs nobody a message.
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    reading = false;
                    continue;
                }
                Ok(Err(_)) => return Some(Dropped::ReceiveFailed),
                Err(_) if waiting.is_empty() => {
                    (reading, ended) = (false, Some(Dropped::TcpIdle));
                    continue;
                }
                Err(_) => continue,
            },
        };
        let answer = framed(&octets);
        let written = async {
            write.write_all(&answer).await?;
            // What TLS has taken is not sent yet.
            write.flush().await
        };
        match timeout(service.idle, written).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Some(Dropped::SendFailed),
            Err(_) => return Some(Dropped::TcpSlowReader),
        }
    }
    // Over TLS the end is said, so that it is known to be one; whoever does not hear it has gone.
    let _ = timeout(service.idle, write.shutdown()).await;
    ended
}
