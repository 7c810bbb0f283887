//! From configuration to a store: the only place that knows every backend.
//!
//! Opening is quick and asks nothing of the network: an agent starts while its store is down. What is refused here is
//! what no waiting repairs: a wrong URL, a TLS file that is not there, a database that another process holds.

use std::sync::Arc;

use super::embedded::EmbeddedStore;
use super::etcd::EtcdStore;
use super::url::StoreUrl;
use super::zookeeper::ZooKeeperStore;
use super::{Metrics, OpenError, Store, StoreConfig};

/// Opens the store that `config` names. Touches files, not the network; must be called within a runtime.
pub fn open(config: &StoreConfig, metrics: &Metrics) -> Result<Arc<dyn Store>, OpenError> {
    open_inherited(config, metrics, None)
}

/// The same with what [`Store::hand_over`] of the process before this one returned.
pub fn open_inherited(
    config: &StoreConfig,
    metrics: &Metrics,
    inherited: Option<&[u8]>,
) -> Result<Arc<dyn Store>, OpenError> {
    if config.request_timeout.is_zero() {
        let reason = "it is zero; 2s is a good value".to_owned();
        return Err(OpenError::Config { key: "request_timeout", reason });
    }
    Ok(match &config.url {
        StoreUrl::Embedded { file } => {
            let (file, timeout) = (file.as_deref(), config.request_timeout);
            Arc::new(EmbeddedStore::open_inherited(file, timeout, metrics.clone(), inherited)?)
        }
        StoreUrl::Etcd { endpoints, tls, .. } => {
            Arc::new(EtcdStore::open(config, endpoints, *tls, metrics.clone())?)
        }
        StoreUrl::ZooKeeper { endpoints, .. } => {
            Arc::new(ZooKeeperStore::open(config, endpoints, metrics.clone())?)
        }
    })
}
