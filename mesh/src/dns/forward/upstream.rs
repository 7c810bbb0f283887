//! One question to one upstream: over UDP, and over TCP when the answer does not fit.
//!
//! Against forgery (RFC 5452): a fresh socket each time, so that the kernel picks a random port and its connection lets
//! in only datagrams of that server; a random id; and the question must stand in the answer. What does not fit is
//! counted and waited past, until the time is over.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use super::answer::Relayed;
use crate::dns::metrics::{Dropped, Metrics};
use crate::dns::wire::{self, Question, flag, rcode};

/// Why an upstream gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Failure {
    #[error("no upstream is configured")]
    NoUpstream,
    #[error("upstream {server} did not answer within {after:?}")]
    Timeout { server: SocketAddr, after: Duration },
    #[error("upstream {server} cannot be asked: {source}")]
    Unreachable { server: SocketAddr, source: Arc<io::Error> },
}

impl Relayed {
    /// Is it worth keeping and relaying at once, or may another upstream know more?
    pub(super) fn is_conclusive(&self) -> bool {
        matches!(self.rcode(), rcode::NO_ERROR | rcode::NX_DOMAIN)
    }
}

/// How upstreams are asked.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) timeout: Duration,
    pub(super) metrics: Arc<Metrics>,
}

impl Exchange {
    /// Asks `server`; the answer is to this question, whole and well-formed, whatever it says.
    pub(super) async fn ask(
        &self,
        server: SocketAddr,
        question: &Question,
        flags: u16,
        dnssec_ok: bool,
    ) -> Result<Relayed, Failure> {
        let deadline = Instant::now() + self.timeout;
        let flags = flags | flag::RECURSION_DESIRED;
        let asked = async {
            let answer = self.over_udp(server, question, flags, Some(dnssec_ok)).await?;
            // A server from before 1999 does not know EDNS and says so by FORMERR without OPT (RFC 6891 section 7).
            if matches!(answer.rcode(), rcode::FORM_ERR | rcode::NOT_IMP) && !answer.has_opt() {
                return self.over_udp(server, question, flags, None).await;
            }
            Ok(answer)
        };
        match timeout_at(deadline, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(Failure::Unreachable { server, source: Arc::new(source) }),
            Err(_) => Err(Failure::Timeout { server, after: self.timeout }),
        }
    }

    async fn over_udp(
        &self,
        server: SocketAddr,
        question: &Question,
        flags: u16,
        edns: Option<bool>,
    ) -> io::Result<Relayed> {
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
            if !answers(message, id, question) {
                self.metrics.dropped.inc(Dropped::UpstreamMismatch);
                continue;
            }
            if wire::flags(message) & flag::TRUNCATED != 0 {
                return self.over_tcp(server, question, flags, edns).await;
            }
            match Relayed::new(message.to_vec(), Instant::now()) {
                Some(answer) => return Ok(answer),
                None => self.metrics.dropped.inc(Dropped::UpstreamMismatch),
            }
        }
    }

    async fn over_tcp(
        &self,
        server: SocketAddr,
        question: &Question,
        flags: u16,
        edns: Option<bool>,
    ) -> io::Result<Relayed> {
        let id = rand::random();
        let query = wire::query(id, flags, question, edns);
        let mut framed = u16::try_from(query.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
        framed.extend(query);
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(&framed).await?;
        let mut message = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut message).await?;
        if !answers(&message, id, question) {
            self.metrics.dropped.inc(Dropped::UpstreamMismatch);
            return Err(io::Error::other("its answer over TCP is to another question"));
        }
        Relayed::new(message, Instant::now())
            .ok_or_else(|| io::Error::other("its answer over TCP is malformed"))
    }
}

/// Is this an answer to the question that we sent under `id`?
fn answers(message: &[u8], id: u16, question: &Question) -> bool {
    let flags = wire::flags(message);
    wire::u16_at(message, 0) == Some(id)
        && flags & flag::RESPONSE != 0
        && flags & flag::OPCODE == 0
        && question.is_that_of(message)
}
