//! Connecting through a tunnel: the connection asks its thread for one, begins a stream, and hears whether the endpoint is
//! connected. A refusal is what a failed connect is. What the client said first is kept until then, for another endpoint.

use std::sync::Arc;

use nerve::model::{Address, ClientAddress, ServiceName};
use rustix::io::Errno;

use super::far::Far;
use super::{Connection, Stage, Step};
use crate::balance::Lease;
use crate::proxy::arena::Key;
use crate::proxy::io::Io;
use crate::proxy::metrics::WithoutTunnel;
use crate::proxy::poll::Readiness;
use crate::proxy::tunnel::header::Header;
use crate::proxy::tunnel::{Answer, Fault, Tunnel};
use crate::proxy::tunnel_table::{TunnelPeer, Way};
use crate::proxy::{Dropped, Plain, Refusal};

impl Connection {
    /// How an endpoint is reached.
    pub(super) fn way_to(&self, lease: &Lease) -> Way {
        let endpoint = lease.endpoint();
        match endpoint.address() {
            Address::Ip(_) => {
                let of_service = self.route.balancer.settings().service.mtls;
                self.route.tunnels.way(endpoint.registered_by(), of_service)
            }
            // Unix sockets are this node's own.
            Address::Unix(_) => Way::Direct,
        }
    }

    /// Waits for a tunnel to the endpoint that was picked.
    pub(super) fn want_tunnel(&mut self, key: Key, peer: Arc<TunnelPeer>, io: &mut Io) -> Step {
        (self.endpoint, self.held) = (None, None);
        if self.shown_as == ClientAddress::Transparent {
            self.route.tally.plain(Plain::Elsewhere);
        }
        self.wanted = Some(peer);
        self.stage = Stage::Connecting;
        io.timers.set(self.attempt_ends(), key);
        Step::WantsTunnel
    }

    /// The tunnel that it waits for.
    pub(in crate::proxy) fn wanted_tunnel(&self) -> Option<&Arc<TunnelPeer>> {
        self.wanted.as_ref()
    }

    /// The thread has a tunnel for it, or none.
    pub(in crate::proxy) fn tunnel_came(
        &mut self,
        key: Key,
        offer: Result<Box<Tunnel>, Errno>,
        io: &mut Io,
    ) -> Step {
        self.wanted = None;
        match offer.map(|tunnel| self.begin_stream(tunnel, io)) {
            Ok(Ok(())) => self.hear_answer(key, io),
            // Nothing was said: the node has closed it before, and another tunnel may do.
            Ok(Err(_)) => self.hear_fault(key, Fault::Closed, io),
            Err(error) => self.has_no_tunnel(key, error, io),
        }
    }

    /// There is no tunnel to the endpoint's node: the endpoint itself may be reached, where it may be reached so.
    fn has_no_tunnel(&mut self, key: Key, error: Errno, io: &mut Io) -> Step {
        if let Some(step) = self.go_directly(key, io) {
            return step;
        }
        self.attempt_failed(error);
        self.look_on(key, io)
    }

    /// Tries the endpoint that a tunnel was wanted for without one; `None` if it may not be reached so, or cannot.
    pub(super) fn go_directly(&mut self, key: Key, io: &mut Io) -> Option<Step> {
        let way = self.way_to(self.lease.as_ref()?);
        if !matches!(way, Way::Direct | Way::InClear | Way::Tunnel { or_directly: true, .. }) {
            self.route.tally.without_tunnel(WithoutTunnel::Refused);
            return None;
        }
        self.route.tally.without_tunnel(WithoutTunnel::InClear);
        (self.endpoint, self.held, self.wanted) = (None, None, None);
        // An attempt of its own: the endpoint has not failed to answer yet.
        self.active = io.now;
        let lease = self.lease.take()?;
        self.try_directly(key, io, lease, &mut 0)
    }

    fn hear_fault(&mut self, key: Key, fault: Fault, io: &mut Io) -> Step {
        let again = self.lease.as_ref().map(|lease| self.way_to(lease));
        match again {
            // It was about to go, and has not looked at this: nothing has failed.
            Some(Way::Tunnel { peer, .. }) if fault == Fault::Closed => self.want_tunnel(key, peer, io),
            _ => {
                self.attempt_failed(fault.errno());
                self.look_on(key, io)
            }
        }
    }

    fn begin_stream(&mut self, mut tunnel: Box<Tunnel>, io: &mut Io) -> Result<(), Fault> {
        let target = self.lease.as_ref().and_then(|lease| lease.endpoint().address().ip());
        let target = target.ok_or(Fault::Broken(Errno::INVAL))?;
        let (service, client) = (self.route.balancer.service(), self.peer.ip());
        let client_service = self.route.access.identify(client.map(|client| client.ip()), service);
        let client_service = client_service.as_ref().map(ServiceName::as_str);
        let header = Header { target, service: service.as_str(), client, client_service };
        tunnel.open(&header, self.to_endpoint.held(), io)?;
        self.endpoint = Some(Far::Tunnel(tunnel));
        Ok(())
    }

    /// The tunnel's socket has something to say.
    pub(in crate::proxy) fn tunnel_ready(&mut self, key: Key, readiness: Readiness, io: &mut Io) -> Step {
        let Some(Far::Tunnel(tunnel)) = &mut self.endpoint else { return Step::Wait };
        tunnel.note(readiness);
        match self.stage {
            Stage::Relaying => self.relay(key, io),
            Stage::Connecting => self.hear_answer(key, io),
            Stage::Header | Stage::Queued | Stage::BacklogFull => Step::Wait,
        }
    }

    fn hear_answer(&mut self, key: Key, io: &mut Io) -> Step {
        let Some(Far::Tunnel(tunnel)) = &mut self.endpoint else { return Step::Wait };
        match tunnel.answer(io) {
            Ok(None) => Step::Wait,
            Ok(Some(Answer::Connected)) => {
                // They are there, and are of no use to another endpoint any more.
                let early = self.to_endpoint.release();
                self.awaits_answer = early > 0;
                self.route.tally.to_endpoint.add(early as u64);
                self.connected(key, io)
            }
            Ok(Some(Answer::Refused(reason))) => {
                if let Some(Far::Tunnel(mut tunnel)) = self.endpoint.take()
                    && tunnel.abort().is_ok()
                {
                    tunnel.give_back();
                }
                // No fault of the endpoint's, and another one would say the same.
                if reason == Refusal::Denied {
                    return Step::Dropped(Dropped::Denied);
                }
                self.attempt_failed(reason.errno());
                self.look_on(key, io)
            }
            Err(fault) => self.hear_fault(key, fault, io),
        }
    }
}
