//! One question to one upstream over UDP.
//!
//! Against forgery (RFC 5452): a fresh socket each time, so that the kernel picks a random port and its connection lets in only
//! datagrams of that server's address and port; a random id; the letters of the name in random case (0x20); and the question must
//! stand in the answer as it was asked. What does not fit is counted and waited past, until the time is over.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::answer::Relayed;
use crate::dns::metrics::{Dropped, Metrics};
use crate::dns::wire::{self, Question, flag};

/// What came of it.
#[derive(Debug)]
pub(super) enum Came {
    /// An answer to this question, spelt as it was sent.
    Answer(Relayed),
    /// It says that it is cut short: TCP has the whole.
    Truncated,
    /// An answer with other letters than were sent: of a server that does not keep them, or forged.
    OtherCase,
}

/// Asks, and waits for as long as it is polled. The answer has to repeat the question, `by_letter` or without regard to case.
pub(super) async fn ask(
    server: SocketAddr,
    question: &Question,
    by_letter: bool,
    flags: u16,
    edns: Option<bool>,
    metrics: &Metrics,
) -> io::Result<Came> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let id = rand::random();
    socket.send(&wire::query(id, flags, question, edns)).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let message = &buffer[..length];
        if !wire::answers(message, id, question) {
            metrics.dropped.inc(Dropped::UpstreamMismatch);
            continue;
        }
        if by_letter && !question.is_spelt_in(message) {
            metrics.dropped.inc(Dropped::UpstreamCase);
            return Ok(Came::OtherCase);
        }
        if wire::flags(message) & flag::TRUNCATED != 0 {
            return Ok(Came::Truncated);
        }
        match Relayed::new(message.to_vec(), Instant::now()) {
            Some(answer) => return Ok(Came::Answer(answer)),
            None => metrics.dropped.inc(Dropped::UpstreamMismatch),
        }
    }
}
