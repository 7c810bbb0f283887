//! Names that are not the mesh's: asked of upstream servers, one question at a time, within limits.
//!
//! Each attempt has a socket, a source port and an id of its own, and an answer counts only if it answers the question
//! that was asked (RFC 5452). Equal questions at the same time are one question upstream.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OnceCell, Semaphore};

use super::cache::{Cache, Question};

/// How long one server has to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Servers asked for one question.
const ATTEMPTS: usize = 3;
/// Questions that are upstream at once; more are answered SERVFAIL.
const IN_FLIGHT: usize = 512;
/// What fits one packet anywhere (DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// Why a question has no answer: the closed set behind `plexus_dns_forwarded_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// There is nobody to ask.
    #[error("no upstream server is configured, and /etc/resolv.conf names none that is not this one")]
    NoUpstream,
    /// Too many questions are on their way.
    #[error("{IN_FLIGHT} questions are upstream already")]
    Overload,
    /// Nobody answered.
    #[error("no upstream server answered")]
    Unanswered,
}

impl Failure {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NoUpstream => "no_upstream",
            Self::Overload => "overload",
            Self::Unanswered => "unanswered",
        }
    }
}

type Flight = Arc<OnceCell<Result<Message, Failure>>>;

/// The way to the upstream servers.
#[derive(Debug)]
pub(super) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    /// Where the next question begins: a server that does not answer is not asked first for long.
    preferred: AtomicUsize,
    slots: Semaphore,
    shared: Mutex<Shared>,
    random: RandomState,
}

#[derive(Debug, Default)]
struct Shared {
    cache: Cache,
    flights: HashMap<Question, Flight>,
}

impl Forwarder {
    /// A forwarder to `upstreams`, or to the servers of `/etc/resolv.conf` that are not among our `own` addresses.
    pub(super) fn new(upstreams: &[SocketAddr], own: &[SocketAddr]) -> Self {
        let upstreams = if upstreams.is_empty() { of_resolv_conf() } else { upstreams.to_vec() };
        let is_own = |server: &SocketAddr| {
            own.iter().any(|own| {
                own == server
                    || (own.ip().is_unspecified() && own.port() == server.port() && server.ip().is_loopback())
            })
        };
        Self {
            upstreams: upstreams.into_iter().filter(|server| !is_own(server)).collect(),
            preferred: AtomicUsize::new(0),
            slots: Semaphore::new(IN_FLIGHT),
            shared: Mutex::default(),
            random: RandomState::new(),
        }
    }

    /// Asks for the answer; from the cache if it is there. Tells whether it was.
    pub(super) async fn ask(&self, question: &Question) -> Result<(Message, bool), Failure> {
        let flight = {
            let mut shared = self.lock();
            if let Some(message) = shared.cache.get(question) {
                return Ok((message, true));
            }
            Arc::clone(shared.flights.entry(question.clone()).or_default())
        };
        // Whoever comes first asks; if he is cancelled, the next one does.
        let answer = flight.get_or_init(|| self.ask_upstream(question)).await.clone();
        let mut shared = self.lock();
        if shared.flights.remove(question).is_some()
            && let Ok(message) = &answer
        {
            shared.cache.put(question.clone(), message);
        }
        answer.map(|message| (message, false))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A cache that was left half-changed holds whole answers still.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask_upstream(&self, question: &Question) -> Result<Message, Failure> {
        if self.upstreams.is_empty() {
            return Err(Failure::NoUpstream);
        }
        let _slot = self.slots.try_acquire().map_err(|_| Failure::Overload)?;
        for attempt in 0..ATTEMPTS {
            let preferred = self.preferred.load(Ordering::Relaxed);
            let index = (preferred + attempt) % self.upstreams.len();
            let server = self.upstreams[index];
            match tokio::time::timeout(TIMEOUT, self.exchange(server, question)).await {
                Ok(Ok(message)) => {
                    if attempt > 0 {
                        self.preferred.store(index, Ordering::Relaxed);
                    }
                    return Ok(message);
                }
                Ok(Err(error)) => {
                    tracing::debug!(%server, name = %question.name, %error, "an upstream server failed")
                }
                Err(_) => {
                    tracing::debug!(%server, name = %question.name, "an upstream server did not answer in time")
                }
            }
        }
        Err(Failure::Unanswered)
    }

    async fn exchange(&self, server: SocketAddr, question: &Question) -> io::Result<Message> {
        let id = self.random_id();
        let mut query = Message::new(id, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(question.name.clone(), question.kind));
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD).set_dnssec_ok(question.dnssec_ok);
        query.set_edns(edns);
        let bytes = query.to_vec().map_err(io::Error::other)?;
        let answer = over_udp(server, &bytes, |message| answers(message, id, question)).await?;
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        let answer = over_tcp(server, &bytes).await?;
        if answers(&answer, id, question) {
            Ok(answer)
        } else {
            Err(io::Error::other("it answered another question"))
        }
    }

    fn random_id(&self) -> u16 {
        // SipHash of something that never repeats, under a key that nobody outside knows.
        let hash = self.random.hash_one(std::time::Instant::now());
        (hash & 0xffff) as u16
    }
}

fn answers(message: &Message, id: u16, question: &Question) -> bool {
    message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && matches!(&message.queries[..], [query] if query.name() == &question.name && query.query_type() == question.kind)
}

async fn over_udp(server: SocketAddr, query: &[u8], fits: impl Fn(&Message) -> bool) -> io::Result<Message> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = [0; PAYLOAD as usize];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not fit the question may be forged; the real answer may still come.
        if let Ok(message) = Message::from_vec(&buffer[..length])
            && fits(&message)
        {
            return Ok(message);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    Message::from_vec(&buffer).map_err(io::Error::other)
}

/// `nameserver` lines, resolv.conf(5).
fn of_resolv_conf() -> Vec<SocketAddr> {
    match std::fs::read_to_string("/etc/resolv.conf") {
        Ok(text) => nameservers(&text),
        Err(error) => {
            tracing::warn!(%error, "cannot read /etc/resolv.conf: names outside of the mesh are refused unless dns.upstreams is set");
            Vec::new()
        }
    }
}

fn nameservers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A zone index (`fe80::1%eth0`) cannot be asked without knowing the interface; it is left out.
        address.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, 53))
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_gives_its_nameservers() {
        let text =
            "# comment\nsearch example.com\nnameserver 192.0.2.53\n nameserver 2001:db8::53 \nnameserver x\n";
        let expected: Vec<SocketAddr> =
            vec!["192.0.2.53:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()];
        assert_eq!(nameservers(text), expected);
    }

    #[test]
    fn a_forwarder_never_asks_its_own_server() {
        let own = "127.0.0.1:53".parse().unwrap();
        let other: SocketAddr = "192.0.2.1:53".parse().unwrap();
        assert_eq!(Forwarder::new(&[own, other], &[own]).upstreams, [other]);
        assert_eq!(Forwarder::new(&[own, other], &["0.0.0.0:53".parse().unwrap()]).upstreams, [other]);
    }
}
