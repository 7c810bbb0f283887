//! A data-plane thread: its sockets, its connections, and the loop that serves them.
//!
//! A connection stays with one thread: the one that accepted it, or another one that has fewer. The thread waits for sockets and for nothing else; the
//! control plane talks to it through its inbox.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::acceptor::{Accepted, Acceptor};
use super::arena::{Arena, Key};
use super::command::Command;
use super::connection::{Connection, Step};
use super::io::Io;
use super::limit::ConnectionLimit;
use super::listening::Listening;
use super::metrics::Metrics;
use super::peer::Peer;
use super::poll::{Events, Readiness, Subject};
use super::route::{ListenerId, OpenRoute};
use super::seat::{Seat, Spread};
use super::tunnel::{Offer, Tunnels};
use super::tunnel_table::TunnelTable;
use super::udp::{Limits, Udp};
use super::{Dropped, TcpOptions, socket};
use crate::balance::{Closing, Endpoint};

/// How a connection is ended.
enum Ending {
    /// By FIN, both directions, as its peers did.
    Finished,
    /// By FIN, from here.
    Closed(Dropped),
    /// By RST.
    Reset(Dropped),
}

/// A connection that has lasted so long gets what only lasting ones need.
const SETTLED: Duration = Duration::from_secs(10);

pub(super) struct Worker {
    /// Which of the threads this one is.
    index: usize,
    seats: Arc<[Arc<Seat>]>,
    spread: Spread,
    io: Io,
    listeners: Arena<Listening>,
    connections: Arena<Connection>,
    udp: Udp,
    tunnels: Tunnels,
    /// Connections that have more to do, in their order.
    again: VecDeque<Key>,
    /// Listening sockets that have clients waiting.
    arrivals: Vec<Key>,
    /// Those that have not lasted yet, oldest first.
    young: VecDeque<(Instant, Key)>,
    limit: Arc<ConnectionLimit>,
    metrics: Metrics,
    ended: bool,
}

/// What a thread has in common with the others.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub(super) seats: Arc<[Arc<Seat>]>,
    pub(super) limit: Arc<ConnectionLimit>,
    pub(super) udp: Limits,
    pub(super) tunnels: Arc<TunnelTable>,
    pub(super) tcp: TcpOptions,
    pub(super) metrics: Metrics,
}

impl Worker {
    pub(super) fn new(index: usize, surroundings: Surroundings) -> io::Result<Self> {
        let Surroundings { seats, limit, udp, tunnels, tcp, metrics } = surroundings;
        let inbox = &seats[index].inbox;
        let io = Io::new(Arc::clone(inbox))?;
        io.poller.add_level(&**inbox, Subject::Inbox)?;
        Ok(Self {
            index,
            spread: Spread::new(index, Arc::clone(&seats)),
            seats,
            io,
            listeners: Arena::default(),
            connections: Arena::default(),
            udp: Udp::new(udp, Arc::clone(&limit)),
            tunnels: Tunnels::new(tunnels, tcp, Arc::clone(&limit), metrics.tunnels.tally(index)),
            again: VecDeque::new(),
            arrivals: Vec::new(),
            young: VecDeque::new(),
            limit,
            metrics,
            ended: false,
        })
    }

    /// Serves until it is told to end.
    pub(super) fn run(mut self) {
        let (mut events, mut woken) = (Events::new(), Vec::new());
        while !self.ended {
            if let Err(error) = self.io.poller.wait(&mut events, self.wait_at_most()) {
                // Only a closed descriptor of our own can bring this about.
                tracing::error!(%error, "a data-plane thread cannot wait for its sockets and ends");
                break;
            }
            self.io.now = Instant::now();
            for (subject, readiness) in events.iter() {
                self.dispatch(subject, readiness);
            }
            for _ in 0..self.again.len() {
                if let Some(key) = self.again.pop_front() {
                    self.step(key, |connection, io| connection.relay(key, io));
                }
            }
            self.udp_step(Udp::finish);
            self.tunnel_step(Tunnels::turn);
            // Whoever is served already comes first: a new client waits no longer for it, and the slowest wait less.
            while let Some(listener) = self.arrivals.pop() {
                self.accept(listener);
            }
            self.give_tunnels();
            self.io.timers.expired(self.io.now, &mut woken);
            for key in woken.drain(..) {
                self.wake(key);
            }
            self.settle();
        }
        self.seats[self.index].inbox.close();
    }

    fn wait_at_most(&self) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let young = self.young.front().map(|(at, _)| (*at + SETTLED).saturating_duration_since(self.io.now));
        let timer = self.io.timers.next(self.io.now);
        [young, timer, self.udp.next(self.io.now), self.tunnels.next(self.io.now)].into_iter().flatten().min()
    }

    fn dispatch(&mut self, subject: Subject, readiness: Readiness) {
        match subject {
            Subject::Client(key) => {
                self.step(key, |connection, io| connection.client_ready(key, readiness, io));
            }
            Subject::Endpoint(key) => {
                self.step(key, |connection, io| connection.endpoint_ready(key, readiness, io));
            }
            Subject::UdpListener(key) => self.udp_step(|udp, io| {
                udp.listener_ready(key, io);
            }),
            Subject::UdpSession(key) => self.udp_step(|udp, io| udp.session_ready(key, io)),
            Subject::Tunnel(key) => {
                let user = self.tunnel_step(|tunnels, io| tunnels.ready(key, readiness, io)).flatten();
                if let Some(user) = user {
                    self.step(user, |connection, io| connection.tunnel_ready(user, readiness, io));
                }
            }
            Subject::Target(key) => {
                self.tunnel_step(|tunnels, io| tunnels.target_ready(key, readiness, io));
            }
            Subject::TunnelListener(key) => {
                self.tunnel_step(|tunnels, io| tunnels.accept(key, io));
            }
            Subject::Listener(key) => self.arrivals.push(key),
            Subject::Inbox => self.read_inbox(),
        }
    }

    fn wake(&mut self, key: Key) {
        if let Some(listening) = self.listeners.get_mut(key)
            && listening.is_paused(self.io.now)
        {
            listening.resume(&self.io.poller, key);
        }
        self.tunnel_step(|tunnels, io| tunnels.woken(key, io));
        self.step(key, |connection, io| connection.woken(key, io));
    }

    /// Lets a connection do something. A panic in it is its own end and nobody else's.
    fn step(&mut self, key: Key, step: impl FnOnce(&mut Connection, &mut Io) -> Step) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let io = &mut self.io;
        match catch_unwind(AssertUnwindSafe(|| step(connection, io))) {
            Ok(Step::Wait) => {}
            Ok(Step::Again) => self.again.push_back(key),
            Ok(Step::WantsTunnel) => self.ask_for_tunnel(key),
            Ok(Step::Finished) => self.end(key, Ending::Finished),
            Ok(Step::Closed(reason)) => self.end(key, Ending::Closed(reason)),
            Ok(Step::Dropped(reason)) => self.end(key, Ending::Reset(reason)),
            Err(_) => {
                tracing::error!("a connection's step panicked; the connection is reset");
                self.end(key, Ending::Reset(Dropped::Panic));
            }
        }
        // Before anything is heard of a tunnel that the connection has no longer.
        self.tunnels.collect(&mut self.io);
    }

    fn ask_for_tunnel(&mut self, key: Key) {
        // The one that it had just now may be the next.
        self.tunnels.collect(&mut self.io);
        let wanted = self.connections.get(key).and_then(Connection::wanted_tunnel).cloned();
        if let Some(peer) = wanted {
            self.tunnel_step(|tunnels, io| tunnels.ask(&peer, key, io));
        }
    }

    /// Connections that have asked for a tunnel are given one, or told why there is none.
    fn give_tunnels(&mut self) {
        while let Some(Offer { connection: key, peer, tunnel }) = self.tunnels.next_offer() {
            let wanted = self.connections.get(key).and_then(Connection::wanted_tunnel);
            if wanted == Some(&peer) {
                self.step(key, |connection, io| connection.tunnel_came(key, tunnel, io));
            } else if let Ok(tunnel) = tunnel {
                // It has found another way, or is gone.
                tunnel.give_back();
                self.tunnels.collect(&mut self.io);
            }
        }
    }

    /// Lets the tunnels do something. A panic there costs the streams that were under way.
    fn tunnel_step<R>(&mut self, step: impl FnOnce(&mut Tunnels, &mut Io) -> R) -> Option<R> {
        let (tunnels, io) = (&mut self.tunnels, &mut self.io);
        let done = catch_unwind(AssertUnwindSafe(|| step(tunnels, io)));
        if done.is_err() {
            tracing::error!("a tunnel's step panicked; what came by this thread's tunnels is broken off");
            self.tunnels.forget(&mut self.io);
        }
        done.ok()
    }

    /// Lets the UDP sockets do something. A panic there costs the datagrams that were under way.
    fn udp_step(&mut self, step: impl FnOnce(&mut Udp, &Io)) {
        let (udp, io) = (&mut self.udp, &self.io);
        if catch_unwind(AssertUnwindSafe(|| step(udp, io))).is_err() {
            tracing::error!("a UDP step panicked; the datagrams that were under way are lost");
            self.udp.forget();
        }
    }

    fn end(&mut self, key: Key, ending: Ending) {
        let Some(connection) = self.connections.remove(key) else { return };
        connection.route.tally.ended.add(1);
        self.limit.give_back();
        match ending {
            Ending::Finished => connection.finish(),
            Ending::Closed(reason) => connection.route.tally.dropped(reason),
            Ending::Reset(reason) => {
                connection.route.tally.dropped(reason);
                connection.reset();
            }
        }
    }

    fn settle(&mut self) {
        while let Some((began, key)) = self.young.front().copied()
            && self.io.now >= began + SETTLED
        {
            self.young.pop_front();
            if let Some(connection) = self.connections.get_mut(key) {
                connection.settle();
            }
        }
    }

    fn accept(&mut self, key: Key) {
        for _ in 0..Acceptor::BURST {
            let Some(listening) = self.listeners.get_mut(key) else { return };
            match listening.accept() {
                Accepted::Client(client, peer) => self.arrived(key, client, peer),
                Accepted::Nothing => return,
                Accepted::Failed(error) => {
                    self.metrics.accept_errors.inc();
                    let until = listening.pause(&self.io.poller, self.io.now, error);
                    self.io.timers.set(until, key);
                    return;
                }
            }
        }
    }

    /// A listener has a new client: this thread serves it, or another one does.
    fn arrived(&mut self, listener: Key, client: OwnedFd, peer: Peer) {
        let Some(listening) = self.listeners.get_mut(listener) else { return };
        let thread = self.spread.choose();
        let route = listening.route_on(thread);
        if thread == self.index {
            return self.begin(client, peer, route);
        }
        let offered = self.seats[thread].inbox.offer(Command::Serve(client, peer, route));
        if let Err((_, Command::Serve(client, peer, _))) = offered {
            // A thread that takes nothing more will have no fewer connections: those of the others serve on.
            let route = listening.route_on(self.index);
            self.begin(client, peer, route);
        }
    }

    fn begin(&mut self, client: OwnedFd, peer: Peer, route: OpenRoute) {
        route.tally.accepted.add(1);
        if !self.limit.take() {
            route.tally.ended.add(1);
            route.tally.dropped(Dropped::Limit);
            socket::reset(client);
            return;
        }
        let connection = Connection::new(client, peer, route, self.io.now);
        let Some(key) = self.connections.insert(connection) else {
            self.limit.give_back();
            return;
        };
        self.young.push_back((self.io.now, key));
        self.step(key, |connection, io| connection.begin(key, io));
    }

    fn read_inbox(&mut self) {
        for command in self.seats[self.index].inbox.take() {
            match command {
                Command::Open(socket, routes) => self.open(Listening::new(socket, routes, self.index)),
                Command::Serve(client, peer, route) => self.begin(client, peer, route),
                Command::OpenTunnels(socket, route) => {
                    self.tunnel_step(|tunnels, io| tunnels.open(socket, route, io));
                }
                Command::OpenUdp(socket, route) => self.udp_step(|udp, io| udp.open(socket, *route, io)),
                Command::StopAccepting(listener) => {
                    self.stop_accepting(listener);
                    self.tunnel_step(|tunnels, io| tunnels.let_go(listener, io));
                    self.udp_step(|udp, io| udp.stop_accepting(listener, io));
                }
                Command::HandOver(listener) => {
                    self.let_go(listener);
                    self.tunnel_step(|tunnels, io| tunnels.let_go(listener, io));
                    self.udp_step(|udp, io| udp.hand_over(listener, io));
                }
                Command::Reset(listener) => {
                    self.reset(|c| c.route.listener == listener);
                    self.tunnel_step(|tunnels, io| tunnels.reset(listener, io));
                    self.udp_step(|udp, _| udp.reset(listener));
                }
                Command::CutTunnels(node) => {
                    let cut = self.tunnel_step(|tunnels, io| tunnels.cut(&node, io)).unwrap_or_default();
                    for key in cut {
                        self.end(key, Ending::Reset(Dropped::NodeRevoked));
                    }
                    self.tunnels.collect(&mut self.io);
                }
                Command::Close(endpoint, Closing::All) => {
                    self.reset(|c| c.is_with(&endpoint));
                    self.udp_step(|udp, _| udp.leave(&endpoint));
                }
                Command::Close(endpoint, Closing::Idle) => self.endpoint_died(&endpoint),
                Command::Call(key) => self.step(key, |connection, io| connection.called(key, io)),
                Command::End => self.ended = true,
            }
        }
    }

    fn open(&mut self, listening: Listening) {
        let Some(key) = self.listeners.insert(listening) else { return };
        let Some(listening) = self.listeners.get_mut(key) else { return };
        if let Err(error) = self.io.poller.add_level(listening.socket(), Subject::Listener(key)) {
            tracing::error!(service = %listening.route.balancer.service(), %error, "a listener cannot be watched");
            self.listeners.remove(key);
        }
    }

    /// Takes what the kernel has completed already, so that closing the socket resets no client that believes itself
    /// connected, and then closes it. Those who keep coming meanwhile are not waited for: there may be no end to them.
    fn stop_accepting(&mut self, listener: ListenerId) {
        for key in self.listeners_of(listener) {
            let waiting = self.listeners.get_mut(key).map_or(0, |listening| listening.waiting());
            for _ in 0..waiting {
                let Some(listening) = self.listeners.get_mut(key) else { break };
                let Accepted::Client(client, peer) = listening.accept() else { break };
                self.arrived(key, client, peer);
            }
        }
        self.let_go(listener);
    }

    fn let_go(&mut self, listener: ListenerId) {
        for key in self.listeners_of(listener) {
            if let Some(listening) = self.listeners.remove(key) {
                // It may be another thread's or process's as well, whose copy keeps it open.
                let _ = self.io.poller.remove(listening.socket());
                listening.route.open.stop();
            }
        }
    }

    fn listeners_of(&self, listener: ListenerId) -> Vec<Key> {
        self.listeners.iter().filter(|(_, l)| l.route.listener == listener).map(|(key, _)| key).collect()
    }

    fn reset(&mut self, which: impl Fn(&Connection) -> bool) {
        for key in self.keys(which) {
            self.end(key, Ending::Reset(Dropped::Drain));
        }
    }

    fn endpoint_died(&mut self, endpoint: &Arc<Endpoint>) {
        for key in self.keys(|connection| connection.is_with(endpoint)) {
            self.step(key, |connection, io| connection.endpoint_died(key, io));
        }
    }

    fn keys(&self, which: impl Fn(&Connection) -> bool) -> Vec<Key> {
        self.connections.iter().filter(|(_, connection)| which(connection)).map(|(key, _)| key).collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.reset(|_| true);
    }
}
