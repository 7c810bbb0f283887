//! What a data-plane thread is told from outside.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Wake;

use nerve::model::NodeName;

use super::arena::Key;
use super::inbox::Inbox;
use super::peer::Peer;
use super::route::{ListenerId, OpenRoute, Route};
use super::tunnel_route::TunnelRoute;
use super::udp_route::Route as UdpRoute;
use crate::balance::{Closing, Endpoint};

#[derive(Debug)]
pub(super) enum Command {
    /// Listen on the socket; the routes are those of all threads in their order.
    Open(Arc<OwnedFd>, Arc<[Arc<Route>]>),
    /// Serve a client that another thread has accepted.
    Serve(OwnedFd, Peer, OpenRoute),
    /// Take datagrams from the socket.
    OpenUdp(Arc<OwnedFd>, Box<UdpRoute>),
    /// Take other nodes' tunnels from the socket.
    OpenTunnels(Arc<OwnedFd>, Arc<TunnelRoute>),
    /// Take what waits, then nothing more.
    StopAccepting(ListenerId),
    /// Take nothing more: what waits belongs to whoever else has the socket.
    HandOver(ListenerId),
    /// Reset the listener's connections.
    Reset(ListenerId),
    /// Break off what goes by tunnels to a node, or comes by those from it.
    CutTunnels(NodeName),
    /// End the connections of an endpoint.
    Close(Arc<Endpoint>, Closing),
    /// A place may be free for a connection that waits for one.
    Call(Key),
    /// End, with what connections there are.
    End,
}

/// Calls a connection of a thread, from whichever thread has freed a place.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) inbox: Arc<Inbox<Command>>,
    pub(super) key: Key,
}

impl Wake for Caller {
    fn wake(self: Arc<Self>) {
        // A thread that has ended has no connections any more.
        let _ = self.inbox.send(Command::Call(self.key));
    }
}
