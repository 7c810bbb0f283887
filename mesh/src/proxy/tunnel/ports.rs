//! Tunnel ports on a thread: who comes there, and what happens when a port is closed.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nerve::model::NodeName;
use rustix::io::Errno;

use super::delivery::Delivery;
use super::handshake::{Failed, Handshake};
use super::handshakes::LONGEST;
use super::tunnels::{Entrance, PORT, Role, Slot, State, Tunnels};
use crate::proxy::acceptor::{Accepted, Acceptor};
use crate::proxy::arena::Key;
use crate::proxy::io::Io;
use crate::proxy::peer::Peer;
use crate::proxy::poll::Subject;
use crate::proxy::route::ListenerId;
use crate::proxy::side::{Delay, Side};
use crate::proxy::socket;
use crate::proxy::tunnel_metrics::{End, TunnelFailure};
use crate::proxy::tunnel_route::TunnelRoute;

/// Handshakes that other nodes, or whoever comes to the port, may have under way at a time.
const HANDSHAKES: usize = 256;

impl Tunnels {
    pub(in crate::proxy) fn open(&mut self, socket: Arc<OwnedFd>, route: Arc<TunnelRoute>, io: &Io) {
        let entrance = Entrance { acceptor: Acceptor::new(socket, false), route };
        let Some(key) = self.entrances.insert(entrance) else { return };
        let Some(entrance) = self.entrances.get(key) else { return };
        if let Err(error) = io.poller.add_level(entrance.acceptor.socket(), Subject::TunnelListener(key)) {
            tracing::error!(%error, "the tunnel port cannot be watched");
            self.entrances.remove(key);
        }
    }

    /// Takes in who has come.
    pub(in crate::proxy) fn accept(&mut self, key: Key, io: &mut Io) {
        for _ in 0..Acceptor::BURST {
            let Some(entrance) = self.entrances.get_mut(key) else { return };
            match entrance.acceptor.accept() {
                Accepted::Client(client, Peer::Ip(from)) => {
                    let route = Arc::clone(&entrance.route);
                    if let Err(failed) = self.arrived(client, from, route, io) {
                        self.note_failure(End::Receiver, failed.why, &from, None, &failed.said);
                    }
                }
                Accepted::Client(_, Peer::Unix) => {}
                Accepted::Nothing => return,
                Accepted::Failed(error) => {
                    let until = entrance.acceptor.pause(&io.poller, io.now, error, PORT);
                    io.timers.set(until, key);
                    return;
                }
            }
        }
    }

    pub(super) fn arrived(
        &mut self,
        client: OwnedFd,
        from: SocketAddr,
        route: Arc<TunnelRoute>,
        io: &mut Io,
    ) -> Result<(), Failed> {
        let full = |said| Failed::new(TunnelFailure::Limit, Errno::NOMEM, said);
        if self.handshakes_from >= HANDSHAKES {
            socket::reset(client);
            return Err(full("too many handshakes are under way"));
        }
        let Some(credentials) = self.table.credentials() else {
            return Err(Failed::new(
                TunnelFailure::NoCredentials,
                Errno::ACCESS,
                "this node has no certificate yet",
            ));
        };
        if !self.limit.take() {
            socket::reset(client);
            return Err(full("too many connections are open"));
        }
        let role = Role::Receiver { route, from, node: None, is_leaving: false };
        let slot = Slot::new(role, io.now);
        let Some(key) = self.slots.insert(slot) else {
            self.limit.give_back();
            return Err(full("too many connections are open"));
        };
        self.handshakes_from += 1;
        let mut side = Side::new(client, Delay::Off);
        side.writable = true;
        match Handshake::accept(side, credentials, key, io.now + LONGEST, io) {
            Ok(handshake) => self.begin(key, handshake, io),
            Err(failed) => self.handshake_failed(key, &failed),
        }
        Ok(())
    }

    /// Takes no new tunnels of this port, closes those that nobody has, and others when their stream is over.
    pub(in crate::proxy) fn let_go(&mut self, listener: ListenerId, io: &Io) {
        let entrances: Vec<_> =
            self.entrances.iter().filter(|(_, e)| e.route.listener == listener).map(|(key, _)| key).collect();
        for key in entrances {
            if let Some(entrance) = self.entrances.remove(key) {
                // It may be another thread's or process's as well, whose copy keeps it open.
                let _ = io.poller.remove(entrance.acceptor.socket());
                entrance.route.open.stop();
            }
        }
        for key in self.keys(|slot| slot.role.is_of(listener)) {
            let Some(slot) = self.slots.get_mut(key) else { continue };
            if let Role::Receiver { is_leaving, .. } = &mut slot.role {
                *is_leaving = true;
            }
            match slot.state {
                State::Idle(_) => self.close(key),
                State::Handshake(_) => drop(self.remove(key)),
                State::Connection(_) | State::Delivery(_) | State::Taken => {}
            }
        }
    }

    /// Breaks off what streams came by this port.
    pub(in crate::proxy) fn reset(&mut self, listener: ListenerId, io: &mut Io) {
        self.reset_all(|stream| stream.route.listener == listener);
        self.collect(io);
    }

    /// Breaks off what streams came from a node, and forgets every tunnel with it. Tells which connections have one.
    pub(in crate::proxy) fn cut(&mut self, node: &NodeName, io: &mut Io) -> Vec<Key> {
        let mut connections = Vec::new();
        for key in self.keys(|slot| slot.role.node() == Some(node)) {
            let Some(slot) = self.slots.get(key) else { continue };
            self.tally.of(slot.role.end()).failed(TunnelFailure::Revoked);
            match slot.state {
                State::Idle(_) | State::Handshake(_) => drop(self.remove(key)),
                State::Delivery(delivery) => self.end(delivery, |stream, _| stream.reset()),
                State::Connection(connection) => connections.push(connection),
                State::Taken => {}
            }
        }
        self.collect(io);
        connections
    }

    pub(super) fn reset_all(&mut self, which: impl Fn(&Delivery) -> bool) {
        let keys: Vec<_> =
            self.deliveries.iter().filter(|(_, stream)| which(stream)).map(|(key, _)| key).collect();
        for key in keys {
            self.end(key, |stream, _| stream.reset());
        }
    }

    /// A step of ours panicked: what it was about is not known, so whatever was under way ends.
    pub(in crate::proxy) fn forget(&mut self, io: &mut Io) {
        self.tally.of(End::Receiver).failed(TunnelFailure::Panic);
        self.reset_all(|_| true);
        self.due.clear();
        for key in self.keys(|slot| matches!(slot.state, State::Handshake(_) | State::Taken)) {
            self.remove(key);
        }
        self.collect(io);
    }
}
