//! One client connection: find an endpoint that accepts, then move bytes.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::copy::{self, Ended};
use super::metrics::ServiceMetrics;
use super::{Config, Dropped, socket};
use crate::balance::{Balancer, ClientKey, ConnectFailure, Lease, Tried};

/// What all connections of one listener on one thread share.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) balancer: Arc<Balancer>,
    pub(super) config: Arc<Config>,
    pub(super) metrics: ServiceMetrics,
    /// Cancelled when the drain's deadline has passed.
    pub(super) force: CancellationToken,
}

/// Serves one client to the end of its connection.
pub(super) async fn serve(client: TcpStream, route: &Route) {
    route.metrics.connections.inc();
    socket::prepare(&client);
    let served = tokio::select! {
        biased;
        served = connect_and_relay(&client, route) => served,
        () = route.force.cancelled() => Err(Dropped::Drain),
    };
    if let Err(reason) = served {
        route.metrics.dropped(reason);
        socket::reset(client);
    }
}

async fn connect_and_relay(client: &TcpStream, route: &Route) -> Result<(), Dropped> {
    let begun = Instant::now();
    let address = client.peer_addr().map_err(|_| Dropped::ClientReset)?;
    let _permit = route.balancer.admit(address.ip(), begun.into_std()).map_err(|_| Dropped::Limit)?;
    let (endpoint, lease) = connect(route, &ClientKey { address, waited: false }, begun).await?;
    route.metrics.connect.observe(begun.elapsed().as_secs_f64());
    let counters = (&route.metrics.to_endpoint, &route.metrics.to_client);
    let ended = copy::relay(client, &endpoint, route.config.idle_timeout, counters).await;
    drop(lease);
    let reason = match ended {
        Ended::Finished => return Ok(()),
        Ended::ByClient => Dropped::ClientReset,
        Ended::ByEndpoint => Dropped::EndpointReset,
        Ended::Idle => Dropped::Idle,
    };
    socket::reset(endpoint);
    Err(reason)
}

/// Tries endpoints until one accepts. A client's connection fails only when none does within the deadline.
async fn connect(route: &Route, client: &ClientKey, begun: Instant) -> Result<(TcpStream, Lease), Dropped> {
    let deadline = begun + route.config.connect_deadline;
    let mut tried = Tried::none();
    loop {
        let attempted = Instant::now();
        let lease = match route.balancer.pick(client, &tried, attempted.into_std()) {
            Ok(lease) => lease,
            Err(none) => {
                tracing::debug!(service = %route.balancer.service(), error = %none, "a client is refused");
                return Err(if tried.is_empty() { Dropped::NoEndpoint } else { Dropped::ConnectFailed });
            }
        };
        let attempt_ends = deadline.min(Instant::now() + route.config.connect_timeout);
        match timeout_at(attempt_ends, socket::connect(lease.endpoint().address())).await {
            Ok(Ok(stream)) => {
                lease.connected(attempted.elapsed());
                return Ok((stream, lease));
            }
            failed => {
                let kind = match &failed {
                    Ok(Err(error)) => ConnectFailure::of(error),
                    _ => ConnectFailure::TimedOut,
                };
                tracing::debug!(
                    service = %route.balancer.service(),
                    endpoint = %lease.endpoint().id(),
                    address = %lease.endpoint().address(),
                    error = failed.map_or_else(|_| "timed out".to_owned(), |r| r.map_or_else(|e| e.to_string(), |_| String::new())),
                    "cannot connect to an endpoint; another one is tried"
                );
                route.metrics.retries.inc();
                tried.failed(&lease, kind);
            }
        }
        if Instant::now() >= deadline {
            return Err(Dropped::ConnectDeadline);
        }
    }
}
