//! What the control plane tells a data-plane thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::route::{ListenerId, Route};
use super::udp;

#[derive(Debug)]
pub(super) enum Command {
    /// Listen on the socket.
    Open(Arc<OwnedFd>, Box<Route>),
    /// Take datagrams from the socket.
    OpenUdp(Arc<OwnedFd>, Box<udp::Route>),
    /// Take what waits, then nothing more.
    StopAccepting(ListenerId),
    /// Reset the listener's connections.
    Reset(ListenerId),
    /// End, with what connections there are.
    End,
}
