//! UDP on a data-plane thread: sessions between clients of a listener and endpoints.
//!
//! A *session* is a client's address and port, a listener, and the address that the client asked. It has a socket of its own,
//! connected to its endpoint: that is where answers and ICMP errors come in, found by the kernel. Answers leave through the
//! listener, from the address that was asked. What comes is received by the batch, sorted by session and sent on by the batch;
//! answers of many sessions that came at one waking leave with one call. The number of sessions is bounded; when there are too
//! many, the longest idle one goes, those first whose client may be an invention. Nothing here waits or blocks, and no datagram
//! is held over: what the kernel does not take is lost, and counted.

mod batch;
mod listening;
mod session;
mod socket;
mod table;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use smallvec::SmallVec;

use super::arena::{Arena, Key};
use super::io::Io;
use super::limit::ConnectionLimit;
use super::poll::Subject;
use super::route::ListenerId;
use super::udp_metrics::Lost;
use super::udp_route::Route;
use crate::balance::Endpoint;
use crate::sys::datagrams::{BATCH, Datagrams, LARGEST};
use batch::Piece;
use listening::{Listening, canonical};
use session::{Session, Upstream};
use table::{Flow, Table};

pub(super) use socket::{adopt, listen, probe};

/// What is asked of an endpoint's socket first: most have one datagram.
const FEW: usize = 8;
/// Receives in a row from one socket before the others of the thread get their turn.
const BURST: usize = 4;
/// Batches that are still taken from a listener that is being closed.
const LAST_BATCHES: usize = 16;
/// A session through a listener that is being closed ends when nothing moved for so long: who asked was answered by then.
const QUIET: Duration = Duration::from_secs(5);
/// How often such sessions are looked for.
const LOOK: Duration = Duration::from_millis(500);
/// Sessions that are ended in a row before sockets get their turn.
const ENDS: usize = 256;

/// What the UDP sockets of one thread may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) sessions: usize,
    pub(super) idle_timeout: Duration,
}

/// The UDP sockets of a thread.
pub(super) struct Udp {
    listeners: Arena<Listening>,
    sessions: Table<Session>,
    limits: Limits,
    /// Shared with TCP: what one of the two has, the other has not.
    descriptors: Arc<ConnectionLimit>,
    buffers: Datagrams,
    /// Where the answers in the buffers go. Empty whenever a listener is read.
    answers: Vec<Flow>,
    /// Sessions that have more to be read.
    again: VecDeque<Key>,
    /// When to look for quiet sessions; while a listener is being closed.
    look: Option<Instant>,
}

impl Udp {
    pub(super) fn new(limits: Limits, descriptors: Arc<ConnectionLimit>) -> Self {
        Self {
            listeners: Arena::default(),
            sessions: Table::default(),
            limits,
            descriptors,
            buffers: Datagrams::new(LARGEST),
            answers: Vec::with_capacity(BATCH),
            again: VecDeque::new(),
            look: None,
        }
    }

    pub(super) fn open(&mut self, socket: Arc<OwnedFd>, route: Route, io: &Io) {
        let Some(key) = self.listeners.insert(Listening::new(socket, route)) else { return };
        let Some(listening) = self.listeners.get_mut(key) else { return };
        if let Err(error) = io.poller.add_level(listening.socket(), Subject::UdpListener(key)) {
            tracing::error!(service = %listening.route.balancer.service(), %error, "a UDP listener cannot be watched");
            self.listeners.remove(key);
        }
    }

    /// A listening socket has datagrams. Tells whether there may be more.
    pub(super) fn listener_ready(&mut self, key: Key, io: &Io) -> bool {
        self.flush();
        let Some(listening) = self.listeners.get_mut(key) else { return false };
        // The poller may have told of it in the same waking in which it was handed over.
        if listening.is_handed_over {
            return false;
        }
        let Ok(count) = self.buffers.receive(listening.socket(), BATCH) else { return false };
        let mut last: Option<(Flow, Key)> = None;
        let mut by_session: SmallVec<[(Key, usize); BATCH]> = SmallVec::new();
        for index in 0..count {
            let Some(flow) = self.flow(key, index) else { continue };
            let session = match last {
                Some((before, session)) if before == flow => Some(session),
                _ => self.sessions.find(&flow).or_else(|| self.begin(flow, index, io)),
            };
            if let Some(session) = session {
                last = Some((flow, session));
                by_session.push((session, index));
            }
        }
        // Stable: the datagrams of one session stay in their order.
        by_session.sort_by_key(|(session, _)| session.to_bits());
        for run in by_session.chunk_by(|a, b| a.0 == b.0) {
            self.forward(run, io);
        }
        self.buffers.clear();
        count == BATCH
    }

    /// Who talks to whom in the datagram at `index`.
    fn flow(&mut self, listener: Key, index: usize) -> Option<Flow> {
        let head = *self.buffers.head(index);
        let listening = self.listeners.get_mut(listener)?;
        listening.note_missed(head.missed);
        if head.truncated {
            listening.route.tally.lost(Lost::TooBig, 1);
            return None;
        }
        Some(Flow { listener, client: head.from?, asked: head.to })
    }

    /// A session for a new client, if there may be one; if not, the datagram at `index` is lost and counted.
    fn begin(&mut self, flow: Flow, index: usize, io: &Io) -> Option<Key> {
        let listening = self.listeners.get_mut(flow.listener)?;
        let route = Rc::clone(&listening.route);
        let result =
            if listening.is_leaving { Err(Lost::Drain) } else { self.try_begin(flow, &route, index, io) };
        result.map_err(|lost| route.tally.lost(lost, 1)).ok()
    }

    fn try_begin(&mut self, flow: Flow, route: &Rc<Route>, index: usize, io: &Io) -> Result<Key, Lost> {
        let mut tried = None;
        let client = canonical(flow.client);
        if !route.access.admit(Some(client.ip()), route.balancer.service()) {
            return Err(Lost::Denied);
        }
        let permit = route.balancer.admit(client.ip(), io.now).map_err(|refused| {
            tracing::debug!(service = %route.balancer.service(), %client, %refused, "a datagram is dropped");
            Lost::Refused
        })?;
        let upstream = match Upstream::open(route, client, &mut tried, io.now) {
            // Descriptors or ports have run out: those of the longest idle session will do.
            Err(Lost::Limit) if self.evict() => Upstream::open(route, client, &mut tried, io.now)?,
            upstream => upstream?,
        };
        // Not before there is an endpoint: nobody makes room for nothing.
        if self.sessions.len() >= self.limits.sessions {
            self.evict();
        }
        let has_place = self.descriptors.take() || (self.evict() && self.descriptors.take());
        if !has_place {
            return Err(Lost::Limit);
        }
        let session = Session::new(route, client, (upstream, permit), tried, io.now);
        let Some(key) = self.sessions.insert(flow, session, io.now) else {
            self.descriptors.give_back();
            return Err(Lost::Limit);
        };
        route.tally.begun.add(1);
        route.open.add();
        if let Some(listening) = self.listeners.get_mut(flow.listener) {
            listening.sessions += 1;
        }
        let Some((_, session)) = self.sessions.get_mut(key) else { return Err(Lost::Limit) };
        if let Err(lost) = session.watch(key, io) {
            self.end(key);
            return Err(lost);
        }
        let first = self.buffers.bytes(index);
        session.keep_first(&first[..self.buffers.head(index).segment.min(first.len())]);
        Ok(key)
    }

    /// Sends on what came from one client.
    fn forward(&mut self, run: &[(Key, usize)], io: &Io) {
        let Some(&(key, _)) = run.first() else { return };
        let Some((_, session)) = self.sessions.get_mut(key) else {
            // Evicted by a later one of the same batch. Its datagrams are as lost as it is, and counted with it.
            return;
        };
        let is_assured = session.has_answered();
        if !session.forward(key, io, &self.buffers, run.iter().map(|(_, index)| *index)) {
            self.end(key);
            return;
        }
        self.sessions.touch(key, io.now);
        if is_assured {
            // It heard an answer and goes on: nobody who only invents addresses can know when.
            self.sessions.assure(key);
        }
    }

    /// An endpoint's socket has datagrams, or an error.
    pub(super) fn session_ready(&mut self, key: Key, io: &Io) {
        let mut limit = FEW;
        for _ in 0..BURST {
            if self.buffers.room() < limit {
                self.flush();
            }
            let Some((flow, session)) = self.sessions.get_mut(key) else { return };
            let begin = self.buffers.len();
            match self.buffers.receive(session.socket(), limit) {
                Ok(count) => {
                    let flow = *flow;
                    let missed = (begin..begin + count).rev().find_map(|n| self.buffers.head(n).missed);
                    session.answered(missed, io.now);
                    self.answers.extend(std::iter::repeat_n(flow, count));
                    self.sessions.touch(key, io.now);
                    if count < limit {
                        return;
                    }
                    limit = BATCH;
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                // The way's MTU is smaller than thought. The kernel knows it now, and breaks what comes next into fragments.
                Err(Errno::MSGSIZE) => {
                    session.route.tally.lost(Lost::TooBig, 1);
                    socket::forget_errors(session.socket());
                }
                Err(error) => {
                    if !session.unreachable(key, io, error) {
                        self.end(key);
                    }
                    return;
                }
            }
        }
        self.again.push_back(key);
    }

    /// Reads on where there was more, and sends the answers that have come. After each waking.
    pub(super) fn finish(&mut self, io: &Io) {
        for _ in 0..self.again.len() {
            if let Some(key) = self.again.pop_front() {
                self.session_ready(key, io);
            }
        }
        self.flush();
        self.expire(io);
    }

    /// Sends the answers that are in the buffers.
    fn flush(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let mut by_listener: SmallVec<[(Key, usize); BATCH]> =
            self.answers.iter().enumerate().map(|(index, flow)| (flow.listener, index)).collect();
        by_listener.sort_by_key(|(listener, _)| listener.to_bits());
        for run in by_listener.chunk_by(|a, b| a.0 == b.0) {
            let Some(listening) = run.first().and_then(|(key, _)| self.listeners.get_mut(*key)) else {
                continue;
            };
            let truncated = run.iter().filter(|(_, index)| self.buffers.head(*index).truncated).count();
            listening.route.tally.lost(Lost::TooBig, truncated as u64);
            let pieces: SmallVec<[Piece<'_>; BATCH]> = run
                .iter()
                .filter(|(_, index)| !self.buffers.head(*index).truncated)
                .map(|&(_, index)| Piece {
                    to: Some(self.answers[index].client),
                    from: self.answers[index].asked,
                    bytes: self.buffers.bytes(index),
                    segment: self.buffers.head(index).segment,
                })
                .collect();
            listening.send(&pieces);
        }
        self.answers.clear();
        self.buffers.clear();
    }

    /// Nothing that was under way counts any more: after a panic.
    pub(super) fn forget(&mut self) {
        self.answers.clear();
        self.buffers.clear();
    }

    fn evict(&mut self) -> bool {
        let Some(key) = self.sessions.victim() else { return false };
        if let Some((_, session)) = self.sessions.get_mut(key) {
            session.route.tally.lost(Lost::Evicted, 1);
        }
        self.end(key);
        true
    }

    fn end(&mut self, key: Key) {
        let Some((flow, session)) = self.sessions.remove(key) else { return };
        self.descriptors.give_back();
        session.route.tally.ended.add(1);
        session.route.open.sub();
        if let Some(listening) = self.listeners.get_mut(flow.listener) {
            listening.sessions -= 1;
            if listening.is_leaving && listening.sessions == 0 {
                self.flush();
                self.listeners.remove(flow.listener);
            }
        }
    }

    /// Ends the sessions on which nothing moved for too long.
    fn expire(&mut self, io: &Io) {
        for _ in 0..ENDS {
            match self.sessions.oldest() {
                Some((key, active)) if active + self.limits.idle_timeout <= io.now => self.end(key),
                _ => break,
            }
        }
        if self.look.is_some_and(|look| look <= io.now) {
            let quiet = QUIET.min(self.limits.idle_timeout);
            let is_leaving = |key| self.listeners.get(key).is_some_and(|listening| listening.is_leaving);
            let ended: Vec<Key> = self
                .sessions
                .iter()
                .filter(|(_, flow, active)| *active + quiet <= io.now && is_leaving(flow.listener))
                .map(|(key, ..)| key)
                .collect();
            ended.into_iter().for_each(|key| self.end(key));
            let any_leaving = self.listeners.iter().any(|(_, listening)| listening.is_leaving);
            self.look = any_leaving.then_some(io.now + LOOK);
        }
    }

    /// How long nothing has to be done here; `None`: until a socket is ready.
    pub(super) fn next(&self, now: Instant) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let expires = self.sessions.oldest().map(|(_, active)| active + self.limits.idle_timeout);
        let at = expires.into_iter().chain(self.look).min()?;
        Some(at.saturating_duration_since(now))
    }

    /// Takes what the kernel has already, then no new clients. The socket stays for as long as it has sessions.
    pub(super) fn stop_accepting(&mut self, listener: ListenerId, io: &Io) {
        for key in self.of(listener) {
            for _ in 0..LAST_BATCHES {
                if !self.listener_ready(key, io) {
                    break;
                }
            }
            self.leave_listener(key, io);
        }
    }

    /// Takes nothing more from the socket, which another process reads from now on. What endpoints answer is still sent
    /// through it; what their clients say next begins a session there.
    pub(super) fn hand_over(&mut self, listener: ListenerId, io: &Io) {
        self.flush();
        for key in self.of(listener) {
            if let Some(listening) = self.listeners.get_mut(key) {
                // Closing it alone would not do: the other process's copy keeps it ready.
                let _ = io.poller.remove(listening.socket());
                listening.is_handed_over = true;
            }
            self.leave_listener(key, io);
        }
    }

    /// No new sessions; closed when there are none.
    fn leave_listener(&mut self, key: Key, io: &Io) {
        let Some(listening) = self.listeners.get_mut(key) else { return };
        listening.is_leaving = true;
        listening.route.open.stop();
        if listening.sessions == 0 {
            self.listeners.remove(key);
        } else {
            self.look.get_or_insert(io.now + LOOK);
        }
    }

    /// Ends a listener's sessions and closes it.
    pub(super) fn reset(&mut self, listener: ListenerId) {
        self.flush();
        for key in self.of(listener) {
            let ended: Vec<Key> = self
                .sessions
                .iter()
                .filter(|(_, flow, _)| flow.listener == key)
                .map(|(key, ..)| key)
                .collect();
            ended.into_iter().for_each(|key| self.end(key));
            self.listeners.remove(key);
        }
    }

    /// Ends the sessions with an endpoint: it may have them no longer. Their clients' next datagrams go to others.
    pub(super) fn leave(&mut self, endpoint: &Arc<Endpoint>) {
        let ended: Vec<Key> = self
            .sessions
            .values()
            .filter(|(_, session)| session.is_with(endpoint))
            .map(|(key, _)| key)
            .collect();
        ended.into_iter().for_each(|key| self.end(key));
    }

    fn of(&self, listener: ListenerId) -> Vec<Key> {
        self.listeners.iter().filter(|(_, l)| l.route.listener == listener).map(|(key, _)| key).collect()
    }
}

impl Drop for Udp {
    fn drop(&mut self) {
        let keys: Vec<Key> = self.sessions.iter().map(|(key, ..)| key).collect();
        keys.into_iter().for_each(|key| self.end(key));
    }
}

/// How many sessions there may be where nobody says: a quarter of the connections, so that UDP never keeps TCP from accepting, and
/// no more than three quarters of the ports, of which each session needs one that it has to itself (ip(7),
/// `ip_local_port_range`).
pub(super) fn max_sessions(connections: u32) -> u32 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let bounds: Vec<u32> = range.split_whitespace().filter_map(|bound| bound.parse().ok()).collect();
    let ports = match bounds[..] {
        [low, high] => high.saturating_sub(low) + 1,
        _ => 28_232,
    };
    (connections / 4).min(ports / 4 * 3).max(1)
}
