//! One client connection on its way through: who it is, an endpoint that accepts it, then bytes both ways.
//!
//! A connection is a small state that its thread's events push forward; it holds no task, no buffer and no timer of its
//! own. A client fails only when no endpoint accepts within the deadline, or a limit that somebody set says so.

mod far;
mod search;
mod through;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nerve::model::ClientAddress;
use rustix::io::Errno;
use smallvec::SmallVec;

use self::far::Far;
use self::search::Search;
use super::arena::Key;
use super::flow::{Broken, Flow, Moved};
use super::io::Io;
use super::peer::Peer;
use super::poll::{Interest, Readiness, Subject};
use super::proxy_protocol::{self, Addresses};
use super::route::OpenRoute;
use super::side::{Delay, Side};
use super::transparent::Held;
use super::tunnel_table::TunnelPeer;
use super::{Dropped, socket};
use crate::balance::{Endpoint, Lease, Permit};

/// How long the header of a trusted proxy may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Quiet for so long, and not waiting for an answer: nobody notices that it is closed but a pool that is better off so. An endpoint
/// that hangs may do so in the middle of an answer, and go on: it has that long to.
const QUIET: Duration = Duration::from_secs(5);

/// A client, the endpoint that was found for it, and what moves between them.
#[derive(Debug)]
pub(super) struct Connection {
    client: Side,
    /// The client, or whom a trusted proxy speaks for.
    peer: Peer,
    /// The address that the client asked, where a trusted proxy says it.
    asked: Option<Box<SocketAddr>>,
    /// How the endpoint learns of it.
    shown_as: ClientAddress,
    /// The endpoint's socket has the client's address.
    held: Option<Held>,
    endpoint: Option<Far>,
    /// A tunnel to there is waited for.
    wanted: Option<Arc<TunnelPeer>>,
    to_endpoint: Flow,
    to_client: Flow,
    lease: Option<Lease>,
    permit: Option<Permit>,
    search: Option<Box<Search>>,
    stage: Stage,
    pub(super) route: OpenRoute,
    began: Instant,
    /// When something last moved; before that, when the stage began.
    active: Instant,
    /// The last that moved went to the endpoint: an answer may be on its way.
    awaits_answer: bool,
    /// The endpoint has said something.
    answered: bool,
    /// Its endpoint is dead: to be closed as soon as it is quiet.
    doomed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A trusted proxy is to say whom it speaks for.
    Header,
    /// Every endpoint is full; it waits for a place.
    Queued,
    /// The endpoint's socket is not connected yet.
    Connecting,
    /// The endpoint's unix socket has a full backlog; it is asked again.
    BacklogFull,
    /// Bytes may move.
    Relaying,
}

/// What is to be done with a connection after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It waits for its sockets.
    Wait,
    /// It has more to do at once.
    Again,
    /// It waits for a tunnel, which its thread is to find or to make.
    WantsTunnel,
    /// Both directions ended by FIN.
    Finished,
    /// It is broken off, by RST.
    Dropped(Dropped),
    /// It is ended from here, by FIN.
    Closed(Dropped),
}

impl Connection {
    pub(super) fn new(client: OwnedFd, peer: Peer, route: OpenRoute, now: Instant) -> Self {
        let mut client = match peer {
            Peer::Ip(_) => Side::new(client, Delay::Off),
            Peer::Unix => Side::unix(client),
        };
        client.writable = true;
        Self {
            client,
            peer,
            asked: None,
            shown_as: ClientAddress::default(),
            held: None,
            endpoint: None,
            wanted: None,
            to_endpoint: Flow::default(),
            to_client: Flow::default(),
            lease: None,
            permit: None,
            search: None,
            stage: if route.is_trusted_proxy(peer) { Stage::Header } else { Stage::Connecting },
            route,
            began: now,
            active: now,
            awaits_answer: false,
            answered: false,
            doomed: false,
        }
    }

    /// The first step: who it is, what it said already, and a first endpoint.
    pub(super) fn begin(&mut self, key: Key, io: &mut Io) -> Step {
        if self.stage != Stage::Header {
            return self.enter(key, io, true);
        }
        if self.client.watch(&io.poller, Subject::Client(key), Interest::Read).is_err() {
            return Step::Dropped(Dropped::OutOfDescriptors);
        }
        io.timers.set(self.began + HEADER_TIMEOUT, key);
        Step::Wait
    }

    /// Reads a trusted proxy's header, once it is complete.
    fn read_header(&mut self, key: Key, io: &mut Io) -> Step {
        let buffer = &mut io.buffer[..proxy_protocol::LONGEST];
        let count = match socket::peek(&self.client, buffer) {
            Ok(count) => count,
            Err(Errno::AGAIN) => return Step::Wait,
            Err(_) => return Step::Dropped(Dropped::ClientReset),
        };
        match proxy_protocol::read(&buffer[..count]) {
            Ok(None) if count == 0 || self.client.finished => Step::Dropped(Dropped::ProxyHeader),
            Ok(None) => Step::Wait,
            Err(malformed) => {
                tracing::debug!(service = %self.route.balancer.service(), proxy = %self.peer, error = %malformed, "a trusted proxy's connection is refused");
                Step::Dropped(Dropped::ProxyHeader)
            }
            Ok(Some(header)) => {
                // It was peeked at; now it is taken, and what follows is left.
                if self.client.read(&mut io.buffer[..header.length]).is_err() {
                    return Step::Dropped(Dropped::ClientReset);
                }
                self.client.readable = true;
                if let Some(Addresses { source, destination }) = header.addresses {
                    self.peer = Peer::Ip(source);
                    self.asked = Some(Box::new(destination));
                }
                self.enter(key, io, false)
            }
        }
    }

    /// It is known who it is: it passes the rules and the limits, and an endpoint is looked for.
    fn enter(&mut self, key: Key, io: &mut Io, watch: bool) -> Step {
        self.stage = Stage::Connecting;
        let client = self.peer.ip().map(|address| address.ip());
        if !self.route.access.admit(client, self.route.balancer.service()) {
            return Step::Dropped(Dropped::Denied);
        }
        match self.route.balancer.admit(self.known_as().ip(), io.now) {
            Ok(permit) => self.permit = Some(permit),
            Err(_) => return Step::Dropped(Dropped::AtLimit),
        }
        self.shown_as = self.route.balancer.settings().service.client_address.unwrap_or_default();
        let head = self.header_for_endpoint();
        io.buffer[..head.len()].copy_from_slice(&head);
        // Most clients speak first, and what they said goes out with the last packet of the handshake.
        let early = match self.client.read(&mut io.buffer[head.len()..]) {
            Ok(Some(read)) => {
                // A FIN without a word is passed on like any other end.
                self.client.readable |= read.count == 0;
                read.count
            }
            Ok(None) => 0,
            Err(_) => return Step::Dropped(Dropped::ClientReset),
        };
        // Watched only now, so that what was just read is not reported again.
        if watch && self.client.watch(&io.poller, Subject::Client(key), Interest::Read).is_err() {
            return Step::Dropped(Dropped::OutOfDescriptors);
        }
        self.look_for_endpoint(key, io, head.len() + early)
    }

    /// The PROXY protocol header that the service's endpoints are to get.
    fn header_for_endpoint(&self) -> SmallVec<[u8; 128]> {
        let Some(version) = self.shown_as.proxy_version() else { return SmallVec::new() };
        let Peer::Ip(source) = self.peer else { return proxy_protocol::write_unknown(version) };
        let asked = match &self.asked {
            Some(asked) => **asked,
            None => socket::local_address(&self.client).unwrap_or(SocketAddr::new(source.ip(), 0)),
        };
        proxy_protocol::write(version, Addresses { source, destination: asked })
    }

    /// What the balancer knows the client by.
    fn known_as(&self) -> SocketAddr {
        self.peer.key(self.route.config.unix_clients)
    }

    fn hold(&mut self, io: &Io, early: usize) {
        if early > 0 {
            self.to_endpoint.hold(&io.buffer[..early], false);
        }
    }

    /// A place may be free.
    pub(super) fn called(&mut self, key: Key, io: &mut Io) -> Step {
        match self.stage {
            Stage::Queued => self.look_for_endpoint(key, io, 0),
            Stage::Header | Stage::Connecting | Stage::BacklogFull | Stage::Relaying => Step::Wait,
        }
    }

    fn connected(&mut self, key: Key, io: &mut Io) -> Step {
        self.stage = Stage::Relaying;
        self.search = None;
        if let Some(lease) = &self.lease {
            lease.connected(io.now.saturating_duration_since(self.active));
        }
        self.route.connect_time.observe(io.now.saturating_duration_since(self.began).as_secs_f64());
        self.active = io.now;
        if let Some(timeout) = self.idle_timeout() {
            io.timers.set(io.now + timeout, key);
        }
        self.relay(key, io)
    }

    /// The service's word on it, or the node's.
    fn idle_timeout(&self) -> Option<Duration> {
        self.route.balancer.patience().idle.or(self.route.config.idle_timeout)
    }

    /// The client's socket has something to say.
    pub(super) fn client_ready(&mut self, key: Key, readiness: Readiness, io: &mut Io) -> Step {
        self.client.note(readiness);
        match self.stage {
            Stage::Relaying => self.relay(key, io),
            _ if self.client.failed => Step::Dropped(Dropped::ClientReset),
            Stage::Header => self.read_header(key, io),
            Stage::Queued | Stage::Connecting | Stage::BacklogFull => Step::Wait,
        }
    }

    /// The endpoint's socket has something to say.
    pub(super) fn endpoint_ready(&mut self, key: Key, readiness: Readiness, io: &mut Io) -> Step {
        let Some(Far::Plain(endpoint)) = &mut self.endpoint else { return Step::Wait };
        endpoint.note(readiness);
        match self.stage {
            Stage::Relaying => self.relay(key, io),
            Stage::Connecting if endpoint.failed => {
                let error = socket::error(&*endpoint);
                self.attempt_failed(error);
                self.look_on(key, io)
            }
            Stage::Connecting if endpoint.writable => self.connected(key, io),
            Stage::Header | Stage::Queued | Stage::Connecting | Stage::BacklogFull => Step::Wait,
        }
    }

    /// Its timer has run out, or another one that it had set.
    pub(super) fn woken(&mut self, key: Key, io: &mut Io) -> Step {
        match self.stage {
            Stage::Header if io.now >= self.began + HEADER_TIMEOUT => Step::Dropped(Dropped::ProxyHeader),
            Stage::Queued => self.leave_queue(io.now),
            Stage::Connecting if io.now >= self.attempt_ends() => self.attempt_timed_out(key, io),
            Stage::BacklogFull => self.ask_again(key, io),
            Stage::Header | Stage::Connecting => Step::Wait,
            Stage::Relaying if self.doomed => self.close_if_quiet(key, io),
            Stage::Relaying => {
                let Some(timeout) = self.idle_timeout() else { return Step::Wait };
                if io.now >= self.active + timeout {
                    return Step::Dropped(Dropped::Idle);
                }
                io.timers.set(self.active + timeout, key);
                Step::Wait
            }
        }
    }

    /// Moves what can be moved, both ways.
    pub(super) fn relay(&mut self, key: Key, io: &mut Io) -> Step {
        let Some(endpoint) = &mut self.endpoint else { return Step::Wait };
        let (client, client_subject) = (&mut self.client, Subject::Client(key));
        let (to_endpoint, to_client) = (&mut self.to_endpoint, &mut self.to_client);
        let up = match endpoint {
            Far::Plain(endpoint) => {
                to_endpoint.run(client, endpoint, Subject::Endpoint(key), io, to_client.ended)
            }
            Far::Tunnel(tunnel) => tunnel.send(client, io),
        };
        // Also when the endpoint takes nothing any more: what it had said before is still to be delivered.
        let down = match (up, &mut *endpoint) {
            (Err(Broken::Source), _) => Ok(Moved::default()),
            (_, Far::Plain(endpoint)) => {
                to_client.run(endpoint, client, client_subject, io, to_endpoint.ended)
            }
            (_, Far::Tunnel(tunnel)) => tunnel.receive(client, client_subject, io),
        };
        let (failed, is_over) = match endpoint {
            Far::Plain(endpoint) => ((client.failed, endpoint.failed), to_endpoint.ended && to_client.ended),
            Far::Tunnel(tunnel) => ((client.failed, tunnel.has_failed()), tunnel.is_over()),
        };
        if let (Ok(up), Ok(down)) = (up, down) {
            self.note_moved(up, down, io.now);
        }
        match (up, down) {
            (Err(Broken::Source), _) | (Ok(_), Err(Broken::Sink)) => Step::Dropped(Dropped::ClientReset),
            (Err(Broken::Sink), _) | (Ok(_), Err(Broken::Source)) => self.endpoint_broke_off(),
            (Ok(up), Ok(down)) => match failed {
                _ if is_over => Step::Finished,
                // Broken, but neither read nor written, which would have told.
                (true, _) => Step::Dropped(Dropped::ClientReset),
                (_, true) => self.endpoint_broke_off(),
                _ if up.more || down.more => Step::Again,
                _ => Step::Wait,
            },
        }
    }

    fn note_moved(&mut self, up: Moved, down: Moved, now: Instant) {
        if up.bytes + down.bytes == 0 {
            return;
        }
        self.route.tally.to_endpoint.add(up.bytes);
        self.route.tally.to_client.add(down.bytes);
        self.awaits_answer = down.bytes == 0;
        if down.bytes > 0 && !self.answered {
            self.answered = true;
            if let Some(lease) = &self.lease {
                lease.first_byte(now.saturating_duration_since(self.active));
            }
        }
        self.active = now;
    }

    fn endpoint_broke_off(&self) -> Step {
        if !self.answered
            && let Some(lease) = &self.lease
        {
            lease.reset_before_first_byte();
        }
        Step::Dropped(Dropped::EndpointReset)
    }

    /// Is this its endpoint?
    pub(super) fn is_with(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.lease.as_ref().is_some_and(|lease| Arc::ptr_eq(lease.endpoint(), endpoint))
    }

    /// Its endpoint is dead: it is closed at once if it is quiet, or as soon as it is.
    pub(super) fn endpoint_died(&mut self, key: Key, io: &mut Io) -> Step {
        match self.stage {
            Stage::Relaying => {
                self.doomed = true;
                self.close_if_quiet(key, io)
            }
            Stage::Header | Stage::Queued | Stage::Connecting | Stage::BacklogFull => Step::Wait,
        }
    }

    fn close_if_quiet(&mut self, key: Key, io: &mut Io) -> Step {
        self.doomed = self.lease.as_ref().is_some_and(|lease| lease.endpoint().is_dead());
        if !self.doomed {
            return self.woken(key, io);
        }
        let quiet_at = self.active + QUIET;
        let is_quiet = io.now >= quiet_at && !self.awaits_answer;
        let holds = self.endpoint.as_ref().is_some_and(Far::holds);
        if is_quiet && !holds && !self.to_endpoint.holds() && !self.to_client.holds() {
            return Step::Closed(Dropped::EndpointDied);
        }
        io.timers.set(if io.now < quiet_at { quiet_at } else { io.now + QUIET }, key);
        Step::Wait
    }

    /// It has lasted: peers that vanish without a word are to be noticed.
    pub(super) fn settle(&self) {
        let options = &self.route.config.tcp;
        self.client.keep_alive(options);
        if let Some(endpoint) = &self.endpoint {
            endpoint.keep_alive(options);
        }
    }

    /// Both directions have ended: what can be used again is given back.
    pub(super) fn finish(self) {
        if let Some(endpoint) = self.endpoint {
            endpoint.finish();
        }
    }

    /// Ends it by RST on both sides.
    pub(super) fn reset(self) {
        self.client.reset();
        if let Some(endpoint) = self.endpoint {
            endpoint.reset();
        }
    }
}
