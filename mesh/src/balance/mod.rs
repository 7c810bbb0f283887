//! Which endpoint gets the next connection.
//!
//! A [`Balancer`] serves one service on one target port. Its endpoints stand behind one pointer that an update of the
//! catalog replaces whole; what is known of an endpoint from here (in flight, connect failures) is kept across updates.
//! Picking takes no lock and allocates nothing. Nothing here ever writes to the catalog.

mod endpoint;
mod policy;
mod pool;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use nerve::model::{PortName, ServiceName};
use smallvec::SmallVec;
use synapse::catalog::Service;

pub use endpoint::{Endpoint, Excluded, Lease};
use policy::{Policy, RoundRobin};
use pool::Pool;

/// Picks endpoints of one service for one target port.
#[derive(Debug)]
pub struct Balancer {
    service: ServiceName,
    target: Option<PortName>,
    pool: Pool,
    policy: RoundRobin,
}

/// The endpoints that one connection has tried already.
#[derive(Debug, Default)]
pub struct Tried(SmallVec<[Arc<Endpoint>; 4]>);

/// Why there is no endpoint to pick.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NoEndpoint {
    /// The service.
    pub service: ServiceName,
    /// How many endpoints are kept out, by reason.
    pub excluded: BTreeMap<Excluded, usize>,
    /// How many were tried for this connection.
    pub tried: usize,
}

impl Balancer {
    /// A balancer without endpoints yet. `target` is the named port of the instances that it leads to; `None` is their
    /// main port.
    #[must_use]
    pub fn new(service: ServiceName, target: Option<PortName>) -> Self {
        Self { service, target, pool: Pool::default(), policy: RoundRobin::default() }
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

    /// Takes over what the catalog says now; `None` when the service is gone. For one writer at a time.
    pub fn update(&self, service: Option<&Service>) {
        self.pool.update(service, self.target.as_ref());
    }

    /// The endpoint for a connection that has tried `tried` already. Endpoints that recently refused are passed over as
    /// long as there are others.
    pub fn pick(&self, tried: &Tried) -> Result<Lease, NoEndpoint> {
        let snapshot = self.pool.load();
        let untried = |endpoint: &Endpoint| !tried.contains(endpoint);
        self.policy
            .choose(&snapshot.serving, &|endpoint| untried(endpoint) && !endpoint.is_avoided())
            .or_else(|| self.policy.choose(&snapshot.serving, &untried))
            .map(|endpoint| Lease::new(Arc::clone(endpoint)))
            .ok_or_else(|| NoEndpoint {
                service: self.service.clone(),
                excluded: snapshot.excluded.clone(),
                tried: tried.0.len(),
            })
    }

    /// Every endpoint, those that are kept out too, with what is known of them here.
    #[must_use]
    pub fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        Arc::clone(&self.pool.load().known)
    }
}

impl Tried {
    /// Nothing tried yet.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Remembers a failed attempt, also for other connections.
    pub fn failed(&mut self, lease: &Lease) {
        lease.endpoint().note_connect_failure();
        self.0.push(Arc::clone(lease.endpoint()));
    }

    /// How many were tried.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Was nothing tried?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn contains(&self, endpoint: &Endpoint) -> bool {
        self.0.iter().any(|tried| tried.is(endpoint))
    }
}

impl fmt::Display for NoEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has no endpoint to try", self.service)?;
        if self.tried > 0 {
            write!(f, " any more: {} could not be connected to", self.tried)?;
        }
        for (reason, count) in &self.excluded {
            write!(f, "; {count} {reason}")?;
        }
        if self.tried == 0 && self.excluded.is_empty() {
            write!(f, ": no instance is registered")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nerve::model::Instance;
    use synapse::catalog::{Catalog, Change};

    use super::*;

    pub(super) fn service(instances: &[serde_json::Value]) -> Arc<Service> {
        let (catalog, mut writer) = Catalog::new();
        writer.apply(instances.iter().map(|fields| {
            let mut json =
                serde_json::json!({"service": "web", "node": "a", "address": "192.0.2.1", "port": 80});
            json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            Change::PutInstance(Arc::new(serde_json::from_value::<Instance>(json).unwrap()))
        }));
        catalog.service("web").unwrap()
    }

    fn balancer(instances: &[serde_json::Value], target: Option<&str>) -> Balancer {
        let target = target.map(|name| PortName::new(name).unwrap());
        let balancer = Balancer::new(ServiceName::new("web").unwrap(), target);
        balancer.update(Some(&service(instances)));
        balancer
    }

    fn id(lease: &Lease) -> String {
        lease.endpoint().id().to_string()
    }

    #[test]
    fn connections_take_turns() {
        let balancer = balancer(&["1", "2", "3"].map(|id| serde_json::json!({"id": id})), None);
        let ids: Vec<_> = (0..6).map(|_| id(&balancer.pick(&Tried::none()).unwrap())).collect();
        assert_eq!(ids[..3], ids[3..]);
        assert_eq!(ids[..3].iter().collect::<std::collections::HashSet<_>>().len(), 3);
    }

    #[test]
    fn a_connection_tries_each_endpoint_once() {
        let balancer = balancer(&["1", "2"].map(|id| serde_json::json!({"id": id})), None);
        let mut tried = Tried::none();
        let first = balancer.pick(&tried).unwrap();
        tried.failed(&first);
        let second = balancer.pick(&tried).unwrap();
        assert_ne!(id(&first), id(&second));
        tried.failed(&second);
        let error = balancer.pick(&tried).unwrap_err();
        assert_eq!(error.to_string(), "web has no endpoint to try any more: 2 could not be connected to");
    }

    #[test]
    fn an_endpoint_that_refused_is_passed_over_by_the_next_connections() {
        let balancer = balancer(&["1", "2"].map(|id| serde_json::json!({"id": id})), None);
        let refused = balancer.pick(&Tried::none()).unwrap();
        Tried::none().failed(&refused);
        for _ in 0..4 {
            assert_ne!(id(&balancer.pick(&Tried::none()).unwrap()), id(&refused));
        }
    }

    #[test]
    fn what_is_known_of_an_endpoint_outlives_an_update() {
        let balancer = balancer(&[serde_json::json!({"id": "1"})], None);
        let lease = balancer.pick(&Tried::none()).unwrap();
        balancer.update(Some(&service(&["1", "2"].map(|id| serde_json::json!({"id": id})))));
        let first = &balancer.endpoints()[0];
        assert_eq!((first.id().as_str(), first.in_flight()), ("1", 1));
        balancer.update(Some(&service(&[serde_json::json!({"id": "1", "health": "critical"})])));
        assert_eq!(balancer.endpoints()[0].in_flight(), 1);
        drop(lease);
        assert_eq!(first.in_flight(), 0);
    }

    #[test]
    fn the_reason_for_having_none_is_told() {
        let sick = serde_json::json!({"id": "1", "health": "critical"});
        let leaving = serde_json::json!({"id": "2", "draining": true});
        let error = balancer(&[sick, leaving], None).pick(&Tried::none()).unwrap_err();
        assert_eq!(error.to_string(), "web has no endpoint to try; 1 critical; 1 draining");
    }

    #[test]
    fn a_named_port_leads_to_the_instances_that_have_it() {
        let with = serde_json::json!({"id": "1", "ports": {"metrics": 9100}});
        let balancer = balancer(&[with, serde_json::json!({"id": "2"})], Some("metrics"));
        for _ in 0..3 {
            assert_eq!(balancer.pick(&Tried::none()).unwrap().endpoint().address().port(), 9100);
        }
    }
}
