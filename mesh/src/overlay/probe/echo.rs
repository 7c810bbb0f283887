//! Answering: what a peer sends to one of this node's gateways, or to its own address, goes back as it came.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use nerve::tasks::Tasks;
use synapse::catalog::Catalog;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::keeper::Ready;
use super::super::plan::gateway;
use super::super::{Config, Metrics};
use super::{Kind, Message, port};
use crate::sys::sockopt::set_no_checksum;

/// The longest packet that there is.
const LONGEST: usize = 65_535;
/// Answers of a second: a thousand nodes that ask at once are told within a few, and nobody keeps the agent busy.
const MOST: u32 = 2_000;
/// So many questions are remembered: those of the last seconds.
const REMEMBERED: usize = 4_096;
/// An address that cannot be bound is tried again after this.
const PAUSE: Duration = Duration::from_secs(5);
/// How long what is known of peers counts.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// Starts it.
pub(in crate::overlay) fn start(
    config: &Arc<Config>,
    catalog: &Catalog,
    ready: watch::Receiver<Ready>,
    metrics: &Metrics,
    tasks: &Tasks,
) {
    let (config, catalog, metrics) = (Arc::clone(config), catalog.clone(), metrics.clone());
    tasks.spawn_until_stopped("overlay probes", move || {
        let peers = Peers { catalog: catalog.clone(), known: Mutex::default() };
        let echo = Echo {
            metrics: metrics.clone(),
            peers,
            answered: Mutex::new((Instant::now(), 0)),
            heard: Mutex::default(),
        };
        run(Arc::clone(&config), echo, ready.clone())
    });
}

async fn run(config: Arc<Config>, echo: Echo, mut ready: watch::Receiver<Ready>) {
    let mut sockets: BTreeMap<IpAddr, Arc<UdpSocket>> = BTreeMap::new();
    loop {
        let places = ready.borrow_and_update().clone();
        let gateways = places.values().flat_map(|place| place.subnets.iter().filter_map(|s| gateway(*s)));
        // Beneath the networks only where there is one to ask about.
        let wanted: HashSet<IpAddr> =
            gateways.chain((!places.is_empty()).then_some(config.address)).collect();
        sockets.retain(|address, _| wanted.contains(address));
        let mut lacking = false;
        for address in wanted {
            if sockets.contains_key(&address) {
                continue;
            }
            match UdpSocket::bind((address, port(config.port))).await {
                Ok(socket) => drop(sockets.insert(address, Arc::new(socket))),
                Err(error) => {
                    lacking = true;
                    tracing::debug!(%address, %error, "probes are not answered there yet");
                }
            }
        }
        let mut answering: FuturesUnordered<_> =
            sockets.iter().map(|(address, socket)| echo.answer(*address, Arc::clone(socket))).collect();
        tokio::select! {
            changed = ready.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PAUSE), if lacking => {}
            Some(address) = answering.next() => {
                drop(answering);
                sockets.remove(&address);
            }
        }
    }
}

struct Echo {
    metrics: Metrics,
    peers: Peers,
    /// In the second that began then.
    answered: Mutex<(Instant, u32)>,
    /// The tokens of the last questions.
    heard: Mutex<VecDeque<u64>>,
}

impl Echo {
    /// Answers until the socket fails for good, then says whose it was.
    async fn answer(&self, address: IpAddr, socket: Arc<UdpSocket>) -> IpAddr {
        let mut bytes = vec![0; LONGEST];
        loop {
            let (length, from) = match socket.recv_from(&mut bytes).await {
                Ok(received) => received,
                // What an earlier answer met on its way.
                Err(error) if is_of_an_answer(&error) => continue,
                Err(error) => {
                    tracing::debug!(%address, %error, "probes cannot be received");
                    return address;
                }
            };
            let probe = &mut bytes[..length];
            let outcome = match Message::read(probe) {
                Some(message) if is_to_be_answered(message.kind) && self.may_answer(from.ip()) => {
                    Message { kind: self.answer_to(message), ..message }.write(probe);
                    let sent = send(&socket, probe, from, message.kind == Kind::BareQuestion);
                    if sent.is_ok() { "answered" } else { "failed" }
                }
                _ => "refused",
            };
            self.metrics.probes.with_label_values(&[outcome]).inc();
        }
    }

    fn answer_to(&self, Message { kind, token }: Message) -> Kind {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if kind == Kind::Inquiry {
            return if heard.contains(&token) { Kind::Answer } else { Kind::NotHeard };
        }
        if heard.len() == REMEMBERED {
            heard.pop_front();
        }
        heard.push_back(token);
        Kind::Answer
    }

    fn may_answer(&self, to: IpAddr) -> bool {
        if !self.peers.has(to) {
            return false;
        }
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if answered.0.elapsed() >= Duration::from_secs(1) {
            *answered = (Instant::now(), 0);
        }
        answered.1 += 1;
        answered.1 <= MOST
    }
}

/// An answer never is: two agents would answer each other for ever.
fn is_to_be_answered(kind: Kind) -> bool {
    match kind {
        Kind::Question | Kind::BareQuestion | Kind::Inquiry => true,
        Kind::Answer | Kind::NotHeard => false,
    }
}

/// At once or not at all: who asks will ask again.
fn send(socket: &UdpSocket, probe: &[u8], to: SocketAddr, bare: bool) -> io::Result<usize> {
    if !bare {
        return socket.try_send_to(probe, to);
    }
    set_no_checksum(socket, true)?;
    let sent = socket.try_send_to(probe, to);
    set_no_checksum(socket, false)?;
    sent
}

fn is_of_an_answer(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionRefused | K::HostUnreachable | K::NetworkUnreachable | K::WouldBlock | K::Interrupted
    )
}

/// The addresses of nodes that take part in a network.
struct Peers {
    catalog: Catalog,
    known: Mutex<Option<(Instant, HashSet<IpAddr>)>>,
}

impl Peers {
    fn has(&self, address: IpAddr) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((since, addresses)) if since.elapsed() < KNOWN_FOR => addresses.contains(&address),
            _ => {
                let addresses = self.all();
                let has = addresses.contains(&address);
                *known = Some((Instant::now(), addresses));
                has
            }
        }
    }

    fn all(&self) -> HashSet<IpAddr> {
        let networks = self.catalog.networks();
        let peers = networks.iter().flat_map(|view| {
            let of_peer = |(slot, peer): (_, Arc<nerve::model::Subnet>)| {
                let gateways = view.network.subnets(slot).into_iter().filter_map(gateway);
                gateways.chain([peer.address]).collect::<Vec<_>>()
            };
            view.subnets.all().into_iter().flat_map(of_peer)
        });
        peers.collect()
    }
}
