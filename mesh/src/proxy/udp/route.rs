//! What all sessions of one listener on one thread share.

use std::sync::Arc;

use crate::balance::Balancer;
use crate::proxy::Config;
use crate::proxy::route::{ListenerId, OpenConnections};
use crate::proxy::udp_metrics::Tally;

/// Where a listener's sessions go, and what counts them.
#[derive(Debug)]
pub(in crate::proxy) struct Route {
    pub(in crate::proxy) listener: ListenerId,
    pub(in crate::proxy) open: Arc<OpenConnections>,
    pub(in crate::proxy) balancer: Arc<Balancer>,
    pub(in crate::proxy) config: Arc<Config>,
    pub(in crate::proxy) tally: Arc<Tally>,
}
