//! A socket that clients come from, on one thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::peer::Peer;
use super::poll::{Poller, Subject};
use super::{socket, unix};
use crate::sys;

/// Out of descriptors or memory: the kernel will not have more at once.
const PAUSE: Duration = Duration::from_millis(50);

/// A listening socket.
pub(super) struct Acceptor {
    /// Shared with other threads where there are too many listeners for a socket a thread.
    socket: Arc<OwnedFd>,
    is_unix: bool,
    paused_until: Option<Instant>,
    /// The last accept was refused, which is in the log.
    is_failing: bool,
}

/// What an accept brought.
pub(super) enum Accepted {
    Client(OwnedFd, Peer),
    Nothing,
    /// The kernel refuses: out of descriptors or memory.
    Failed(Errno),
}

impl Acceptor {
    /// Accepts in a row before the connections of the thread get their turn.
    pub(super) const BURST: usize = 64;

    pub(super) fn new(socket: Arc<OwnedFd>, is_unix: bool) -> Self {
        Self { socket, is_unix, paused_until: None, is_failing: false }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// How many clients wait to be accepted; where that cannot be asked, how many may.
    pub(super) fn waiting(&self) -> u32 {
        let most = socket::BACKLOG.unsigned_abs();
        if self.is_unix { most } else { sys::sockopt::clients_waiting(self.socket()).unwrap_or(most) }
    }

    pub(super) fn accept(&mut self) -> Accepted {
        loop {
            let accepted = if self.is_unix {
                unix::accept(&*self.socket).map(|client| (client, Peer::Unix))
            } else {
                socket::accept(&*self.socket).map(|(client, peer)| (client, Peer::Ip(peer)))
            };
            match accepted {
                Ok((client, peer)) => {
                    self.is_failing = false;
                    return Accepted::Client(client, peer);
                }
                Err(Errno::AGAIN) => return Accepted::Nothing,
                // The client gave up between handshake and accept: nothing of ours is wrong (accept(2), «Error handling»).
                Err(error) if is_the_clients(error) => {}
                Err(error) => return Accepted::Failed(error),
            }
        }
    }

    /// Stops watching for a moment, so that a thread that may accept nothing does not spin. Tells until when. `port`: what it is
    /// called in the log.
    pub(super) fn pause(&mut self, poller: &Poller, now: Instant, error: Errno, port: &str) -> Instant {
        if !self.is_failing {
            self.is_failing = true;
            let error = std::io::Error::from(error);
            tracing::warn!(service = %port, %error, "cannot accept; it is tried again every {} ms until it can (raise LimitNOFILE if descriptors ran out)", PAUSE.as_millis());
        }
        let _ = poller.remove(self.socket());
        let until = now + PAUSE;
        self.paused_until = Some(until);
        until
    }

    pub(super) fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| until <= now)
    }

    pub(super) fn resume(&mut self, poller: &Poller, subject: Subject, port: &str) {
        self.paused_until = None;
        if let Err(error) = poller.add_level(self.socket(), subject) {
            tracing::error!(service = %port, %error, "a listener cannot be watched again");
        }
    }
}

/// Errors of one connection that never was, not of the listener.
fn is_the_clients(error: Errno) -> bool {
    matches!(
        error,
        Errno::CONNABORTED
            | Errno::INTR
            | Errno::NOTCONN
            | Errno::NETDOWN
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
            | Errno::PERM
    )
}
