//! The handshakes of a thread: which are begun, how they go on, and what becomes of those that end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nerve::model::NodeName;
use rustix::io::Errno;

use super::connection::Tunnel;
use super::handshake::{Done, Failed, Handshake};
use super::home::Place;
use super::tunnels::{Offer, Role, SWEEP, Slot, State, Tunnels};
use crate::proxy::arena::Key;
use crate::proxy::io::Io;
use crate::proxy::tunnel_metrics::{End, TunnelFailure};
use crate::proxy::tunnel_table::TunnelPeer;

/// How long a handshake may take, from the first packet on.
pub(super) const LONGEST: Duration = Duration::from_secs(5);

impl Tunnels {
    pub(super) fn connect_as_wanted(&mut self, peer: &Arc<TunnelPeer>, io: &mut Io) {
        for _ in 0..self.pool.wanted(peer) {
            self.pool.began(peer);
            if let Err(failed) = self.connect(peer, io) {
                self.could_not_connect(peer, &failed);
                return;
            }
        }
    }

    pub(super) fn connect(&mut self, peer: &Arc<TunnelPeer>, io: &mut Io) -> Result<(), Failed> {
        let none = || {
            let said = "this node has no certificate yet";
            Failed::new(TunnelFailure::NoCredentials, Errno::ACCESS, said)
        };
        let credentials = self.table.credentials().ok_or_else(none)?;
        let slot = Slot::new(Role::Sender(Arc::clone(peer)), io.now);
        let full = || Failed::new(TunnelFailure::Limit, Errno::NOMEM, "there are too many");
        let key = self.slots.insert(slot).ok_or_else(full)?;
        let deadline = io.now + LONGEST;
        match Handshake::connect(peer, credentials, key, deadline, io, &self.options) {
            Ok(handshake) => {
                self.begin(key, handshake, io);
                Ok(())
            }
            Err(failed) => {
                self.slots.remove(key);
                Err(failed)
            }
        }
    }

    pub(super) fn could_not_connect(&mut self, peer: &Arc<TunnelPeer>, failed: &Failed) {
        self.note_failure(End::Sender, failed.why, &peer.address, Some(&peer.node), &failed.said);
        for connection in self.pool.failed(peer) {
            let tunnel = Err(failed.errno);
            self.offers.push_back(Offer { connection, peer: Arc::clone(peer), tunnel });
        }
    }

    pub(super) fn begin(&mut self, key: Key, handshake: Handshake, io: &mut Io) {
        io.timers.set(handshake.deadline, key);
        if let Some(slot) = self.slots.get_mut(key) {
            slot.state = State::Handshake(Box::new(handshake));
        }
        self.due.push_back(key);
        self.sweep_at.get_or_insert(io.now + SWEEP);
    }

    pub(super) fn shake_hands(&mut self, key: Key, io: &mut Io) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let State::Handshake(handshake) = &mut slot.state else { return };
        match handshake.advance(io) {
            Ok(false) => return,
            Ok(true) => {}
            Err(failed) => return self.handshake_failed(key, &failed),
        }
        let State::Handshake(handshake) = std::mem::replace(&mut slot.state, State::Taken) else { return };
        let done = handshake.finish().and_then(|done| match &slot.role {
            Role::Sender(peer) if peer.node != done.node => {
                let said = format!("its certificate is that of node {}", done.node);
                Err(Failed::new(TunnelFailure::Identity, Errno::ACCESS, said))
            }
            _ => Ok(done),
        });
        match done {
            Ok(done) => self.established(key, done, io),
            Err(failed) => self.handshake_failed(key, &failed),
        }
    }

    pub(super) fn established(&mut self, key: Key, done: Done, io: &mut Io) {
        let Done { established, node: shown, resumed } = done;
        let Some(slot) = self.slots.get_mut(key) else { return };
        let tunnel = Box::new(Tunnel::new(Place::new(key, &self.home), established));
        tunnel.keep_alive(&self.options);
        slot.since = io.now;
        slot.state = State::Idle(tunnel);
        if let Role::Receiver { node, .. } = &mut slot.role {
            *node = Some(shown);
            self.handshakes_from -= 1;
        }
        let role = slot.role.clone();
        let ends = self.tally.of(role.end());
        if resumed {
            ends.resumed.add(1)
        } else {
            ends.full.add(1)
        }
        match role {
            Role::Sender(peer) => {
                self.pool.made(&peer);
                self.free(key, &peer, io);
                self.connect_as_wanted(&peer, io);
            }
            Role::Receiver { .. } => self.look(key, io),
        }
    }

    pub(super) fn handshake_failed(&mut self, key: Key, failed: &Failed) {
        let Some(slot) = self.slots.remove(key) else { return };
        match slot.role {
            Role::Sender(peer) => self.could_not_connect(&peer, failed),
            Role::Receiver { from, .. } => {
                self.handshakes_from -= 1;
                self.limit.give_back();
                self.note_failure(End::Receiver, failed.why, &from, None, &failed.said);
            }
        }
    }

    pub(super) fn note_failure(
        &mut self,
        end: End,
        why: TunnelFailure,
        address: &SocketAddr,
        node: Option<&NodeName>,
        said: &str,
    ) {
        self.tally.of(end).failed(why);
        let bit = 1 << why as u16;
        let node = node.map_or("?", NodeName::as_str);
        // Counted each time, and told once for each reason: whoever comes to the port could fill the log.
        if self.said[end as usize] & bit == 0 {
            self.said[end as usize] |= bit;
            tracing::warn!(reason = %why, %address, %node, error = said, "a tunnel cannot be had; further ones are counted in plexus_tunnel_failures_total");
        } else {
            tracing::debug!(reason = %why, %address, %node, error = said, "a tunnel cannot be had");
        }
    }
}
