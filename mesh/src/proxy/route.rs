//! What all connections of one listener on one thread share.

use std::sync::Arc;

use prometheus::Histogram;

use super::Config;
use super::metrics::Tally;
use super::plane::{ListenerId, OpenConnections};
use crate::balance::Balancer;

/// Where a listener's connections go, and what counts them.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) listener: ListenerId,
    pub(super) open: Arc<OpenConnections>,
    pub(super) balancer: Arc<Balancer>,
    pub(super) config: Arc<Config>,
    pub(super) tally: Arc<Tally>,
    pub(super) connect_time: Histogram,
}
