//! One client connection on its way through: find an endpoint that accepts, then move bytes both ways.
//!
//! A connection is a small state that its thread's events push forward; it holds no task, no buffer and no timer of its
//! own. A client fails only when no endpoint accepts within the deadline.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use rustix::io::Errno;

use super::arena::Key;
use super::flow::{Broken, Flow, Moved};
use super::io::Io;
use super::poll::{Interest, Readiness, Subject};
use super::route::Route;
use super::side::{Delay, Side};
use super::{Dropped, socket};
use crate::balance::{Lease, Tried};

/// A client, the endpoint that was found for it, and what moves between them.
#[derive(Debug)]
pub(super) struct Connection {
    client: Side,
    peer: SocketAddr,
    endpoint: Option<Side>,
    to_endpoint: Flow,
    to_client: Flow,
    lease: Option<Lease>,
    tried: Option<Box<Tried>>,
    stage: Stage,
    pub(super) route: Rc<Route>,
    began: Instant,
    /// When something last moved; while connecting, when the attempt began.
    active: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The endpoint's socket is not connected yet.
    Connecting,
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
    /// It was broken off.
    Dropped(Dropped),
}

impl Connection {
    pub(super) fn new(client: OwnedFd, peer: SocketAddr, route: &Rc<Route>, now: Instant) -> Self {
        let mut client = Side::new(client, Delay::Off);
        client.writable = true;
        Self {
            client,
            peer,
            endpoint: None,
            to_endpoint: Flow::default(),
            to_client: Flow::default(),
            lease: None,
            tried: None,
            stage: Stage::Connecting,
            route: Rc::clone(route),
            began: now,
            active: now,
        }
    }

    /// The first step: what the client said already, and a first endpoint.
    pub(super) fn begin(&mut self, key: Key, io: &mut Io) -> Step {
        // Most clients speak first, and what they said goes out with the last packet of the handshake.
        let early = match self.client.read(&mut io.buffer) {
            Ok(Some(read)) if read.count > 0 => read.count,
            Ok(Some(_)) => {
                // It has finished without a word; the endpoint is told like of any other end.
                self.client.readable = true;
                0
            }
            Ok(None) => 0,
            Err(_) => return Step::Dropped(Dropped::ClientReset),
        };
        // Watched only now, so that what was just read is not reported again.
        if self.client.watch(&io.poller, Subject::Client(key), Interest::Read).is_err() {
            return Step::Dropped(Dropped::Limit);
        }
        self.search(key, io, early)
    }

    /// Tries endpoints until one accepts, or it must be waited for whether it does. The first `early` bytes of the buffer are
    /// the client's and not held yet.
    fn search(&mut self, key: Key, io: &mut Io, early: usize) -> Step {
        let mut early = early;
        loop {
            let none = Tried::none();
            let tried = self.tried.as_deref().unwrap_or(&none);
            let lease = match self.route.balancer.pick(tried) {
                Ok(lease) => lease,
                Err(none) => {
                    tracing::debug!(service = %self.route.balancer.service(), client = %self.peer, error = %none, "a client is refused");
                    let reason = if tried.is_empty() { Dropped::NoEndpoint } else { Dropped::ConnectFailed };
                    return Step::Dropped(reason);
                }
            };
            self.active = io.now;
            let attempt = self.attempt(key, io, &lease, early);
            self.lease = Some(lease);
            match attempt {
                Ok(Stage::Relaying) => return self.connected(key, io),
                Ok(Stage::Connecting) => {
                    if early > 0 {
                        self.to_endpoint.hold(&io.buffer[..early], false);
                    }
                    io.timers.set(self.attempt_ends(), key);
                    return Step::Wait;
                }
                Err(error) if socket::is_ours(error) => return self.out_of(error),
                Err(error) => {
                    if early > 0 {
                        self.to_endpoint.hold(&io.buffer[..early], false);
                        early = 0;
                    }
                    self.attempt_failed(error);
                }
            }
        }
    }

    /// One attempt: connected at once (endpoints on this machine), or to be waited for.
    fn attempt(&mut self, key: Key, io: &mut Io, lease: &Lease, early: usize) -> Result<Stage, Errno> {
        let speaks_first = early > 0 || self.to_endpoint.holds();
        let mut endpoint = Side::new(
            socket::connect(lease.endpoint().address(), speaks_first, &self.route.config.tcp)?,
            Delay::Untouched,
        );
        let (stage, interest) = match early {
            0 => (Stage::Connecting, Interest::ReadAndWrite),
            early => match endpoint.write(&io.buffer[..early], false)? {
                0 => (Stage::Connecting, Interest::ReadAndWrite),
                written => {
                    if written < early {
                        self.to_endpoint.hold(&io.buffer[written..early], false);
                    }
                    self.route.tally.to_endpoint.add(written as u64);
                    (Stage::Relaying, Interest::Read)
                }
            },
        };
        endpoint.watch(&io.poller, Subject::Endpoint(key), interest).map_err(|_| Errno::NOSPC)?;
        self.endpoint = Some(endpoint);
        Ok(stage)
    }

    /// Nothing that another endpoint could do better, nor any endpoint's fault.
    fn out_of(&self, error: Errno) -> Step {
        let service = self.route.balancer.service();
        let error_text = std::io::Error::from(error);
        tracing::debug!(%service, error = %error_text, "a client is refused: no socket to connect with");
        match error {
            Errno::ADDRNOTAVAIL => Step::Dropped(Dropped::OutOfPorts),
            _ => Step::Dropped(Dropped::OutOfDescriptors),
        }
    }

    fn attempt_failed(&mut self, error: Errno) {
        self.endpoint = None;
        let Some(lease) = self.lease.take() else { return };
        tracing::debug!(
            service = %self.route.balancer.service(),
            endpoint = %lease.endpoint().id(),
            address = %lease.endpoint().address(),
            error = %std::io::Error::from(error),
            "cannot connect to an endpoint; another one is tried"
        );
        self.route.tally.retries.add(1);
        self.tried.get_or_insert_default().failed(&lease);
    }

    fn attempt_ends(&self) -> Instant {
        let config = &self.route.config;
        (self.active + config.connect_timeout).min(self.began + config.connect_deadline)
    }

    fn connected(&mut self, key: Key, io: &mut Io) -> Step {
        self.stage = Stage::Relaying;
        self.tried = None;
        if let Some(lease) = &self.lease {
            lease.connected();
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
            Stage::Connecting if self.client.failed => Step::Dropped(Dropped::ClientReset),
            Stage::Connecting => Step::Wait,
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
                self.search_on(key, io)
            }
            Stage::Connecting if endpoint.writable => self.connected(key, io),
            Stage::Connecting => Step::Wait,
        }
    }

    /// Its timer has run out, or another one that it had set.
    pub(super) fn woken(&mut self, key: Key, io: &mut Io) -> Step {
        match self.stage {
            Stage::Connecting if io.now >= self.attempt_ends() => {
                self.attempt_failed(Errno::TIMEDOUT);
                self.search_on(key, io)
            }
            Stage::Connecting => Step::Wait,
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

    fn search_on(&mut self, key: Key, io: &mut Io) -> Step {
        if io.now >= self.began + self.route.config.connect_deadline {
            return Step::Dropped(Dropped::ConnectDeadline);
        }
        self.search(key, io, 0)
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
        let up = match up {
            Ok(moved) => moved,
            Err(Broken::Source) => return Step::Dropped(Dropped::ClientReset),
            Err(Broken::Sink) => return Step::Dropped(Dropped::EndpointReset),
        };
        let down = match down {
            Ok(moved) => moved,
            Err(Broken::Source) => return Step::Dropped(Dropped::EndpointReset),
            Err(Broken::Sink) => return Step::Dropped(Dropped::ClientReset),
        };
        if up.bytes + down.bytes > 0 {
            self.active = io.now;
            self.route.tally.to_endpoint.add(up.bytes);
            self.route.tally.to_client.add(down.bytes);
        }
        match () {
            () if self.to_endpoint.ended && self.to_client.ended => Step::Finished,
            // Broken, but neither read nor written, which would have told.
            () if client.failed => Step::Dropped(Dropped::ClientReset),
            () if endpoint.failed => Step::Dropped(Dropped::EndpointReset),
            () if up.more || down.more => Step::Again,
            () => Step::Wait,
        }
    }

    /// It has lasted: peers that vanish without a word are to be noticed.
    pub(super) fn settle(&self) {
        let options = &self.route.config.tcp;
        socket::set_keepalive(&self.client, options);
        if let Some(endpoint) = &self.endpoint {
            socket::set_keepalive(endpoint, options);
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
