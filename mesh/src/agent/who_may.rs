//! Starts the room that decides who may come in, and tells it who the clients of this node are: what the sources of instances say, and
//! which addresses are the host's own.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use nerve::source::Snapshot;
use nerve::tasks::Tasks;
use prometheus::Registry;
use synapse::catalog::Catalog;
use synapse::watch::store as watcher;
use tokio::sync::watch;

use crate::proxy::DataPlane;
use crate::rules::{Means, Metrics, Rules};

/// What every source of instances says.
pub(super) type Snapshots = Vec<watch::Receiver<Arc<Snapshot>>>;

/// Decides who may come in from now on. It knows who the clients of this node are before the first of them comes.
pub(super) async fn start(
    catalog: &Catalog,
    plane: &DataPlane,
    (sources, watcher): (Snapshots, &watcher::Handle),
    registry: &Registry,
    tasks: &Tasks,
) -> anyhow::Result<Rules> {
    let metrics = Metrics::new()?;
    metrics.register(registry)?;
    let rules = Rules::new(catalog.clone(), metrics);
    let means = Means { sources, host_addresses: Arc::new(host_addresses), watcher: watcher.clone() };
    rules.start(means, tasks).await;
    plane.access().set(Arc::new(rules.clone()));
    Ok(rules)
}

/// Every address of every interface of this host.
fn host_addresses() -> io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
    });
    Ok(addresses.collect())
}
