//! An endpoint as the balancer holds it: its address, and what was learnt of it from here.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nerve::model::{Address, InstanceId, NodeName};
use synapse::catalog::Reason;

use super::ewma::Ewma;
use super::hash;
use super::outlier::{Ejection, Outlier, Verdict};
use super::shared::Shared;
use super::slow_start::Ramp;

/// Why an endpoint of the catalog is not in a balancer's pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Excluded {
    /// The catalog says that it gets no traffic.
    ByCatalog(Reason),
    /// It does not have the named port that the listener leads to.
    NoSuchPort,
}

impl Excluded {
    /// The word for it, as in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ByCatalog(reason) => reason.as_str(),
            Self::NoSuchPort => "no_such_port",
        }
    }
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a connection to an endpoint could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnectFailure {
    /// Nobody listens there.
    Refused,
    /// No answer in time.
    TimedOut,
    /// No way there.
    Unreachable,
    /// It was accepted and reset at once.
    Reset,
    /// This node had no port, descriptor or memory left: no fault of the endpoint.
    Local,
    /// Something else.
    Other,
}

impl ConnectFailure {
    /// What an error of `connect(2)` says.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        use io::ErrorKind;
        /// `EMFILE`, `ENFILE`, `ENOMEM`, `ENOBUFS`: Linux has them in `asm-generic/errno-base.h` and `errno.h`.
        const OUT_OF_SOMETHING: [i32; 4] = [24, 23, 12, 105];
        match error.kind() {
            // Of a unix socket: its file is gone, with whoever listened.
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
                Self::Unreachable
            }
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse => Self::Local,
            _ if error.raw_os_error().is_some_and(|code| OUT_OF_SOMETHING.contains(&code)) => Self::Local,
            _ => Self::Other,
        }
    }

    /// The word for it, as in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Local => "local",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where an endpoint is in its life, as the catalog has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It gets traffic.
    Serving,
    /// Its checks have not passed yet, or it is drained: what it has goes on.
    Quiet,
    /// It left while it was drained: what it has goes on.
    Left,
    /// It fails its checks, or left without being drained.
    Dead,
}

/// An endpoint that may be picked. Lives on across updates of the catalog as long as id and address stay.
#[derive(Debug)]
pub struct Endpoint {
    id: InstanceId,
    node: NodeName,
    is_registered: bool,
    address: Address,
    datagrams: Option<SocketAddr>,
    /// Of its id: where it stands for the hash policies, on every node.
    hash: u64,
    shared: Arc<Shared>,
    life: AtomicU8,
    in_flight: AtomicU32,
    connections: AtomicU64,
    connect_failures: AtomicU64,
    pub(super) outlier: Outlier,
    pub(super) ramp: Ramp,
    pub(super) latency: Ewma,
}

impl Endpoint {
    pub(super) fn new(
        id: InstanceId,
        (node, is_registered): (NodeName, bool),
        (address, datagrams): (Address, Option<SocketAddr>),
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            hash: hash::bytes(id.as_str().as_bytes(), 0),
            id,
            node,
            is_registered,
            address,
            datagrams,
            shared,
            life: AtomicU8::new(Life::Quiet as u8),
            in_flight: AtomicU32::new(0),
            connections: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            outlier: Outlier::default(),
            ramp: Ramp::default(),
            latency: Ewma::default(),
        }
    }

    /// The instance's id.
    #[must_use]
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// The node that it runs on.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// The node that has registered it; `None`: none has, a watcher has found it somewhere else.
    #[must_use]
    pub fn registered_by(&self) -> Option<&NodeName> {
        self.is_registered.then_some(&self.node)
    }

    /// Where to connect to.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Where to send datagrams to; `None` where it listens on a unix socket alone.
    #[must_use]
    pub fn datagram_address(&self) -> Option<SocketAddr> {
        self.datagrams
    }

    /// Connections from here that are being made or are open.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Connections from here so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Attempts from here that failed.
    #[must_use]
    pub fn connect_failures(&self) -> u64 {
        self.connect_failures.load(Ordering::Relaxed)
    }

    /// Did it leave without being drained, or does it fail its checks? Its idle connections are worth nothing then.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.life.load(Ordering::Relaxed) == Life::Dead as u8
    }

    /// Has it left, drained or not, or does it fail its checks? What has no connection need not go on with it.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.is_dead() || self.life.load(Ordering::Relaxed) == Life::Left as u8
    }

    /// Why it is passed over for what was seen of it, and for how long still (zero: the next connection tries it).
    #[must_use]
    pub fn ejected(&self) -> Option<(Ejection, Duration)> {
        self.outlier.ejection(Shared::now()).map(|(reason, left)| (reason, Duration::from_millis(left)))
    }

    /// The latency to its first byte, or to connect where it never sends one, as peak EWMA has it.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        self.latency.last()
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn is_serving(&self) -> bool {
        self.life.load(Ordering::Relaxed) == Life::Serving as u8
    }

    /// Says where it is now, and tells whether it was `before` until now.
    pub(super) fn lives(&self, now: Life) -> u8 {
        self.life.swap(now as u8, Ordering::Relaxed)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }

    /// Takes a place unless there are `limit` already; 0 is no limit.
    pub(super) fn take_place(&self, limit: u32) -> bool {
        if limit == 0 {
            self.in_flight.fetch_add(1, Ordering::AcqRel);
            return true;
        }
        // Never one too many, not even for a moment: whoever frees a place at that moment would wake a waiter in vain.
        self.in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| (taken < limit).then_some(taken + 1))
            .is_ok()
    }

    pub(super) fn note_connect_failure(&self, kind: ConnectFailure) {
        self.connect_failures.fetch_add(1, Ordering::Relaxed);
        if kind != ConnectFailure::Local {
            let settings = self.shared.settings.load();
            let verdict = self.outlier.connect_failed(Shared::now(), &settings.outlier, &self.shared.census);
            self.note(verdict, Ejection::ConnectFailures);
        }
    }

    pub(super) fn note_slow(&self, now: u64) {
        let settings = self.shared.settings.load();
        let verdict = self.outlier.slow(now, &settings.outlier, &self.shared.census);
        self.note(verdict, Ejection::Latency);
    }

    fn note(&self, verdict: Verdict, reason: Ejection) {
        match verdict {
            Verdict::Ejected => {
                self.shared.metrics.ejection(reason);
                let left = self.ejected().map_or(Duration::ZERO, |(_, left)| left);
                tracing::info!(instance = %self.id, node = %self.node, address = %self.address, %reason, for_ms = left.as_millis(), "endpoint is ejected");
            }
            Verdict::Prevented => self.shared.metrics.ejection_prevented(),
            Verdict::Stays | Verdict::Extended => {}
        }
    }
}

/// An endpoint picked for one connection: counted as in flight until it is dropped.
#[derive(Debug)]
pub struct Lease(Arc<Endpoint>);

impl Lease {
    /// Of an endpoint of which a place was taken.
    pub(super) fn of(endpoint: Arc<Endpoint>) -> Self {
        Self(endpoint)
    }

    /// What was picked.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }

    /// The connection is made, after `latency`: the endpoint can be connected to.
    pub fn connected(&self, latency: Duration) {
        let Endpoint { connections, outlier, latency: known, shared, .. } = &*self.0;
        connections.fetch_add(1, Ordering::Relaxed);
        let now = Shared::now();
        outlier.connected(now, &shared.census);
        known.connected(latency, now);
    }

    /// The endpoint has sent its first byte, so long after the connection was made.
    pub fn first_byte(&self, since_connect: Duration) {
        self.0.outlier.answered();
        self.0.latency.answered(since_connect, Shared::now());
    }

    /// The endpoint has reset the connection before it sent anything.
    pub fn reset_before_first_byte(&self) {
        let Endpoint { outlier, shared, .. } = &*self.0;
        let settings = shared.settings.load();
        let verdict = outlier.reset(Shared::now(), &settings.outlier, &shared.census);
        self.0.note(verdict, Ejection::Resets);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // SeqCst: whoever joins the queue and looks again sees this place, or we see the one who joined.
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.0.shared.queue.wake_one();
    }
}
