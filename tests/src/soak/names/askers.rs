//! Who asks: as fast as answers come, over UDP and over TCP, and one who sends what is no query.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::message::{Response, query};
use super::model::Model;
use super::questions::{Question, broken, payload};
use crate::soak::random::Random;

/// Questions of one asker that are on their way.
const WINDOW: usize = 64;
/// A question that has no answer by then has none.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long is waited for an answer at a time.
const TICK: Duration = Duration::from_millis(200);
/// How long for one to what is no query.
const SHORT: Duration = Duration::from_millis(5);
/// Questions on a connection; then another is made.
const KEPT: usize = 2_000;
/// So much that is wrong is kept to be shown.
const MOST_SHOWN: usize = 20;

/// What all askers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) model: Model,
    pub(super) server: SocketAddr,
    pub(super) stop: AtomicBool,
    pub(super) seen: Seen,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Right answers over UDP, and over TCP.
    pub(super) udp: AtomicU64,
    pub(super) tcp: AtomicU64,
    /// What was sent that is no query, and how often something came back.
    pub(super) broken: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) unanswered: AtomicU64,
    pub(super) wrong: AtomicU64,
    shown: Mutex<Vec<String>>,
}

impl Seen {
    /// Something is not as it should be.
    pub(super) fn complain(&self, what: String) {
        self.wrong.fetch_add(1, Ordering::Relaxed);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.len() < MOST_SHOWN {
            eprintln!("wrong: {what}");
            shown.push(what);
        }
    }
}

/// Questions on their way, by their ids.
struct Pending {
    over_udp: bool,
    next: u16,
    asked: HashMap<u16, (Question, Duration, bool)>,
}

impl Pending {
    fn new(over_udp: bool) -> Self {
        Self { over_udp, next: 0, asked: HashMap::new() }
    }

    /// Another question, as it is sent.
    fn ask(&mut self, shared: &Shared, random: &mut Random) -> Vec<u8> {
        let (question, payload) = (Question::any(random), payload(random));
        self.next = self.next.wrapping_add(1);
        let octets = query(self.next, &question.octets(), payload);
        self.asked.insert(self.next, (question, shared.model.now(), payload.is_some()));
        octets
    }

    /// Judges an answer.
    fn answer(&mut self, octets: &[u8], shared: &Shared) {
        let (now, seen) = (shared.model.now(), &shared.seen);
        let response = match Response::read(octets) {
            Ok(response) => response,
            Err(why) => return seen.complain(format!("{why}: {octets:02x?}")),
        };
        let Some((question, sent, has_opt)) = self.asked.remove(&response.id) else {
            return seen.complain(format!("nobody has asked: {response:?}"));
        };
        let judged = if response.question != question.octets() {
            Err("another question".to_owned())
        } else if response.has_opt != has_opt {
            Err("EDNS is answered with EDNS, and nothing else is".to_owned())
        } else {
            shared.model.judge(question.what, question.kind, &response, (sent, now), self.over_udp)
        };
        match judged {
            Ok(()) => {
                let count = if self.over_udp { &seen.udp } else { &seen.tcp };
                count.fetch_add(1, Ordering::Relaxed);
            }
            Err(why) => {
                let answers: Vec<String> = response.answers.iter().map(ToString::to_string).collect();
                seen.complain(format!(
                    "{} {} sent at {sent:.3?}, answered at {now:.3?}: code {}{} {answers:?}; {why}",
                    question.name,
                    question.kind,
                    response.rcode,
                    if response.truncated { ", truncated" } else { "" },
                ));
            }
        }
    }

    /// Gives up what takes too long.
    fn expire(&mut self, shared: &Shared) {
        let now = shared.model.now();
        self.asked.retain(|_, (question, sent, _)| {
            let stays = now - *sent < PATIENCE;
            if !stays {
                shared.seen.unanswered.fetch_add(1, Ordering::Relaxed);
                shared
                    .seen
                    .complain(format!("{} {}: no answer in {PATIENCE:?}", question.name, question.kind));
            }
            stays
        });
    }
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn socket(&self) -> UdpSocket {
        let any = if self.server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(self.server).expect("a way to the server");
        socket.set_read_timeout(Some(TICK)).expect("a timeout");
        socket
    }
}

/// Asks over UDP until it is told to stop.
pub(super) fn over_udp(shared: &Arc<Shared>, mut random: Random) {
    let (socket, mut pending) = (shared.socket(), Pending::new(true));
    let mut buffer = [0; 65_535];
    while shared.goes_on() || !pending.asked.is_empty() {
        while shared.goes_on() && pending.asked.len() < WINDOW {
            let octets = pending.ask(shared, &mut random);
            if let Err(error) = socket.send(&octets) {
                shared.seen.complain(format!("send: {error}"));
            }
        }
        match socket.recv(&mut buffer) {
            Ok(length) => pending.answer(&buffer[..length], shared),
            Err(error) if is_late(&error) => pending.expire(shared),
            Err(error) => shared.seen.complain(format!("receive: {error}")),
        }
    }
}

/// Asks over one TCP connection after the other, many questions at a time.
pub(super) fn over_tcp(shared: &Arc<Shared>, mut random: Random) {
    while shared.goes_on() {
        let mut pending = Pending::new(false);
        if let Err(error) = one_connection(shared, &mut pending, &mut random) {
            shared.seen.complain(format!("TCP: {error}, {} questions under way", pending.asked.len()));
        }
    }
}

fn one_connection(shared: &Shared, pending: &mut Pending, random: &mut Random) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&shared.server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut left = 1 + random.below(KEPT);
    while left > 0 && shared.goes_on() || !pending.asked.is_empty() {
        let mut out = Vec::new();
        while left > 0 && shared.goes_on() && pending.asked.len() < WINDOW {
            let octets = pending.ask(shared, random);
            out.extend(u16::try_from(octets.len()).expect("a short query").to_be_bytes());
            out.extend(octets);
            left -= 1;
        }
        stream.write_all(&out)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut octets = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut octets)?;
        pending.answer(&octets, shared);
    }
    Ok(())
}

/// Sends what is no query; of what comes back nothing is expected but that it answers, by its id.
pub(super) fn nonsense(shared: &Arc<Shared>, mut random: Random) {
    let socket = shared.socket();
    // Much of it is answered by nothing.
    socket.set_read_timeout(Some(SHORT)).expect("a timeout");
    let mut buffer = [0; 65_535];
    let mut id = 0_u16;
    while shared.goes_on() {
        for _ in 0..16 {
            id = id.wrapping_add(1);
            // It cannot be sent where the way is full.
            let _ = socket.send(&broken(id, &mut random));
            shared.seen.broken.fetch_add(1, Ordering::Relaxed);
        }
        while let Ok(length) = socket.recv(&mut buffer) {
            shared.seen.refused.fetch_add(1, Ordering::Relaxed);
            let answers = length >= 12 && buffer[2] & 0x80 != 0;
            let distance = id.wrapping_sub(u16::from_be_bytes([buffer[0], buffer[1]]));
            if !answers || distance > 1 << 15 {
                shared.seen.complain(format!("to nonsense: {:02x?}", &buffer[..length]));
            }
            if distance == 0 {
                break;
            }
        }
        if id % 4096 < 16 {
            broken_connection(shared, &mut random);
        }
    }
}

/// A connection that breaks off, or says something else than queries.
fn broken_connection(shared: &Shared, random: &mut Random) {
    let Ok(mut stream) = TcpStream::connect_timeout(&shared.server, PATIENCE) else {
        return shared.seen.complain("TCP: no connection".to_owned());
    };
    let octets = broken(0, random);
    let length = if random.below(2) == 0 { octets.len() } else { random.below(65_536) };
    let _ = stream.write_all(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    let _ = stream.write_all(&octets);
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
