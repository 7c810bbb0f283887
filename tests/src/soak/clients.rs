//! What one client does, over TCP or UDP, and how it notes what went wrong.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::blame::{ANSWER, Failed, Kind, PATIENCE, Why};
use super::plan::{ENDPOINTS, id_of};
use super::random::Random;
use super::record::Record;
use super::timeline::Timeline;
use crate::client::http::{Failure, Held, Step};
use crate::wait::pause;

/// What all clients share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) timeline: Arc<Timeline>,
    pub(super) record: Record,
    pub(super) stop: AtomicBool,
}

/// Where a client asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) node: usize,
    pub(super) by_vip: bool,
    pub(super) address: SocketAddr,
}

/// A client and what it knows of its connection.
struct Client<'a> {
    shared: &'a Shared,
    kind: Kind,
    way: Way,
    began: Duration,
    answered: Option<(usize, Duration)>,
}

impl Shared {
    fn client(&self, kind: Kind, way: Way) -> Client<'_> {
        self.record.begun(kind);
        Client { shared: self, kind, way, began: self.timeline.now(), answered: None }
    }

    /// A connection, an exchange, the end.
    pub(super) fn once(&self, way: Way) {
        let mut client = self.client(Kind::Once, way);
        let result = client.connect().and_then(|mut held| client.ask(&mut held));
        client.note(result);
    }

    /// A connection with exchanges over some seconds, never so far apart that it would pass for an idle one.
    pub(super) fn kept(&self, way: Way, mut random: Random) {
        let mut client = self.client(Kind::Kept, way);
        let mut held = match client.connect() {
            Ok(held) => held,
            failed @ Err(_) => return client.note(failed.map(drop)),
        };
        for _ in 0..4 + random.below(16) {
            let asked = self.timeline.now();
            if let failed @ Err(_) = client.ask(&mut held) {
                return client.note(failed);
            }
            self.record.went_well(Kind::Kept, self.timeline.now() - asked);
            pause(random.between(Duration::from_millis(50), Duration::from_millis(400)));
        }
    }

    /// Many blocks down, and up again.
    pub(super) fn bulk(&self, way: Way, mut random: Random) {
        let mut client = self.client(Kind::Bulk, way);
        let result = client.connect().and_then(|mut held| {
            client.ask(&mut held)?;
            held.download(64 + random.below(256) as u64)?;
            let answer = held.upload(64 + random.below(256) as u64)?;
            if answer.status == 200 { Ok(()) } else { Err(wrong(&format!("{} to an upload", answer.status))) }
        });
        client.note(result);
    }

    /// One exchange from a port of its own.
    pub(super) fn datagram(&self, way: Way, port: u16) {
        let mut client = self.client(Kind::Datagram, way);
        let result = open(way.address, port).and_then(|socket| client.ask_by_datagram(&socket));
        client.note(result);
    }

    /// Exchanges from one port until it is told to stop.
    pub(super) fn talk(&self, way: Way, pace: Duration) {
        let mut client = self.client(Kind::Talk, way);
        let Ok(socket) = open(way.address, 0) else { return client.note(Err(wrong("no socket"))) };
        while !self.stop.load(Ordering::SeqCst) {
            client.began = self.timeline.now();
            let result = client.ask_by_datagram(&socket);
            let failed = result.is_err();
            client.note(result);
            if failed {
                // Whoever it is with now.
                client.answered = None;
            }
            pause(pace);
        }
    }
}

impl Client<'_> {
    fn connect(&self) -> Result<Held, Failure> {
        Held::open_patiently(self.way.address, PATIENCE)
    }

    fn ask(&mut self, held: &mut Held) -> Result<(), Failure> {
        let answer = held.get("/")?;
        let instance = answer.instance().filter(|_| answer.status == 200);
        self.answered(instance.as_deref(), &answer.body)
    }

    fn ask_by_datagram(&mut self, socket: &UdpSocket) -> Result<(), Failure> {
        let mut bytes = [0; 2048];
        let question = self.began.as_nanos();
        socket.send(&question.to_be_bytes()).map_err(|error| of(Step::Send, &error))?;
        loop {
            let length = socket.recv(&mut bytes).map_err(|error| of(Step::Receive, &error))?;
            let answer: serde_json::Value = serde_json::from_slice(&bytes[..length]).unwrap_or_default();
            // Another question is answered where an answer was late.
            if answer["question"].as_str() == Some(&format!("{question:032x}")) {
                return self.answered(answer["instance"].as_str(), "no instance in the answer");
            }
        }
    }

    fn answered(&mut self, instance: Option<&str>, otherwise: &str) -> Result<(), Failure> {
        let endpoint = (0..ENDPOINTS).find(|endpoint| Some(id_of(*endpoint).as_str()) == instance);
        self.answered = Some((endpoint.ok_or_else(|| wrong(otherwise))?, self.shared.timeline.now()));
        Ok(())
    }

    fn note(&self, result: Result<(), Failure>) {
        let ended = self.shared.timeline.now();
        let Self { shared, kind, way: Way { node, by_vip, .. }, began, answered } = self;
        match result {
            Ok(()) => shared.record.went_well(*kind, ended - *began),
            Err(failure) => shared.record.failed(Failed {
                kind: *kind,
                node: *node,
                by_vip: *by_vip,
                began: *began,
                ended,
                answered: *answered,
                why: why(&failure),
                text: failure.to_string(),
            }),
        }
    }
}

fn open(to: SocketAddr, port: u16) -> Result<UdpSocket, Failure> {
    let open = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.connect(to)?;
        Ok(socket)
    };
    open().map_err(|error: std::io::Error| of(Step::Connect, &error))
}

fn of(step: Step, error: &std::io::Error) -> Failure {
    Failure { step, kind: error.kind(), why: error.to_string() }
}

fn wrong(why: &str) -> Failure {
    Failure { step: Step::Status, kind: ErrorKind::Other, why: why.to_owned() }
}

fn why(failure: &Failure) -> Why {
    match (failure.step, failure.kind) {
        (Step::Status, _) | (_, ErrorKind::InvalidData) => Why::Wrong,
        (_, ErrorKind::WouldBlock | ErrorKind::TimedOut) => Why::Silent,
        _ => Why::Broken,
    }
}
