//! The UDP socket: read a batch, answer it, write the answers, in one task; only what waits for an upstream gets a task of its
//! own.
//!
//! A reply leaves from the address that was asked, or the client drops it: a socket of one address does so by itself, a
//! wildcard socket learns the address from the kernel with each datagram and hands it back with the reply (ip(7),
//! IP_PKTINFO; RFC 3542 section 6.1).

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Service;
use crate::dns::fast::{Desk, Moment};
use crate::dns::message::Reply;
use crate::dns::metrics::{Dropped, Path, Transport, Verdict};
use crate::dns::telling::Answer;
use crate::dns::wire;
use crate::sys::control::Local;
use crate::sys::datagrams::{self, BATCH, Datagrams, Outgoing};

/// No query that we answer is longer; the rest of a longer one is cut off, and it is malformed then.
const LONGEST_QUERY: usize = 4096;
/// Messages of a batch. Each of them and its answer pass through the kernel, and what that touches is to be in the processor's nearest
/// memory still when it is touched again; more in a batch save little.
const AT_ONCE: usize = 24;
/// How often what is kept for names that are gone is let go.
const TIDY: Duration = Duration::from_secs(10);
/// After so many batches in a row the other tasks of the runtime have a turn.
const TURN: usize = 8;

/// Who asked, and at which of our addresses.
#[derive(Debug, Clone, Copy)]
struct Peer {
    client: SocketAddr,
    /// Known where the socket has more than one.
    asked: Option<Local>,
}

/// A UDP socket that replies from the address that was asked.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    wildcard: bool,
}

/// The answers of a batch.
#[derive(Debug)]
struct Answers {
    octets: Vec<u8>,
    each: Vec<One>,
    /// Of those that took the short road.
    verdicts: [u64; Verdict::COUNT],
}

/// One of them.
#[derive(Debug)]
struct One {
    octets: Range<usize>,
    peer: Peer,
    /// Where the question's name ends, where that is known.
    name_end: Option<usize>,
}

/// Answers what comes, until the stop token is cancelled.
pub(super) async fn serve(socket: Arc<Socket>, service: Service) {
    let stop = service.tasks.stop_token();
    let metrics = &service.handler.metrics;
    let (mut queries, mut answers) = (Datagrams::new(LONGEST_QUERY), Answers::new());
    let (mut desk, mut tidied) = (service.fast.desk(), Instant::now());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = service.open.closed() => return,
            ready = socket.socket.readable() => if ready.is_err() {
                metrics.dropped.inc(Dropped::ReceiveFailed);
                return;
            }
        }
        for _ in 0..TURN {
            queries.clear();
            let receive = || queries.receive(&socket.socket, AT_ONCE).map_err(io::Error::from);
            match socket.socket.try_io(Interest::READABLE, receive) {
                Ok(_) => batch(&socket, &service, &queries, &mut desk, &mut answers),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An earlier reply's ICMP error, or too little memory: nothing that closing the socket would mend.
                Err(error) => {
                    metrics.dropped.inc(Dropped::ReceiveFailed);
                    tracing::debug!(%error, "DNS over UDP: receiving failed");
                    break;
                }
            }
        }
        if tidied.elapsed() > TIDY {
            desk.tidy();
            tidied = Instant::now();
        }
        tokio::task::yield_now().await;
    }
}

fn batch(
    socket: &Arc<Socket>,
    service: &Service,
    queries: &Datagrams,
    desk: &mut Desk,
    answers: &mut Answers,
) {
    let (began, metrics) = (Instant::now(), &service.handler.metrics);
    answers.clear();
    let moment = service.fast.moment(desk);
    for at in 0..queries.len() {
        let (head, octets) = (queries.head(at), queries.bytes(at));
        let Some(client) = head.from else {
            metrics.dropped.inc(Dropped::NoReturnPort);
            continue;
        };
        let peer = Peer { client, asked: head.to.filter(|_| socket.wildcard) };
        // One message that nobody foresaw costs itself, not the task and the messages behind it.
        let answered = catch_unwind(AssertUnwindSafe(|| {
            answer(socket, service, (octets, peer), moment.as_ref(), desk, answers)
        }));
        if answered.is_err() {
            metrics.dropped.inc(Dropped::Panic);
            tracing::error!(%client, "handling a DNS query panicked; it is dropped");
        }
    }
    socket.send(answers, service);
    answers.tell(service, None, began);
    metrics.queries_of(Transport::Udp, &answers.verdicts);
    metrics.took_all(Path::Zone, began.elapsed(), answers.verdicts.iter().sum());
}

fn answer(
    socket: &Arc<Socket>,
    service: &Service,
    (query, peer): (&[u8], Peer),
    moment: Option<&Moment>,
    desk: &mut Desk,
    answers: &mut Answers,
) {
    let begin = answers.octets.len();
    if let Some(moment) = moment.filter(|_| peer.client.port() != 0)
        && let Some(made) = service.fast.answer(query, peer.client.ip(), moment, desk, &mut answers.octets)
    {
        answers.verdicts[made.verdict as usize] += 1;
        if answers.octets.len() > begin {
            let octets = begin..answers.octets.len();
            answers.each.push(One { octets, peer, name_end: Some(made.name_end) });
        } else {
            service.handler.metrics.dropped.inc(Dropped::RateLimited);
        }
        return;
    }
    match service.handler.handle(query, peer.client, Transport::Udp) {
        Reply::Now(octets) => answers.push(&octets, peer),
        Reply::Later(later) => {
            let (socket, again, came) = (Arc::clone(socket), service.clone(), Instant::now());
            service.tasks.spawn("dns udp forward", async move {
                if let Some(octets) = later.wait_over_udp().await {
                    let mut one = Answers::new();
                    one.push(&octets, peer);
                    socket.send(&one, &again);
                    one.tell(&again, Some("upstream"), came);
                } else {
                    again.handler.metrics.dropped.inc(Dropped::RateLimited);
                }
            });
        }
        Reply::Drop(reason) => service.handler.metrics.dropped.inc(reason),
    }
}

impl Answers {
    fn new() -> Self {
        Self { octets: Vec::new(), each: Vec::new(), verdicts: [0; Verdict::COUNT] }
    }

    fn clear(&mut self) {
        self.octets.clear();
        self.each.clear();
        self.octets.reserve(AT_ONCE * usize::from(wire::UDP_PAYLOAD));
        self.verdicts = [0; Verdict::COUNT];
    }

    /// Once they are sent.
    fn tell(&self, service: &Service, road: Option<&'static str>, came: Instant) {
        let each = self.each.iter().map(|one| {
            let octets = &self.octets[one.octets.clone()];
            let answer = one.name_end.map_or_else(|| Answer::read(octets), |end| Answer::to(octets, end));
            (answer, one.peer.client)
        });
        service.teller.tell(Transport::Udp, road, came, each);
    }

    fn push(&mut self, octets: &[u8], peer: Peer) {
        let begin = self.octets.len();
        self.octets.extend_from_slice(octets);
        self.each.push(One { octets: begin..self.octets.len(), peer, name_end: None });
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Socket {
    pub(super) fn new(socket: std::net::UdpSocket, wildcard: bool) -> io::Result<Self> {
        Ok(Self { socket: UdpSocket::from_std(socket)?, wildcard })
    }

    /// Never waits: where the kernel has no room the client asks again.
    fn send(&self, answers: &Answers, service: &Service) {
        let slices: SmallVec<[[IoSlice<'_>; 1]; BATCH]> =
            answers.each.iter().map(|one| [IoSlice::new(&answers.octets[one.octets.clone()])]).collect();
        let outgoing: SmallVec<[Outgoing<'_>; BATCH]> = (answers.each.iter().zip(&slices))
            .map(|(one, pieces)| Outgoing {
                to: Some(one.peer.client),
                from: one.peer.asked,
                pieces,
                segment: None,
            })
            .collect();
        let mut rest = outgoing.as_slice();
        while !rest.is_empty() {
            let sent = match datagrams::send(&self.socket, rest) {
                Ok(sent) => sent.clamp(1, rest.len()),
                // It is that of the first: the others may have better luck.
                Err(error) => {
                    service.handler.metrics.dropped.inc(Dropped::SendFailed);
                    let client = rest.first().and_then(|first| first.to);
                    tracing::debug!(?client, %error, "DNS over UDP: sending failed");
                    1
                }
            };
            rest = &rest[sent..];
        }
    }
}
