//! One client connection on its way through: who it is, an endpoint that accepts it, then bytes both ways.
//!
//! A connection is a small state that its thread's events push forward; it holds no task, no buffer and no timer of its
//! own. A client fails only when no endpoint accepts within the deadline, or a limit that somebody set says so.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nerve::model::{Address, ClientAddress};
use rustix::io::Errno;
use smallvec::SmallVec;

use super::arena::Key;
use super::flow::{Broken, Flow, Moved};
use super::io::Io;
use super::peer::Peer;
use super::poll::{Interest, Readiness, Subject};
use super::proxy_protocol::{self, Addresses};
use super::route::Route;
use super::side::{Delay, Side};
use super::transparent::{Borrowed, Held};
use super::{Dropped, socket, unix};
use crate::balance::{ClientKey, ConnectFailure, Endpoint, Lease, Permit, Ticket, Tried};

/// How long the header of a trusted proxy may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Quiet for so long, and not waiting for an answer: nobody notices that it is closed but a pool that is better off so.
const QUIET: Duration = Duration::from_secs(1);
/// How soon, and how late at most, an endpoint is asked again whose unix socket has a full backlog.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(8), Duration::from_millis(64));

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
    endpoint: Option<Side>,
    to_endpoint: Flow,
    to_client: Flow,
    lease: Option<Lease>,
    permit: Option<Permit>,
    search: Option<Box<Search>>,
    stage: Stage,
    pub(super) route: Rc<Route>,
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

/// What only connections need whose first endpoint does not do.
#[derive(Debug, Default)]
struct Search {
    tried: Tried,
    ticket: Option<Ticket>,
    /// What this host had none of at the last attempt.
    lacked: Option<Errno>,
    /// The attempt under way has taken too long, and there is no better one.
    overdue: bool,
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
    /// Both directions ended by FIN.
    Finished,
    /// It is broken off, by RST.
    Dropped(Dropped),
    /// It is ended from here, by FIN.
    Closed(Dropped),
}

impl Connection {
    pub(super) fn new(client: OwnedFd, peer: Peer, route: &Rc<Route>, now: Instant) -> Self {
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
            to_endpoint: Flow::default(),
            to_client: Flow::default(),
            lease: None,
            permit: None,
            search: None,
            stage: if route.is_trusted_proxy(peer) { Stage::Header } else { Stage::Connecting },
            route: Rc::clone(route),
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

    /// It is known who it is: it passes the limits, and an endpoint is looked for.
    fn enter(&mut self, key: Key, io: &mut Io, watch: bool) -> Step {
        self.stage = Stage::Connecting;
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

    /// Tries endpoints until one accepts, or it must be waited for whether it does. The first `early` bytes of the buffer are
    /// for the endpoint and not held yet.
    fn look_for_endpoint(&mut self, key: Key, io: &mut Io, early: usize) -> Step {
        let picked = self.pick(io.now);
        self.try_endpoints(key, io, picked, early)
    }

    /// Tries what was picked, and others where that fails.
    fn try_endpoints(
        &mut self,
        key: Key,
        io: &mut Io,
        mut picked: Result<Lease, bool>,
        mut early: usize,
    ) -> Step {
        loop {
            let lease = match picked {
                Ok(lease) => lease,
                Err(is_full) => {
                    self.hold(io, early);
                    return if is_full { self.queue(key, io) } else { self.nobody() };
                }
            };
            self.active = io.now;
            if let Some(step) = self.try_endpoint(key, io, lease, &mut early) {
                return step;
            }
            picked = self.pick(io.now);
        }
    }

    /// Tries one; `None` if it cannot be connected to.
    fn try_endpoint(&mut self, key: Key, io: &mut Io, lease: Lease, early: &mut usize) -> Option<Step> {
        let attempt = self.attempt(key, io, &lease, *early);
        let is_unix = matches!(lease.endpoint().address(), Address::Unix(_));
        self.lease = Some(lease);
        if let Ok(Stage::Relaying) = attempt {
            return Some(self.connected(key, io));
        }
        self.hold(io, std::mem::take(early));
        match attempt {
            Ok(_) => {
                self.stage = Stage::Connecting;
                io.timers.set(self.attempt_ends(), key);
            }
            // Busy, not dead.
            Err(Errno::AGAIN) if is_unix => {
                self.stage = Stage::BacklogFull;
                let (soon, late) = ASK_AGAIN;
                let waited = io.now.saturating_duration_since(self.active);
                io.timers.set(io.now + (waited / 2).clamp(soon, late), key);
            }
            Err(error) => {
                self.attempt_failed(error);
                return None;
            }
        }
        Some(Step::Wait)
    }

    /// Asks an endpoint again whose backlog was full, until the attempt has lasted for as long as any may.
    fn ask_again(&mut self, key: Key, io: &mut Io) -> Step {
        if io.now >= self.attempt_ends() {
            let step = self.attempt_timed_out(key, io);
            let is_overdue = self.search.as_ref().is_some_and(|search| search.overdue);
            if step != Step::Wait || !is_overdue {
                return step;
            }
        }
        let Some(lease) = self.lease.take() else { return Step::Wait };
        if lease.endpoint().is_gone() {
            return self.look_on(key, io);
        }
        match self.try_endpoint(key, io, lease, &mut 0) {
            Some(step) => step,
            None => self.look_on(key, io),
        }
    }

    fn hold(&mut self, io: &Io, early: usize) {
        if early > 0 {
            self.to_endpoint.hold(&io.buffer[..early], false);
        }
    }

    /// An endpoint; or whether there is none because all are at their limit.
    fn pick(&mut self, now: Instant) -> Result<Lease, bool> {
        let none = Tried::none();
        let (tried, waited) = match &self.search {
            Some(search) => (&search.tried, search.ticket.is_some()),
            None => (&none, false),
        };
        let client = ClientKey { address: self.known_as(), waited, datagrams: false };
        self.route.balancer.pick(&client, tried, now).map_err(|none| {
            tracing::debug!(service = %self.route.balancer.service(), client = %self.peer, error = %none, "no endpoint for a client");
            none.is_full()
        })
    }

    fn nobody(&self) -> Step {
        Step::Dropped(match self.search.as_deref() {
            Some(Search { lacked: Some(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE), .. }) => Dropped::OutOfPorts,
            Some(Search { lacked: Some(_), .. }) => Dropped::OutOfDescriptors,
            Some(Search { tried, .. }) if !tried.is_empty() => Dropped::ConnectFailed,
            _ => Dropped::NoEndpoint,
        })
    }

    /// Waits for a place, as far as the service lets it.
    fn queue(&mut self, key: Key, io: &mut Io) -> Step {
        let search = self.search.get_or_insert_default();
        if let Some(ticket) = &search.ticket {
            ticket.again(io.waker(key));
            return Step::Wait;
        }
        // Asked even where nobody may wait: the balancer counts why.
        let Ok(ticket) = self.route.balancer.wait(io.waker(key)) else {
            return Step::Dropped(Dropped::AtLimit);
        };
        let timeout = self.route.balancer.queue_timeout().unwrap_or_default();
        search.ticket = Some(ticket);
        self.stage = Stage::Queued;
        self.active = io.now;
        io.timers.set(io.now + timeout, key);
        Step::Wait
    }

    /// A place may be free.
    pub(super) fn called(&mut self, key: Key, io: &mut Io) -> Step {
        match self.stage {
            Stage::Queued => self.look_for_endpoint(key, io, 0),
            Stage::Header | Stage::Connecting | Stage::BacklogFull | Stage::Relaying => Step::Wait,
        }
    }

    /// One attempt: connected at once (endpoints on this machine), or to be waited for.
    fn attempt(&mut self, key: Key, io: &mut Io, lease: &Lease, early: usize) -> Result<Stage, Errno> {
        let mut endpoint = match lease.endpoint().address() {
            Address::Ip(address) => {
                let speaks_first = early > 0 || self.to_endpoint.holds();
                let borrowed = self.borrow(*address);
                let options = &self.route.config.tcp;
                Side::new(socket::connect(*address, borrowed, speaks_first, options)?, Delay::Untouched)
            }
            Address::Unix(path) => {
                self.held = None;
                Side::unix(unix::connect(path, &self.route.config.tcp)?)
            }
        };
        let written = match early {
            0 => 0,
            early => endpoint.write(&io.buffer[..early], false)?,
        };
        let interest = if written > 0 { Interest::Read } else { Interest::ReadAndWrite };
        endpoint.watch(&io.poller, Subject::Endpoint(key), interest).map_err(|_| Errno::NOMEM)?;
        self.endpoint = Some(endpoint);
        if written == 0 {
            return Ok(Stage::Connecting);
        }
        if written < early {
            self.to_endpoint.hold(&io.buffer[written..early], false);
        }
        self.awaits_answer = true;
        self.route.tally.to_endpoint.add(written as u64);
        Ok(Stage::Relaying)
    }

    /// The client's address, where the service asks for it and this endpoint can be shown it.
    fn borrow(&mut self, endpoint: SocketAddr) -> Option<Borrowed> {
        self.held = None;
        if self.shown_as != ClientAddress::Transparent {
            return None;
        }
        match self.route.steering.borrow(self.peer.ip()?, endpoint) {
            Ok((borrowed, held)) => {
                self.held = Some(held);
                Some(borrowed)
            }
            Err(plain) => {
                self.route.tally.plain(plain);
                None
            }
        }
    }

    fn attempt_failed(&mut self, error: Errno) {
        (self.endpoint, self.held) = (None, None);
        let was_overdue = self.search.as_mut().is_some_and(|search| std::mem::take(&mut search.overdue));
        if !was_overdue {
            self.note_failure(error);
        }
        self.lease = None;
        self.route.tally.retries.add(1);
    }

    /// The attempt counts as failed, for this connection and for others.
    fn note_failure(&mut self, error: Errno) {
        let Some(lease) = &self.lease else { return };
        let search = self.search.get_or_insert_default();
        let lacked = error;
        let error = std::io::Error::from(error);
        let failure = ConnectFailure::of(&error);
        search.lacked = (failure == ConnectFailure::Local).then_some(lacked);
        search.tried.failed(lease, failure);
        tracing::debug!(
            service = %self.route.balancer.service(),
            endpoint = %lease.endpoint().id(),
            address = %lease.endpoint().address(),
            %error,
            "cannot connect to an endpoint; another one is tried if there is one"
        );
    }

    /// The endpoint has not answered in time: another one is tried. Without another one this one is waited for, as a client
    /// without a balancer would do: what is slow (a full accept queue) is better than nothing.
    fn attempt_timed_out(&mut self, key: Key, io: &mut Io) -> Step {
        let deadline = self.began + self.route.config.connect_deadline;
        if io.now >= deadline {
            self.attempt_failed(Errno::TIMEDOUT);
            return Step::Dropped(Dropped::ConnectDeadline);
        }
        self.note_failure(Errno::TIMEDOUT);
        if let Ok(lease) = self.pick(io.now) {
            (self.endpoint, self.held) = (None, None);
            self.route.tally.retries.add(1);
            return self.try_endpoints(key, io, Ok(lease), 0);
        }
        self.search.get_or_insert_default().overdue = true;
        io.timers.set(deadline, key);
        Step::Wait
    }

    fn attempt_ends(&self) -> Instant {
        let config = &self.route.config;
        let deadline = self.began + config.connect_deadline;
        if self.search.as_ref().is_some_and(|search| search.overdue) {
            return deadline;
        }
        deadline.min(self.active + config.connect_timeout)
    }

    fn connected(&mut self, key: Key, io: &mut Io) -> Step {
        self.stage = Stage::Relaying;
        self.search = None;
        if let Some(lease) = &self.lease {
            lease.connected(io.now.saturating_duration_since(self.active));
        }
        self.route.connect_time.observe(io.now.saturating_duration_since(self.began).as_secs_f64());
        self.active = io.now;
        if let Some(timeout) = self.route.config.idle_timeout {
            io.timers.set(io.now + timeout, key);
        }
        self.relay(key, io)
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
        let Some(endpoint) = &mut self.endpoint else { return Step::Wait };
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
                let Some(timeout) = self.route.config.idle_timeout else { return Step::Wait };
                if io.now >= self.active + timeout {
                    return Step::Dropped(Dropped::Idle);
                }
                io.timers.set(self.active + timeout, key);
                Step::Wait
            }
        }
    }

    fn leave_queue(&mut self, now: Instant) -> Step {
        let timeout = self.route.balancer.queue_timeout().unwrap_or_default();
        if now < self.active + timeout {
            return Step::Wait;
        }
        if let Some(ticket) = self.search.as_mut().and_then(|search| search.ticket.take()) {
            let _ = ticket.timed_out();
        }
        Step::Dropped(Dropped::QueueTimeout)
    }

    fn look_on(&mut self, key: Key, io: &mut Io) -> Step {
        if io.now >= self.began + self.route.config.connect_deadline {
            return Step::Dropped(Dropped::ConnectDeadline);
        }
        self.look_for_endpoint(key, io, 0)
    }

    /// Moves what can be moved, both ways.
    pub(super) fn relay(&mut self, key: Key, io: &mut Io) -> Step {
        let Some(endpoint) = &mut self.endpoint else { return Step::Wait };
        let client = &mut self.client;
        let up = self.to_endpoint.run(client, endpoint, Subject::Endpoint(key), io, self.to_client.ended);
        // Also when the endpoint takes nothing any more: what it had said before is still to be delivered.
        let down = match up {
            Err(Broken::Source) => Ok(Moved::default()),
            _ => self.to_client.run(endpoint, client, Subject::Client(key), io, self.to_endpoint.ended),
        };
        let failed = (client.failed, endpoint.failed);
        if let (Ok(up), Ok(down)) = (up, down) {
            self.note_moved(up, down, io.now);
        }
        match (up, down) {
            (Err(Broken::Source), _) | (Ok(_), Err(Broken::Sink)) => Step::Dropped(Dropped::ClientReset),
            (Err(Broken::Sink), _) | (Ok(_), Err(Broken::Source)) => self.endpoint_broke_off(),
            (Ok(up), Ok(down)) => match failed {
                _ if self.to_endpoint.ended && self.to_client.ended => Step::Finished,
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
        let is_quiet = io.now >= self.active + QUIET && !self.awaits_answer;
        if is_quiet && !self.to_endpoint.holds() && !self.to_client.holds() {
            return Step::Closed(Dropped::EndpointDied);
        }
        io.timers.set(io.now + QUIET, key);
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

    /// Ends it by RST on both sides.
    pub(super) fn reset(self) {
        self.client.reset();
        if let Some(endpoint) = self.endpoint {
            endpoint.reset();
        }
    }
}
