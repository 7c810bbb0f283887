//! Who may be connected to what: asked by connections before they look for an endpoint, answered by whoever knows the rules.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use nerve::model::ServiceName;

/// Knows who may talk to whom. Asked by data-plane threads for each connection and each session: it must not block.
pub trait AccessRules: fmt::Debug + Send + Sync {
    /// May this client, who has no address if it came by a unix socket, be connected to the service? Whoever says no has it told.
    fn admit(&self, client: Option<IpAddr>, service: &ServiceName) -> bool;

    /// The service that this client is an instance of, as it is said to the node that it is connected to; `None` where nobody needs
    /// to know or nothing is known.
    fn identify(&self, client: Option<IpAddr>, service: &ServiceName) -> Option<ServiceName>;
}

/// The rules, between the control plane that sets them once and the data plane that asks.
#[derive(Debug, Default)]
pub struct AccessTable(OnceLock<Arc<dyn AccessRules>>);

impl AccessTable {
    /// These are asked from now on. What was set first stays.
    pub fn set(&self, rules: Arc<dyn AccessRules>) {
        let _ = self.0.set(rules);
    }

    pub(super) fn admit(&self, client: Option<IpAddr>, service: &ServiceName) -> bool {
        self.0.get().is_none_or(|rules| rules.admit(client, service))
    }

    pub(super) fn identify(&self, client: Option<IpAddr>, service: &ServiceName) -> Option<ServiceName> {
        self.0.get()?.identify(client, service)
    }
}
