//! What all sessions of one listener on one thread share.

use std::sync::Arc;

use super::Config;
use super::access::AccessTable;
use super::route::{ListenerId, OpenConnections};
use super::transparent::Steering;
use super::tunnel_table::TunnelTable;
use super::udp_metrics::Tally;
use crate::balance::Balancer;

/// Where a listener's sessions go, and what counts them.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) listener: ListenerId,
    pub(super) open: Arc<OpenConnections>,
    pub(super) balancer: Arc<Balancer>,
    pub(super) config: Arc<Config>,
    pub(super) tally: Arc<Tally>,
    /// Which endpoints can be shown the client's address.
    pub(super) steering: Arc<Steering>,
    /// Which endpoints are reached by tunnels alone, and so not by datagrams.
    pub(super) tunnels: Arc<TunnelTable>,
    /// Who may come in.
    pub(super) access: Arc<AccessTable>,
}
