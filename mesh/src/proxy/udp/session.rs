//! One session: a client, the endpoint that was picked for it, and the connected socket between the two.
//!
//! An endpoint is picked when the session begins, and again when it turns out to be gone: it left the catalog or fails its checks
//! (looked at once a batch), or the network says that it cannot be reached. While it has not answered, the session keeps a copy
//! of its first datagram and sends that to the next endpoint, so that a question to a dead name server is answered by another one
//! without waiting for the client to ask again. Of what came after it no copy is kept: who sends on without an answer (QUIC, media)
//! makes good for losses by itself, and memory for a session stays bounded. Once there was an answer, what is under way to an
//! endpoint that dies is lost, and the next datagram goes to another one.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use nerve::model::ClientAddress;
use rustix::io::Errno;
use smallvec::SmallVec;

use super::batch::{Piece, Position, Way, left};
use super::socket;
use crate::balance::{ClientKey, ConnectFailure, Endpoint, Lease, Permit, Tried};
use crate::proxy::arena::Key;
use crate::proxy::io::Io;
use crate::proxy::poll::{Interest, Subject};
use crate::proxy::transparent::{Borrowed, Held};
use crate::proxy::udp_metrics::Lost;
use crate::proxy::udp_route::Route;
use crate::sys::datagrams::{BATCH, Datagrams};

/// The largest first datagram of which a copy is kept: any question to a name server, and QUIC's first flight.
const COPY: usize = 2048;
/// Endpoints that are tried in a row for one datagram. Each costs a socket; who is behind the eighth comes with the next datagram.
const ATTEMPTS: usize = 8;

#[derive(Debug)]
pub(super) struct Session {
    pub(super) route: Rc<Route>,
    client: SocketAddr,
    upstream: Upstream,
    /// Its place among those that the service, and the client's address, may have.
    _permit: Permit,
    /// What was tried since the last answer.
    tried: Option<Box<Tried>>,
    /// The first datagram, until there is an answer.
    first: Option<Box<[u8]>>,
    /// When the first datagram came.
    began: Instant,
    /// When the endpoint was asked first.
    asked: Instant,
    has_answered: bool,
    /// What the endpoint's socket could not hold, as last told.
    missed: u32,
}

/// A connected socket and what it is connected to.
#[derive(Debug)]
pub(super) struct Upstream {
    socket: OwnedFd,
    /// The socket has the client's address.
    _held: Option<Held>,
    lease: Lease,
}

impl Upstream {
    /// Picks an endpoint that a socket can be connected to; what was tried in vain is added to `tried`.
    pub(super) fn open(
        route: &Route,
        client: SocketAddr,
        tried: &mut Option<Box<Tried>>,
        now: Instant,
    ) -> Result<Self, Lost> {
        let key = ClientKey { address: client, waited: false, datagrams: true };
        let of_service = route.balancer.settings().service.mtls;
        let mut unreached = Lost::EndpointUnreachable;
        for _ in 0..ATTEMPTS {
            let none = Tried::none();
            let before = tried.as_deref().unwrap_or(&none);
            let lease = route.balancer.pick(&key, before, now).map_err(|none| {
                tracing::debug!(service = %route.balancer.service(), %client, error = %none, "a datagram is dropped");
                match () {
                    // A datagram does not wait for a place: whoever sent it would not know.
                    () if none.is_full() => Lost::Refused,
                    () if before.is_empty() => Lost::NoEndpoint,
                    () => unreached,
                }
            })?;
            // Tunnels carry connections.
            if route.tunnels.way(lease.endpoint().registered_by(), of_service).is_by_tunnel_alone() {
                unreached = Lost::WithoutTunnel;
                failed(route, &lease, Errno::ACCESS, tried);
                continue;
            }
            // Those without one are not picked.
            let Some(address) = lease.endpoint().datagram_address() else { return Err(Lost::NoEndpoint) };
            let (borrowed, held) = borrow(route, client, address).unzip();
            match socket::connect(address, borrowed) {
                Ok(socket) => return Ok(Self { socket, _held: held, lease }),
                Err(error) if socket::is_ours(error) => {
                    let error = std::io::Error::from(error);
                    tracing::debug!(service = %route.balancer.service(), %client, %error, "no socket for a session");
                    return Err(Lost::Limit);
                }
                Err(error) => failed(route, &lease, error, tried),
            }
        }
        Err(unreached)
    }

    /// Watches its socket.
    pub(super) fn watch(&self, key: Key, io: &Io) -> Result<(), Lost> {
        io.poller.add(&self.socket, Subject::UdpSession(key), Interest::Read).map_err(|_| Lost::Limit)
    }
}

/// The client's address, where the service asks for it and this endpoint can be shown it.
fn borrow(route: &Route, client: SocketAddr, endpoint: SocketAddr) -> Option<(Borrowed, Held)> {
    let shown_as = route.balancer.settings().service.client_address;
    if shown_as != Some(ClientAddress::Transparent) {
        return None;
    }
    route.steering.borrow(client, endpoint).map_err(|plain| route.tally.plain(plain)).ok()
}

/// Remembers that an endpoint cannot be reached.
fn failed(route: &Route, lease: &Lease, error: Errno, tried: &mut Option<Box<Tried>>) {
    tracing::debug!(
        service = %route.balancer.service(),
        endpoint = %lease.endpoint().id(),
        address = %lease.endpoint().address(),
        error = %std::io::Error::from(error),
        "an endpoint cannot be reached; another one is tried"
    );
    tried.get_or_insert_default().failed(lease, ConnectFailure::of(&error.into()));
}

impl Session {
    pub(super) fn new(
        route: &Rc<Route>,
        client: SocketAddr,
        (upstream, permit): (Upstream, Permit),
        tried: Option<Box<Tried>>,
        now: Instant,
    ) -> Self {
        Self {
            route: Rc::clone(route),
            client,
            upstream,
            _permit: permit,
            tried,
            first: None,
            began: now,
            asked: now,
            has_answered: false,
            missed: 0,
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.upstream.socket.as_fd()
    }

    pub(super) fn watch(&self, key: Key, io: &Io) -> Result<(), Lost> {
        self.upstream.watch(key, io)
    }

    pub(super) fn is_with(&self, endpoint: &Arc<Endpoint>) -> bool {
        Arc::ptr_eq(self.upstream.lease.endpoint(), endpoint)
    }

    pub(super) fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// The first datagram, before it is sent.
    pub(super) fn keep_first(&mut self, bytes: &[u8]) {
        self.first = (bytes.len() <= COPY).then(|| bytes.into());
    }

    /// Sends datagrams of the client on; `indices` are those in `received` that are its. What cannot be sent is counted. Tells
    /// whether the session is worth keeping.
    pub(super) fn forward(
        &mut self,
        key: Key,
        io: &Io,
        received: &Datagrams,
        indices: impl Iterator<Item = usize>,
    ) -> bool {
        let pieces: SmallVec<[Piece<'_>; BATCH]> = indices
            .map(|index| Piece {
                to: None,
                from: None,
                bytes: received.bytes(index),
                segment: received.head(index).segment,
            })
            .collect();
        let mut position = Position::default();
        if self.upstream.lease.endpoint().is_gone()
            && let Err(lost) = self.replace(key, io)
        {
            self.route.tally.lost(lost, left(&pieces, position));
            return false;
        }
        for _ in 0..ATTEMPTS {
            let Err(error) = self.send(&pieces, &mut position) else { return true };
            // The first datagram is lost with the endpoint, if it is not one of these.
            let lost_first = !self.has_answered && position > Position::default();
            if let Err(lost) = self.fail(key, io, error) {
                self.route.tally.lost(lost, left(&pieces, position));
                return false;
            }
            let repeats_first = pieces.first().map(|piece| piece.bytes) == self.first.as_deref();
            if (lost_first || !repeats_first) && self.send_first().is_err() {
                break;
            }
        }
        self.route.tally.lost(Lost::EndpointUnreachable, left(&pieces, position));
        false
    }

    /// The network said that the endpoint cannot be reached, when nothing was being sent. Tells whether the session is worth
    /// keeping: it has another endpoint and has asked that one what the first had not answered.
    pub(super) fn unreachable(&mut self, key: Key, io: &Io, error: Errno) -> bool {
        let route = Rc::clone(&self.route);
        let is_fresh = io.now < self.began + route.config.connect_deadline;
        if self.first.is_none() || !is_fresh {
            failed(&route, &self.upstream.lease, error, &mut self.tried);
            if !self.has_answered {
                route.tally.lost(Lost::EndpointUnreachable, 1);
            }
            return false;
        }
        let mut error = error;
        for _ in 0..ATTEMPTS {
            if let Err(lost) = self.fail(key, io, error) {
                route.tally.lost(lost, 1);
                return false;
            }
            match self.send_first() {
                Ok(()) => return true,
                Err(another) => error = another,
            }
        }
        route.tally.lost(Lost::EndpointUnreachable, 1);
        false
    }

    /// Datagrams of the endpoint have come: it is there, and so is what `first` was kept for.
    pub(super) fn answered(&mut self, missed: Option<u32>, now: Instant) {
        if let Some(missed) = missed {
            let more = missed.wrapping_sub(self.missed);
            self.missed = missed;
            self.route.tally.lost(Lost::ReceiveBufferFull, u64::from(more));
        }
        if !self.has_answered || self.tried.is_some() {
            let latency = now.saturating_duration_since(self.asked);
            self.upstream.lease.connected(latency);
            self.upstream.lease.first_byte(latency);
            (self.has_answered, self.tried, self.first) = (true, None, None);
        }
    }

    fn fail(&mut self, key: Key, io: &Io, error: Errno) -> Result<(), Lost> {
        failed(&self.route, &self.upstream.lease, error, &mut self.tried);
        self.replace(key, io)
    }

    /// Another endpoint. What the old one still sends is not heard.
    fn replace(&mut self, key: Key, io: &Io) -> Result<(), Lost> {
        let upstream = Upstream::open(&self.route, self.client, &mut self.tried, io.now)?;
        upstream.watch(key, io)?;
        (self.upstream, self.missed, self.asked) = (upstream, 0, io.now);
        self.route.tally.moved.add(1);
        Ok(())
    }

    fn send(&self, pieces: &[Piece<'_>], position: &mut Position) -> Result<(), Errno> {
        let way = Way {
            socket: self.socket(),
            is_connected: true,
            is_ipv4: self
                .upstream
                .lease
                .endpoint()
                .datagram_address()
                .is_some_and(|address| address.is_ipv4()),
            tally: &self.route.tally,
            traffic: &self.route.tally.to_endpoint,
        };
        way.send(pieces, position)
    }

    fn send_first(&self) -> Result<(), Errno> {
        let Some(bytes) = self.first.as_deref() else { return Ok(()) };
        let piece = Piece { to: None, from: None, bytes, segment: bytes.len() };
        self.send(&[piece], &mut Position::default())
    }
}
