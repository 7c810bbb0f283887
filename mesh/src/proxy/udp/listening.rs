//! A UDP listening socket on one thread.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use super::batch::{Piece, Position, Way};
use crate::proxy::udp_metrics::Lost;
use crate::proxy::udp_route::Route;

pub(super) struct Listening {
    socket: Arc<OwnedFd>,
    pub(super) route: Rc<Route>,
    /// Sessions that came through it.
    pub(super) sessions: u32,
    /// It takes no new ones.
    pub(super) is_leaving: bool,
    /// Another process reads its socket.
    pub(super) is_handed_over: bool,
    /// What it could not hold, as last told.
    missed: u32,
}

impl Listening {
    pub(super) fn new(socket: Arc<OwnedFd>, route: Route) -> Self {
        Self {
            socket,
            route: Rc::new(route),
            sessions: 0,
            is_leaving: false,
            is_handed_over: false,
            missed: 0,
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Counts what was lost before a datagram that tells so.
    pub(super) fn note_missed(&mut self, missed: Option<u32>) {
        if let Some(missed) = missed {
            let more = missed.wrapping_sub(self.missed);
            self.missed = missed;
            self.route.tally.lost(Lost::ReceiveBufferFull, u64::from(more));
        }
    }

    /// Sends answers to clients. What cannot be sent is counted.
    pub(super) fn send(&self, pieces: &[Piece<'_>]) {
        let way = Way {
            socket: self.socket(),
            is_connected: false,
            is_ipv4: true,
            tally: &self.route.tally,
            traffic: &self.route.tally.to_client,
        };
        // An error would be that of a connected socket.
        let _ = way.send(pieces, &mut Position::default());
    }
}

/// A client's address as it is known elsewhere: IPv4 is IPv4, whichever socket it came through.
pub(super) fn canonical(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}
