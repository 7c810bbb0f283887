//! The tunnels of one thread, to other nodes and from them.
//!
//! Each has a slot under its key, whether its handshake is under way, it waits, or a stream has it. Whoever has it says so by
//! `home` when it is over. Handshakes are done a few at a time, so that a burst of them stalls nobody who is served.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nerve::model::NodeName;
use rustix::io::Errno;

use super::connection::{Fault, Tunnel};
use super::delivery::{Delivery, Step};
use super::handshake::{Failed, Handshake};
use super::home::Home;
use super::pool::{Asked, Next, Pool};
use crate::proxy::TcpOptions;
use crate::proxy::acceptor::Acceptor;
use crate::proxy::arena::{Arena, Key};
use crate::proxy::io::Io;
use crate::proxy::limit::ConnectionLimit;
use crate::proxy::poll::{Readiness, Subject};
use crate::proxy::route::ListenerId;
use crate::proxy::tunnel_metrics::{End, Tally, TunnelFailure};
use crate::proxy::tunnel_refusal::Refusal;
use crate::proxy::tunnel_route::{OpenTunnelRoute, TunnelCall, TunnelRoute};
use crate::proxy::tunnel_table::{TunnelPeer, TunnelTable};

/// Handshakes that go on before others get their turn: each may cost a signature made and one verified.
const BURST: usize = 4;
/// A tunnel from another node on which no stream was for so long is closed. That node closes sooner what it does not need.
const IDLE: Duration = Duration::from_secs(900);
/// How often it is looked for what has lasted and what is not needed.
pub(super) const SWEEP: Duration = Duration::from_secs(5);
/// What the tunnel port is called in the log.
pub(super) const PORT: &str = "tunnel";

/// A tunnel's place.
pub(super) struct Slot {
    pub(super) state: State,
    pub(super) role: Role,
    /// When it became what it is.
    pub(super) since: Instant,
    /// Its socket had something to say when nobody was there to hear it.
    has_missed: bool,
}

impl Slot {
    pub(super) fn new(role: Role, now: Instant) -> Self {
        Self { state: State::Taken, role, since: now, has_missed: false }
    }
}

pub(super) enum State {
    Handshake(Box<Handshake>),
    Idle(Box<Tunnel>),
    /// A connection has it.
    Connection(Key),
    /// A delivery has it.
    Delivery(Key),
    /// Somebody is about to have it.
    Taken,
}

#[derive(Clone)]
pub(super) enum Role {
    Sender(Arc<TunnelPeer>),
    Receiver { route: Arc<TunnelRoute>, from: SocketAddr, node: Option<NodeName>, is_leaving: bool },
}

impl Role {
    pub(super) fn end(&self) -> End {
        match self {
            Self::Sender(_) => End::Sender,
            Self::Receiver { .. } => End::Receiver,
        }
    }

    /// Who is at the other end, as far as that is known.
    pub(super) fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Sender(peer) => Some(&peer.node),
            Self::Receiver { node, .. } => node.as_ref(),
        }
    }

    pub(super) fn is_of(&self, listener: ListenerId) -> bool {
        matches!(self, Self::Receiver { route, .. } if route.listener == listener)
    }
}

/// A tunnel port on this thread.
pub(super) struct Entrance {
    pub(super) acceptor: Acceptor,
    pub(super) route: Arc<TunnelRoute>,
}

/// What a connection that has asked for a tunnel is given.
pub(in crate::proxy) struct Offer {
    pub(in crate::proxy) connection: Key,
    /// For where it has asked.
    pub(in crate::proxy) peer: Arc<TunnelPeer>,
    /// The tunnel, or why there is none.
    pub(in crate::proxy) tunnel: Result<Box<Tunnel>, Errno>,
}

/// All tunnels of a thread.
pub(in crate::proxy) struct Tunnels {
    pub(super) table: Arc<TunnelTable>,
    pub(super) options: TcpOptions,
    pub(super) limit: Arc<ConnectionLimit>,
    pub(super) tally: Arc<Tally>,
    pub(super) home: Rc<Home<Box<Tunnel>>>,
    pub(super) slots: Arena<Slot>,
    pub(super) pool: Pool,
    pub(super) entrances: Arena<Entrance>,
    pub(super) deliveries: Arena<Delivery>,
    /// Handshakes that may go on, in their order.
    pub(super) due: VecDeque<Key>,
    /// Deliveries that have more to do, in their order.
    pub(super) again: VecDeque<Key>,
    /// What connections that have asked are given.
    pub(super) offers: VecDeque<Offer>,
    pub(super) handshakes_from: usize,
    pub(super) sweep_at: Option<Instant>,
    /// Reasons that are in the log already, by end.
    pub(super) said: [u16; 2],
}

impl Tunnels {
    pub(in crate::proxy) fn new(
        table: Arc<TunnelTable>,
        options: TcpOptions,
        limit: Arc<ConnectionLimit>,
        tally: Arc<Tally>,
    ) -> Self {
        Self {
            table,
            options,
            limit,
            tally,
            home: Rc::default(),
            slots: Arena::default(),
            pool: Pool::default(),
            entrances: Arena::default(),
            deliveries: Arena::default(),
            due: VecDeque::new(),
            again: VecDeque::new(),
            offers: VecDeque::new(),
            handshakes_from: 0,
            sweep_at: None,
            said: [0; 2],
        }
    }

    /// How long nothing is to be done; `None`: until somebody says something.
    pub(in crate::proxy) fn next(&self, now: Instant) -> Option<Duration> {
        let is_done = self.due.is_empty() && self.again.is_empty() && self.offers.is_empty();
        if !is_done || !self.home.is_quiet() {
            return Some(Duration::ZERO);
        }
        self.sweep_at.map(|at| at.saturating_duration_since(now))
    }

    // What connections ask for.

    /// A connection wants a tunnel to a node. It is told by [`Tunnels::next_offer`].
    pub(in crate::proxy) fn ask(&mut self, peer: &Arc<TunnelPeer>, connection: Key, io: &mut Io) {
        match self.pool.ask(peer, connection, io.now) {
            Asked::Warm(tunnel) => self.lend(tunnel, peer, connection, io.now),
            Asked::Waits => {}
            Asked::Silent => {
                let tunnel = Err(Errno::TIMEDOUT);
                return self.offers.push_back(Offer { connection, peer: Arc::clone(peer), tunnel });
            }
        }
        self.connect_as_wanted(peer, io);
    }

    /// A connection that has asked, and what it is given.
    pub(in crate::proxy) fn next_offer(&mut self) -> Option<Offer> {
        self.offers.pop_front()
    }

    pub(super) fn lend(&mut self, tunnel: Key, peer: &Arc<TunnelPeer>, connection: Key, now: Instant) {
        let Some(slot) = self.slots.get_mut(tunnel) else { return };
        slot.since = now;
        let before = std::mem::replace(&mut slot.state, State::Connection(connection));
        if let State::Idle(tunnel) = before {
            self.tally.of(End::Sender).streams.add(1);
            self.offers.push_back(Offer { connection, peer: Arc::clone(peer), tunnel: Ok(tunnel) });
        }
    }

    // What sockets say.

    /// The socket of a tunnel has something to say. Tells which connection has it, if one has.
    pub(in crate::proxy) fn ready(&mut self, key: Key, readiness: Readiness, io: &mut Io) -> Option<Key> {
        let slot = self.slots.get_mut(key)?;
        match &mut slot.state {
            State::Connection(connection) => return Some(*connection),
            State::Delivery(delivery) if self.deliveries.get(*delivery).is_some() => {
                let delivery = *delivery;
                self.step(delivery, io, |stream, io| stream.tunnel_ready(delivery, readiness, io));
            }
            State::Handshake(handshake) => {
                if handshake.note(readiness) {
                    self.due.push_back(key);
                }
            }
            State::Idle(tunnel) => {
                tunnel.note(readiness);
                self.look(key, io);
            }
            // It was given back and not taken back yet.
            State::Taken | State::Delivery(_) => slot.has_missed = true,
        }
        None
    }

    /// The endpoint's socket of a delivery has something to say.
    pub(in crate::proxy) fn target_ready(&mut self, key: Key, readiness: Readiness, io: &mut Io) {
        self.step(key, io, |stream, io| stream.endpoint_ready(key, readiness, io));
    }

    /// A timer has run out, maybe of something here.
    pub(in crate::proxy) fn woken(&mut self, key: Key, io: &mut Io) {
        if let Some(entrance) = self.entrances.get_mut(key)
            && entrance.acceptor.is_paused(io.now)
        {
            entrance.acceptor.resume(&io.poller, Subject::TunnelListener(key), PORT);
        }
        if let Some(slot) = self.slots.get(key)
            && let State::Handshake(handshake) = &slot.state
            && io.now >= handshake.deadline
        {
            let said = "it was not finished in time";
            if let Role::Sender(peer) = &slot.role {
                self.pool.silent(peer, io.now);
            }
            self.handshake_failed(key, &Failed::new(TunnelFailure::Timeout, Errno::TIMEDOUT, said));
        }
        self.step(key, io, |stream, io| stream.woken(io.now));
    }

    /// What is to be done at the end of a turn: handshakes, streams that have more to move, and what was given back.
    pub(in crate::proxy) fn turn(&mut self, io: &mut Io) {
        for _ in 0..self.again.len() {
            if let Some(key) = self.again.pop_front() {
                self.step(key, io, |stream, io| stream.relay(key, io));
            }
        }
        for _ in 0..BURST.min(self.due.len()) {
            if let Some(key) = self.due.pop_front() {
                self.shake_hands(key, io);
            }
        }
        self.collect(io);
        if self.sweep_at.is_some_and(|at| io.now >= at) {
            self.sweep(io);
        }
    }

    // Tunnels that nobody has.

    /// A tunnel of ours to another node is free.
    pub(super) fn free(&mut self, key: Key, peer: &Arc<TunnelPeer>, io: &mut Io) {
        match self.pool.free(peer, key, io.now) {
            Next::Lend(connection) => self.lend(key, peer, connection, io.now),
            Next::Keep => self.look(key, io),
            Next::KeepAndClose(oldest) => {
                self.look(key, io);
                self.close(oldest);
            }
        }
    }

    /// Something may have come on a tunnel that nobody has: its end, or a stream.
    pub(super) fn look(&mut self, key: Key, io: &mut Io) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let State::Idle(tunnel) = &mut slot.state else { return };
        let (route, node) = match &slot.role {
            Role::Sender(_) => {
                let failed = tunnel.has_failed();
                return match tunnel.look(io) {
                    Ok(()) if !failed => {}
                    Ok(()) => self.lost(key, Fault::Broken(Errno::CONNRESET)),
                    Err(fault) => self.lost(key, fault),
                };
            }
            Role::Receiver { route, node: Some(node), .. } => (Arc::clone(route), node.clone()),
            Role::Receiver { .. } => return,
        };
        let decided = tunnel.next_stream(io, |header| {
            let header = header?;
            let call = TunnelCall {
                node: &node,
                service: header.service,
                target: header.target,
                client: header.client,
                client_service: header.client_service,
            };
            route.targets.target(&call)
        });
        match decided {
            Ok(None) => {}
            Err(fault) => self.lost(key, fault),
            Ok(Some(target)) => {
                let State::Idle(tunnel) = std::mem::replace(&mut slot.state, State::Taken) else { return };
                slot.since = io.now;
                self.tally.of(End::Receiver).streams.add(1);
                match target {
                    Ok(target) => {
                        let begun = Delivery::begin(tunnel, &target, OpenTunnelRoute::new(&route), io.now);
                        self.deliver(key, begun, io);
                    }
                    Err(reason) => self.refuse(tunnel, reason),
                }
            }
        }
    }

    /// A tunnel that nobody has is no more.
    pub(super) fn lost(&mut self, key: Key, fault: Fault) {
        if let Some(slot) = self.slots.get(key)
            && fault == Fault::Protocol
        {
            let (end, peer) = (slot.role.end(), slot.role.clone());
            let (address, node) = match &peer {
                Role::Sender(peer) => (peer.address, Some(&peer.node)),
                Role::Receiver { from, node, .. } => (*from, node.as_ref()),
            };
            self.note_failure(
                end,
                TunnelFailure::Protocol,
                &address,
                node,
                "what it sent is nothing that may come",
            );
        }
        self.remove(key);
    }

    /// Tells the peer, and forgets it.
    pub(super) fn close(&mut self, key: Key) {
        if let Some(Slot { state: State::Idle(tunnel), .. }) = self.remove(key) {
            tunnel.close();
        }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Slot> {
        let slot = self.slots.remove(key)?;
        let ends = self.tally.of(slot.role.end());
        match (&slot.role, &slot.state) {
            (Role::Sender(peer), State::Handshake(_)) => {
                self.pool.failed(peer);
                return Some(slot);
            }
            (Role::Sender(peer), State::Idle(_)) => self.pool.gone(peer, key),
            (Role::Sender(peer), _) => self.pool.ended(peer),
            (Role::Receiver { .. }, State::Handshake(_)) => {
                self.handshakes_from -= 1;
                self.limit.give_back();
                return Some(slot);
            }
            (Role::Receiver { .. }, _) => self.limit.give_back(),
        }
        ends.closed.add(1);
        Some(slot)
    }

    /// Takes back what was given back, and forgets what is no more. What that brings about is for the next time: a peer that
    /// opens one stream behind the other which all end at once must not have the thread for itself.
    pub(in crate::proxy) fn collect(&mut self, io: &mut Io) {
        if self.home.is_quiet() {
            return;
        }
        for key in self.home.vacated() {
            self.remove(key);
        }
        for tunnel in self.home.returned() {
            self.take_back(tunnel, io);
        }
    }

    pub(super) fn take_back(&mut self, mut tunnel: Box<Tunnel>, io: &mut Io) {
        let key = tunnel.key();
        let Some(slot) = self.slots.get_mut(key) else { return };
        if std::mem::take(&mut slot.has_missed) {
            (tunnel.socket.readable, tunnel.socket.writable) = (true, true);
        }
        slot.since = io.now;
        slot.state = State::Idle(tunnel);
        match &slot.role {
            Role::Sender(peer) => {
                let peer = Arc::clone(peer);
                self.pool.ended(&peer);
                self.free(key, &peer, io);
            }
            Role::Receiver { is_leaving: true, .. } => self.close(key),
            Role::Receiver { .. } => self.look(key, io),
        }
    }

    pub(super) fn sweep(&mut self, io: &mut Io) {
        let now = io.now;
        for key in self.pool.expired(now) {
            self.close(key);
        }
        let is_old = |slot: &Slot| {
            matches!((&slot.role, &slot.state), (Role::Receiver { .. }, State::Idle(_)))
                && now >= slot.since + IDLE
        };
        for key in self.keys(is_old) {
            self.close(key);
        }
        let lasting: Vec<_> = self
            .deliveries
            .iter()
            .filter(|(_, stream)| now >= stream.began + SWEEP)
            .map(|(key, _)| key)
            .collect();
        for key in lasting {
            if let Some(stream) = self.deliveries.get_mut(key) {
                stream.settle();
            }
        }
        let is_needed = self.slots.iter().next().is_some() || !self.pool.is_empty();
        self.sweep_at = is_needed.then_some(now + SWEEP);
    }

    pub(super) fn keys(&self, which: impl Fn(&Slot) -> bool) -> Vec<Key> {
        self.slots.iter().filter(|(_, slot)| which(slot)).map(|(key, _)| key).collect()
    }

    // The receiver's streams.

    pub(super) fn deliver(&mut self, key: Key, begun: Result<Delivery, (Box<Tunnel>, Refusal)>, io: &mut Io) {
        match begun {
            Ok(stream) => {
                let Some(delivery) = self.deliveries.insert(stream) else { return };
                if let Some(slot) = self.slots.get_mut(key) {
                    slot.state = State::Delivery(delivery);
                }
                self.step(delivery, io, |stream, io| stream.start(delivery, io));
            }
            Err((tunnel, reason)) => self.refuse(tunnel, reason),
        }
    }

    pub(super) fn refuse(&mut self, mut tunnel: Box<Tunnel>, reason: Refusal) {
        self.tally.refused(reason);
        // Where that cannot be said, the tunnel is no more, which says as much.
        if tunnel.refuse(reason).is_ok() {
            tunnel.give_back();
        }
    }

    pub(super) fn step(&mut self, key: Key, io: &mut Io, step: impl FnOnce(&mut Delivery, &mut Io) -> Step) {
        let Some(stream) = self.deliveries.get_mut(key) else { return };
        match step(stream, io) {
            Step::Wait => {}
            Step::Again => self.again.push_back(key),
            Step::Finished => self.end(key, |stream, _| stream.into_tunnel().give_back()),
            Step::Refused(reason) => {
                self.end(key, |stream, tunnels| tunnels.refuse(stream.into_tunnel(), reason))
            }
            Step::Broken => self.end(key, |stream, _| stream.reset()),
            Step::Failed(why) => self.end(key, |stream, tunnels| {
                tunnels.tally.of(End::Receiver).failed(why);
                stream.reset();
            }),
        }
    }

    pub(super) fn end(&mut self, key: Key, how: impl FnOnce(Delivery, &mut Self)) {
        if let Some(stream) = self.deliveries.remove(key) {
            how(stream, self);
        }
    }
}
