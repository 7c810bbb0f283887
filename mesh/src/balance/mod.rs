//! Which endpoint gets the next connection.
//!
//! A [`Balancer`] serves one service on one target port. Its endpoints, with the tables of the policy, stand behind one
//! pointer that an update of the catalog replaces whole; what is known of an endpoint from here (in flight, latency,
//! ejection) is kept across updates. Picking takes no lock and allocates nothing; the exceptions are settings that need a
//! table of clients (affinity, a limit a client) and the queue, which only those at a limit see. Nothing here ever writes
//! to the catalog.
//!
//! A connection's way: [`Balancer::admit`], [`Balancer::pick`], the connect; if it fails [`Tried::failed`] and another
//! pick; if all are full ([`NoEndpoint::is_full`]) [`Balancer::wait`].

mod affinity;
mod clock;
mod control;
mod endpoint;
mod ewma;
mod hash;
mod limits;
mod locality;
mod metrics;
mod outlier;
mod panic;
mod policy;
mod pool;
mod queue;
mod refused;
mod report;
mod retry;
mod rng;
mod settings;
mod shared;
mod slow_start;
mod snapshot;
mod split;
mod subset;
mod tried;
mod walk;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use nerve::model::{AtLimit, PortName, ServiceName};
use synapse::catalog::Service;

pub use endpoint::{ConnectFailure, Endpoint, Excluded, Lease};
pub use limits::Permit;
pub use metrics::Metrics;
pub use outlier::Ejection;
pub use pool::Place;
pub use queue::Ticket;
pub use refused::Refused;
pub use report::{EndpointReport, Report};
pub use settings::{Patience, Settings};
pub use tried::{NoEndpoint, Obstacle, Tried};

use affinity::Affinity;
use policy::Ask;
use pool::{Change, Pool};
use shared::Shared;
use snapshot::{Found, Snapshot};

/// The client of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientKey {
    /// Where it connects from, or what stands for that.
    pub address: SocketAddr,
    /// It has waited in the queue: it is before those who come now.
    pub waited: bool,
    /// It sends datagrams: an endpoint on a unix stream socket alone is of no use to it.
    pub datagrams: bool,
}

/// What is to become of an endpoint's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// It died: those on which nothing moves are closed, so that their clients notice.
    Idle,
    /// It left, and its time is over: all that are left are closed.
    All,
}

/// Told when an endpoint's connections are to be closed. Called by the control plane; must not block.
pub type OnClosing = Arc<dyn Fn(&Arc<Endpoint>, Closing) + Send + Sync>;

/// What a balancer is given by whoever makes it.
#[derive(Clone)]
pub struct Surroundings {
    /// Where this node stands in the fleet.
    pub place: Place,
    /// What is counted.
    pub metrics: Metrics,
    /// Who closes connections.
    pub on_closing: OnClosing,
}

/// Picks endpoints of one service for one target port.
pub struct Balancer {
    service: ServiceName,
    target: Option<PortName>,
    place: Place,
    on_closing: OnClosing,
    pool: Pool,
    shared: Arc<Shared>,
    affinity: OnceLock<Affinity>,
    control: Mutex<Control>,
}

/// What only the control plane looks at.
#[derive(Debug, Default)]
struct Control {
    /// Endpoints that get nothing new and have connections, with the moment since when.
    leaving: Vec<(Arc<Endpoint>, u64)>,
    /// What the tables were made with.
    rank: usize,
    ejected: u32,
    /// What the gauges show.
    shown: u32,
    panics: bool,
}

impl Balancer {
    /// A balancer without endpoints yet. `target` is the named port of the instances that it leads to; `None` is their
    /// main port.
    #[must_use]
    pub fn new(service: ServiceName, target: Option<PortName>, surroundings: &Surroundings) -> Self {
        let Surroundings { place, metrics, on_closing } = surroundings.clone();
        Self {
            shared: Arc::new(Shared::new(metrics.of_service(service.as_str()))),
            service,
            target,
            place,
            on_closing,
            pool: Pool::default(),
            affinity: OnceLock::new(),
            control: Mutex::default(),
        }
    }

    /// The service that it balances.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The named port that it leads to.
    #[must_use]
    pub fn target(&self) -> Option<&PortName> {
        self.target.as_ref()
    }

    /// What holds for the service now.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.pool.load().settings)
    }

    /// What the service says of times, now.
    #[must_use]
    pub fn patience(&self) -> Patience {
        self.pool.load().settings.patience
    }

    /// Every endpoint, those that are kept out too, with what is known of them here.
    #[must_use]
    pub fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        Arc::clone(&self.pool.load().known)
    }

    /// Lets a client's connection in, as far as the limits of the service go. Hold the permit for as long as it is open.
    ///
    /// # Errors
    /// Which limit it is that refuses it; counted.
    pub fn admit(&self, client: IpAddr, now: Instant) -> Result<Permit, Refused> {
        self.shared.gate.admit(client, &self.pool.load().settings.limits, now)
    }

    /// The endpoint for a connection that has tried `tried` already. Endpoints that are ejected are passed over as long
    /// as there are others.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn pick(&self, client: &ClientKey, tried: &Tried, now: Instant) -> Result<Lease, NoEndpoint> {
        let snapshot = self.pool.load();
        let Settings { limits, outlier, affinity, slow_start, retry_percent, retry_floor, .. } =
            &*snapshot.settings;
        let (shared, now) = (&*self.shared, clock::millis(now));
        if !tried.is_empty() {
            let picks = shared.metrics.picks.get();
            if !shared.budget.take(picks, *retry_percent, *retry_floor, now) {
                shared.metrics.refused(Refused::RetryBudget);
                return Err(self.nobody(&snapshot, Obstacle::RetryBudget, tried));
            }
        } else if !client.waited {
            shared.metrics.picks.inc();
            if limits.endpoint > 0 && shared.queue.len() > 0 {
                return Err(self.nobody(&snapshot, Obstacle::Full, tried));
            }
        }
        let ejected = shared.census.ejected.load(Ordering::Relaxed);
        let mut ask = Ask {
            client: hash::client(client.address, snapshot.settings.hash_with_port),
            tried,
            datagrams: client.datagrams,
            now,
            limit: limits.endpoint,
            slow_start: *slow_start,
            ejected_too: ejected > 0 && is_panic(&snapshot, ejected),
            outlier,
            census: &shared.census,
        };
        let sticky = *affinity > 0 && !snapshot.settings.policy.is_hash();
        if sticky && let Some(endpoint) = self.kept(client, &ask, *affinity) {
            return Ok(Lease::of(endpoint));
        }
        let spill = limits.at_limit == AtLimit::Spill;
        let mut found = snapshot.choose(&ask, spill);
        if matches!(found, Found::Nobody) && ejected > 0 && !ask.ejected_too {
            ask.ejected_too = true;
            found = snapshot.choose(&ask, spill);
        }
        match found {
            Found::Endpoint(endpoint, spilled) => {
                if spilled {
                    shared.metrics.spilled();
                }
                if sticky {
                    let table = self.affinity.get_or_init(Affinity::default);
                    table.put(client.address.ip(), endpoint, now, *affinity, &shared.metrics);
                }
                Ok(Lease::of(Arc::clone(endpoint)))
            }
            Found::Full => Err(self.nobody(&snapshot, Obstacle::Full, tried)),
            Found::Nobody => Err(self.nobody(&snapshot, Obstacle::NoneLeft, tried)),
        }
    }

    /// A place of the endpoint that the client is with, if it can be had.
    fn kept(&self, client: &ClientKey, ask: &Ask<'_>, timeout: u64) -> Option<Arc<Endpoint>> {
        let endpoint = self.affinity.get()?.get(client.address.ip(), ask.now, timeout)?;
        (endpoint.is_serving() && ask.take(&endpoint)).then_some(endpoint)
    }

    fn nobody(&self, snapshot: &Snapshot, obstacle: Obstacle, tried: &Tried) -> NoEndpoint {
        NoEndpoint {
            service: self.service.clone(),
            obstacle,
            excluded: snapshot.excluded.clone(),
            tried: tried.len(),
        }
    }

    /// How long a connection may wait for a place; `None` where nobody waits.
    #[must_use]
    pub fn queue_timeout(&self) -> Option<Duration> {
        let limits = self.pool.load().settings.limits;
        (limits.queue > 0 && limits.at_limit != AtLimit::Refuse).then_some(limits.queue_timeout)
    }

    /// Joins the queue for a place. The waker is called once at once, and when a place may be free: then pick again as
    /// one who waited, and call [`Ticket::again`] if there is none after all.
    ///
    /// # Errors
    /// Nobody may wait, or too many do; counted.
    pub fn wait(&self, waker: Waker) -> Result<Ticket, Refused> {
        if self.queue_timeout().is_none() {
            self.shared.metrics.refused(Refused::AtLimit);
            return Err(Refused::AtLimit);
        }
        self.shared.queue.join(self.pool.load().settings.limits.queue, waker)
    }

    /// Takes over what the catalog says now; `None` when the service is gone. For one writer at a time.
    pub fn update(&self, service: Option<&Service>) {
        let now = Shared::now();
        let changes = self.pool.update(service, self.target.as_ref(), &self.shared, &self.place);
        let close_idle = self.pool.load().settings.close_idle_on_death;
        {
            let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            control.leaving.retain(|(endpoint, _)| !endpoint.is_serving());
            for change in &changes {
                let (Change::Died(endpoint) | Change::Leaves(endpoint)) = change;
                if !control.leaving.iter().any(|(known, _)| known.is(endpoint)) {
                    control.leaving.push((Arc::clone(endpoint), now));
                }
            }
            if self.pool.load().settings.subset > 0 {
                control.rank = self.place.rank();
            }
        }
        for change in changes {
            if let Change::Died(endpoint) = change
                && close_idle
            {
                (self.on_closing)(&endpoint, Closing::Idle);
            }
        }
        self.note_state();
        self.shared.queue.wake_all();
    }
}

/// Are so few endpoints available, with the ejected ones out, that these are not to be believed?
fn is_panic(snapshot: &Snapshot, ejected: u32) -> bool {
    let available = snapshot.serving.saturating_sub(ejected);
    snapshot.panic || snapshot.needed.is_panic(available, snapshot.settings.panic_threshold)
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let control = self.control.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.shared.metrics.note_ejected(&mut control.shown, 0);
        if control.panics {
            self.shared.metrics.panic(-1);
        }
    }
}

impl fmt::Debug for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancer")
            .field("service", &self.service)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
