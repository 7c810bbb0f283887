//! The search of a connection for an endpoint that accepts it: one after the other, within the service's limits and the
//! deadline.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nerve::model::{Address, ClientAddress};
use rustix::io::Errno;

use super::far::Far;
use super::{Connection, Stage, Step};
use crate::balance::{ClientKey, ConnectFailure, Lease, Ticket, Tried};
use crate::proxy::arena::Key;
use crate::proxy::io::Io;
use crate::proxy::metrics::WithoutTunnel;
use crate::proxy::poll::{Interest, Subject};
use crate::proxy::side::{Delay, Side};
use crate::proxy::transparent::Borrowed;
use crate::proxy::tunnel_table::Way;
use crate::proxy::{Dropped, Plain, socket, unix};

/// How soon, and how late at most, an endpoint is asked again whose unix socket has a full backlog.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(8), Duration::from_millis(64));

/// What only connections need whose first endpoint does not do.
#[derive(Debug, Default)]
pub(super) struct Search {
    tried: Tried,
    ticket: Option<Ticket>,
    /// What this host had none of at the last attempt.
    lacked: Option<Errno>,
    /// The attempt under way has taken too long, and there is no better one.
    pub(super) overdue: bool,
}

impl Connection {
    /// Tries endpoints until one accepts, or it must be waited for whether it does. The first `early` bytes of the buffer are
    /// for the endpoint and not held yet.
    pub(super) fn look_for_endpoint(&mut self, key: Key, io: &mut Io, early: usize) -> Step {
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
        match self.way_to(&lease) {
            Way::Direct => self.try_directly(key, io, lease, early),
            Way::InClear => {
                self.route.tally.without_tunnel(WithoutTunnel::InClear);
                self.try_directly(key, io, lease, early)
            }
            Way::Tunnel { peer, .. } => {
                self.hold(io, std::mem::take(early));
                self.lease = Some(lease);
                Some(self.want_tunnel(key, peer, io))
            }
            Way::Forbidden => {
                self.hold(io, std::mem::take(early));
                self.lease = Some(lease);
                self.route.tally.without_tunnel(WithoutTunnel::Refused);
                self.attempt_failed(Errno::ACCESS);
                None
            }
        }
    }

    /// Tries one by a socket of its own.
    pub(super) fn try_directly(
        &mut self,
        key: Key,
        io: &mut Io,
        lease: Lease,
        early: &mut usize,
    ) -> Option<Step> {
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
    pub(super) fn ask_again(&mut self, key: Key, io: &mut Io) -> Step {
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

    pub(super) fn look_on(&mut self, key: Key, io: &mut Io) -> Step {
        if io.now >= self.began + self.route.config.connect_deadline {
            return Step::Dropped(Dropped::ConnectDeadline);
        }
        self.look_for_endpoint(key, io, 0)
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

    pub(super) fn leave_queue(&mut self, now: Instant) -> Step {
        let timeout = self.route.balancer.queue_timeout().unwrap_or_default();
        if now < self.active + timeout {
            return Step::Wait;
        }
        if let Some(ticket) = self.search.as_mut().and_then(|search| search.ticket.take()) {
            let _ = ticket.timed_out();
        }
        Step::Dropped(Dropped::QueueTimeout)
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
                let socket = unix::connect(path, &self.route.config.tcp)?;
                if self.shown_as == ClientAddress::Transparent {
                    self.route.tally.plain(Plain::UnixSocket);
                }
                Side::unix(socket)
            }
        };
        let written = match early {
            0 => 0,
            early => endpoint.write(&io.buffer[..early], false)?,
        };
        let interest = if written > 0 { Interest::Read } else { Interest::ReadAndWrite };
        endpoint.watch(&io.poller, Subject::Endpoint(key), interest).map_err(|_| Errno::NOMEM)?;
        self.endpoint = Some(Far::Plain(endpoint));
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
        let client = self.peer.ip().ok_or(Plain::UnixSocket);
        match client.and_then(|client| self.route.steering.borrow(client, endpoint)) {
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

    pub(super) fn attempt_failed(&mut self, error: Errno) {
        (self.endpoint, self.held, self.wanted) = (None, None, None);
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
    pub(super) fn attempt_timed_out(&mut self, key: Key, io: &mut Io) -> Step {
        let deadline = self.began + self.route.config.connect_deadline;
        if io.now >= deadline {
            self.attempt_failed(Errno::TIMEDOUT);
            return Step::Dropped(Dropped::ConnectDeadline);
        }
        if self.wanted.is_some()
            && let Some(step) = self.go_directly(key, io)
        {
            return step;
        }
        self.note_failure(Errno::TIMEDOUT);
        if let Ok(lease) = self.pick(io.now) {
            (self.endpoint, self.held, self.wanted) = (None, None, None);
            self.route.tally.retries.add(1);
            return self.try_endpoints(key, io, Ok(lease), 0);
        }
        self.search.get_or_insert_default().overdue = true;
        io.timers.set(deadline, key);
        Step::Wait
    }

    pub(super) fn attempt_ends(&self) -> Instant {
        let config = &self.route.config;
        let deadline = self.began + config.connect_deadline;
        if self.search.as_ref().is_some_and(|search| search.overdue) {
            return deadline;
        }
        let timeout = self.route.balancer.patience().connect.unwrap_or(config.connect_timeout);
        deadline.min(self.active + timeout)
    }
}
