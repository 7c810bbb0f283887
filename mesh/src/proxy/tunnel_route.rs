//! What all streams that arrive by one tunnel port share on one thread: who may go where, and what counts them.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use nerve::model::{Address, NodeName};
use rustix::io::Errno;

use super::Config;
use super::load::Load;
use super::route::{ListenerId, OpenConnections};

/// What another node asks for: that a client of its is connected to an endpoint here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelCall<'a> {
    /// Who asks, as its certificate says.
    pub node: &'a NodeName,
    /// For which service. What this is was said by the other node, and need not be a service's name.
    pub service: &'a str,
    /// The endpoint's address, as the other node knows it.
    pub target: SocketAddr,
    /// The client's, as the other node says; a client of a unix socket has none.
    pub client: Option<SocketAddr>,
    /// The service that the client is an instance of, as the other node says, where it knows; it need not be a service's name either.
    pub client_service: Option<&'a str>,
}

/// Says where what arrives by a tunnel may go. Asked by data-plane threads for each stream: it must not block.
pub trait TunnelTargets: fmt::Debug + Send + Sync {
    /// Where to connect to: an endpoint of this node, of the service that is asked for.
    ///
    /// # Errors
    /// Why not.
    fn target(&self, call: &TunnelCall<'_>) -> Result<Address, Refusal>;
}

/// Why a stream that arrived by a tunnel goes nowhere: the closed set behind `plexus_tunnel_refused_total`, and what the sender is
/// told, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// What it began with is no header.
    Malformed = 1,
    /// Its header has a version or a field that is not known here.
    Unsupported = 2,
    /// There is no such endpoint of this service on this node.
    NotHere = 3,
    /// A rule forbids it.
    Denied = 4,
    /// Nobody listens at the endpoint.
    NobodyListens = 5,
    /// The endpoint does not answer in time.
    TimedOut = 6,
    /// There is no way to the endpoint, or connecting fails for another reason.
    Unreachable = 7,
    /// This node is out of descriptors, ports or memory, or serves as many as it may.
    Exhausted = 8,
    /// A reason that is not known here: the other node is newer.
    Unknown = 255,
}

impl Refusal {
    /// Every reason there is.
    pub const ALL: [Self; 9] = [
        Self::Malformed,
        Self::Unsupported,
        Self::NotHere,
        Self::Denied,
        Self::NobodyListens,
        Self::TimedOut,
        Self::Unreachable,
        Self::Exhausted,
        Self::Unknown,
    ];

    /// The word for it, as in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::NotHere => "not_here",
            Self::Denied => "denied",
            Self::NobodyListens => "nobody_listens",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Exhausted => "exhausted",
            Self::Unknown => "unknown",
        }
    }

    /// The reason with this number.
    pub(super) fn of(number: u8) -> Self {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number).unwrap_or(Self::Unknown)
    }

    /// Why an endpoint could not be connected to.
    pub(super) fn because(error: Errno) -> Self {
        match error {
            Errno::CONNREFUSED | Errno::NOENT => Self::NobodyListens,
            Errno::TIMEDOUT | Errno::AGAIN => Self::TimedOut,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::ADDRNOTAVAIL => {
                Self::Exhausted
            }
            _ => Self::Unreachable,
        }
    }

    /// What connecting there oneself would have said, or what comes next to it.
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::NobodyListens => Errno::CONNREFUSED,
            Self::TimedOut => Errno::TIMEDOUT,
            Self::Unreachable => Errno::HOSTUNREACH,
            // Not this node's lack: the connection is to be tried elsewhere, and counts against that endpoint.
            Self::Exhausted => Errno::CONNRESET,
            Self::NotHere | Self::Denied => Errno::ACCESS,
            Self::Malformed | Self::Unsupported | Self::Unknown => Errno::PROTO,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where a tunnel port's streams go.
#[derive(Debug)]
pub(super) struct TunnelRoute {
    pub(super) listener: ListenerId,
    pub(super) open: Arc<OpenConnections>,
    pub(super) targets: Arc<dyn TunnelTargets>,
    pub(super) config: Arc<Config>,
    /// The thread's.
    pub(super) load: Arc<Load>,
}

/// The route of one stream, which counts as an open connection until this is dropped.
#[derive(Debug)]
pub(super) struct OpenTunnelRoute(Arc<TunnelRoute>);

impl OpenTunnelRoute {
    pub(super) fn new(route: &Arc<TunnelRoute>) -> Self {
        route.open.add();
        route.load.add_connection();
        Self(Arc::clone(route))
    }
}

impl Deref for OpenTunnelRoute {
    type Target = TunnelRoute;

    fn deref(&self) -> &TunnelRoute {
        &self.0
    }
}

impl Drop for OpenTunnelRoute {
    fn drop(&mut self) {
        self.open.sub();
        self.load.sub_connection();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_its_way_as_a_number() {
        for reason in Refusal::ALL {
            assert_eq!(Refusal::of(reason as u8), reason);
        }
        assert_eq!(Refusal::of(0), Refusal::Unknown);
        assert_eq!(Refusal::of(200), Refusal::Unknown);
    }
}
