//! The receiver's half of a stream: from the tunnel that it came by to an endpoint of this node.

use std::time::Instant;

use nerve::model::Address;

use super::connection::{Fault, Tunnel};
use crate::proxy::arena::Key;
use crate::proxy::flow::Broken;
use crate::proxy::io::Io;
use crate::proxy::poll::{Interest, Readiness, Subject};
use crate::proxy::side::{Delay, Side};
use crate::proxy::tunnel_metrics::TunnelFailure;
use crate::proxy::tunnel_refusal::Refusal;
use crate::proxy::tunnel_route::OpenTunnelRoute;
use crate::proxy::{socket, unix};

/// A stream, its tunnel and its endpoint.
#[derive(Debug)]
pub(super) struct Delivery {
    tunnel: Box<Tunnel>,
    endpoint: Side,
    is_connected: bool,
    pub(super) route: OpenTunnelRoute,
    pub(super) began: Instant,
    /// What only lasting connections need was done.
    has_settled: bool,
}

/// What is to be done with a delivery after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    Again,
    /// Both directions have ended: the tunnel is free.
    Finished,
    /// The endpoint cannot be connected to: the tunnel is free.
    Refused(Refusal),
    /// The stream is broken off on both sides.
    Broken,
    /// The same, by what is wrong with the tunnel.
    Failed(TunnelFailure),
}

impl Delivery {
    /// Connects to the endpoint. The tunnel comes back if that cannot even be begun.
    pub(super) fn begin(
        tunnel: Box<Tunnel>,
        target: &Address,
        route: OpenTunnelRoute,
        now: Instant,
    ) -> Result<Self, (Box<Tunnel>, Refusal)> {
        let options = &route.config.tcp;
        let speaks_first = !tunnel.undelivered.is_empty();
        let made = match target {
            Address::Ip(address) => socket::connect(*address, None, speaks_first, options)
                .map(|socket| Side::new(socket, Delay::Untouched)),
            Address::Unix(path) => unix::connect(path, options).map(Side::unix),
        };
        match made {
            Ok(endpoint) => {
                Ok(Self { tunnel, endpoint, is_connected: false, route, began: now, has_settled: false })
            }
            Err(error) => Err((tunnel, Refusal::because(error))),
        }
    }

    /// The first step: the sender's first octets, which tell at once whether the endpoint is connected.
    pub(super) fn start(&mut self, key: Key, io: &mut Io) -> Step {
        self.endpoint.writable = true;
        if !self.tunnel.undelivered.is_empty() {
            match self.endpoint.write(self.tunnel.undelivered.rest(), self.tunnel.stream.heard_last) {
                Ok(0) => {}
                Ok(written) => {
                    self.is_connected = true;
                    self.tunnel.undelivered.take(written);
                }
                Err(error) => return Step::Refused(Refusal::because(error)),
            }
        }
        let interest = if self.is_connected { Interest::Read } else { Interest::ReadAndWrite };
        if self.endpoint.watch(&io.poller, Subject::Target(key), interest).is_err() {
            return Step::Refused(Refusal::Exhausted);
        }
        if !self.is_connected {
            self.endpoint.writable = false;
            io.timers.set(self.connect_ends(), key);
            return Step::Wait;
        }
        if self.tunnel.undelivered.is_empty()
            && self.tunnel.stream.heard_last
            && self.endpoint.finish_writing().is_err()
        {
            return Step::Broken;
        }
        self.connected(key, io)
    }

    fn connected(&mut self, key: Key, io: &mut Io) -> Step {
        self.is_connected = true;
        match self.tunnel.say_connected() {
            Ok(()) => self.relay(key, io),
            Err(fault) => failed(fault),
        }
    }

    fn connect_ends(&self) -> Instant {
        self.began + self.route.config.connect_timeout
    }

    /// The tunnel's socket has something to say.
    pub(super) fn tunnel_ready(&mut self, key: Key, readiness: Readiness, io: &mut Io) -> Step {
        self.tunnel.note(readiness);
        if self.is_connected {
            self.relay(key, io)
        } else if self.tunnel.has_failed() {
            Step::Broken
        } else {
            Step::Wait
        }
    }

    /// The endpoint's socket has something to say.
    pub(super) fn endpoint_ready(&mut self, key: Key, readiness: Readiness, io: &mut Io) -> Step {
        self.endpoint.note(readiness);
        match self.is_connected {
            true => self.relay(key, io),
            false if self.endpoint.failed => Step::Refused(Refusal::because(socket::error(&self.endpoint))),
            false if self.endpoint.writable => self.connected(key, io),
            false => Step::Wait,
        }
    }

    /// Its timer has run out, or another one that it had set.
    pub(super) fn woken(&self, now: Instant) -> Step {
        if !self.is_connected && now >= self.connect_ends() {
            return Step::Refused(Refusal::TimedOut);
        }
        Step::Wait
    }

    /// Moves what can be moved, both ways.
    pub(super) fn relay(&mut self, key: Key, io: &mut Io) -> Step {
        // Towards the sender first, so that its last octets leave before the endpoint's socket is closed.
        let up = self.tunnel.send(&mut self.endpoint, io);
        let down = match up {
            Err(Broken::Source) => return Step::Broken,
            _ => self.tunnel.receive(&mut self.endpoint, Subject::Target(key), io),
        };
        match (up, down) {
            _ if self.tunnel.is_faulty() => Step::Failed(TunnelFailure::Protocol),
            (Err(_), _) | (_, Err(_)) => Step::Broken,
            (Ok(_), Ok(_)) if self.tunnel.is_over() => Step::Finished,
            (Ok(_), Ok(_)) if self.tunnel.has_failed() || self.endpoint.failed => Step::Broken,
            (Ok(up), Ok(down)) if up.more || down.more => Step::Again,
            (Ok(_), Ok(_)) => Step::Wait,
        }
    }

    /// It has lasted: an endpoint that vanishes without a word is to be noticed.
    pub(super) fn settle(&mut self) {
        if !std::mem::replace(&mut self.has_settled, true) {
            self.endpoint.keep_alive(&self.route.config.tcp);
        }
    }

    /// The stream is over.
    pub(super) fn into_tunnel(self) -> Box<Tunnel> {
        self.tunnel
    }

    /// Breaks it off on both sides.
    pub(super) fn reset(self) {
        self.endpoint.reset();
        self.tunnel.reset();
    }
}

fn failed(fault: Fault) -> Step {
    match fault {
        Fault::Protocol => Step::Failed(TunnelFailure::Protocol),
        Fault::Closed | Fault::Broken(_) => Step::Broken,
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_fault_of_the_other_side_is_told_from_an_end() {
        assert_eq!(failed(Fault::Protocol), Step::Failed(TunnelFailure::Protocol));
        assert_eq!(failed(Fault::Broken(Errno::PIPE)), Step::Broken);
        assert_eq!(failed(Fault::Closed), Step::Broken);
    }
}
