//! An endpoint as the balancer holds it: its address, and what was learnt of it from here.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use nerve::model::{InstanceId, NodeName};
use synapse::catalog::Reason;

/// How long an endpoint is passed over after it could not be connected to; doubles with each further failure.
const FIRST_AVOIDANCE: Duration = Duration::from_secs(1);
/// The longest that it is passed over: the cost of trying again is one retried connection.
const LONGEST_AVOIDANCE: Duration = Duration::from_secs(10);

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

/// An endpoint that may be picked. Lives on across updates of the catalog as long as id and address stay.
#[derive(Debug)]
pub struct Endpoint {
    id: InstanceId,
    node: NodeName,
    address: SocketAddr,
    in_flight: AtomicU32,
    connections: AtomicU64,
    connect_failures: AtomicU64,
    /// Failures since the last success: decides how long it is passed over.
    failures_in_a_row: AtomicU32,
    /// Milliseconds on our clock; 0 when it is not passed over, so that the usual pick does not read the time.
    avoided_until: AtomicU64,
    gone: AtomicBool,
}

impl Endpoint {
    pub(super) fn new(id: InstanceId, node: NodeName, address: SocketAddr) -> Self {
        Self {
            id,
            node,
            address,
            in_flight: AtomicU32::new(0),
            connections: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            avoided_until: AtomicU64::new(0),
            gone: AtomicBool::new(false),
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

    /// Where to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
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

    /// How long it will be passed over still, because it could not be connected to.
    #[must_use]
    pub fn avoided_for(&self) -> Option<Duration> {
        let until = self.avoided_until.load(Ordering::Relaxed);
        let left = until.checked_sub(now_millis()).filter(|left| *left > 0)?;
        (until != 0).then(|| Duration::from_millis(left))
    }

    /// Has it left the catalog, or does it fail its checks? Not while it is being drained.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }

    pub(super) fn is_avoided(&self) -> bool {
        self.avoided_until.load(Ordering::Relaxed) != 0 && self.avoided_for().is_some()
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }

    pub(super) fn note_connect_failure(&self) {
        self.connect_failures.fetch_add(1, Ordering::Relaxed);
        let before = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
        let avoidance = FIRST_AVOIDANCE.saturating_mul(1 << before.min(8)).min(LONGEST_AVOIDANCE);
        self.avoided_until.store(now_millis() + millis(avoidance), Ordering::Relaxed);
    }

    fn note_connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        // Loads before stores: the usual connection finds zeros and leaves the cache line alone.
        if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
            self.avoided_until.store(0, Ordering::Relaxed);
        }
    }
}

/// An endpoint picked for one connection: counted as in flight until it is dropped.
#[derive(Debug)]
pub struct Lease(Arc<Endpoint>);

impl Lease {
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }

    /// What was picked.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }

    /// The connection is made: the endpoint is as good as any again.
    pub fn connected(&self) {
        self.0.note_connected();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn now_millis() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // One more than elapsed, since 0 says «not avoided».
    millis(START.elapsed()) + 1
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
