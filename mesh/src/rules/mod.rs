//! Rules: who may talk to whom, decided for each connection.
//!
//! The catalog has the rules; here they are put in order once a change (`index`), beside it stands who the clients of this node
//! are (`clients`) and which selectors take in which services (`compiled`), and a connection costs a few looks, without a lock or
//! an allocation; where nothing is forbidden it costs one look. `keeper` does the work when something changes. The data plane
//! asks by [`proxy::AccessRules`](crate::proxy::AccessRules), whoever takes streams of other nodes by [`Rules::of_stream`]. Until this node
//! has looked at rules that forbid something for the first time, it takes everything for forbidden.
//!
//! *Never* ends what is open, and *never* believes what another node says of its client unless the catalog has such an instance
//! of that node.

mod clients;
mod compiled;
mod index;
mod keeper;
mod metrics;
mod told;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use nerve::model::{Effect, Instance, RuleName, ServiceName};
use nerve::source::Snapshot;
use nerve::tasks::Tasks;
use synapse::catalog::Catalog;
use synapse::watch::store as watcher;
use tokio::sync::watch;

use crate::proxy::{AccessRules, TunnelCall};
use compiled::{Compiled, Judged};
use index::{Index, Party};
use told::Told;

pub use metrics::Metrics;

/// The addresses of this host, as the kernel has them at this moment.
pub type HostAddresses = Arc<dyn Fn() -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// What tells who the clients of this node are.
#[derive(Clone)]
pub struct Means {
    /// What runs on this node.
    pub sources: Vec<watch::Receiver<Arc<Snapshot>>>,
    /// Whoever comes from one of these is any process of the host.
    pub host_addresses: HostAddresses,
    /// Knows when the catalog has something to say.
    pub watcher: watcher::Handle,
}

/// The rules, for whoever asks. Clones share them.
#[derive(Debug, Clone)]
pub struct Rules(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    catalog: Catalog,
    /// What was made of the rules; none until they were looked at.
    compiled: ArcSwapOption<Compiled>,
    told: Told,
    metrics: Metrics,
}

/// What the rules say of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// May it be?
    pub effect: Effect,
    /// Who says so.
    pub by: By,
}

/// What decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// A rule.
    Rule(RuleName),
    /// The default: no rule applies.
    Default,
    /// There are rules, and this node has not looked at them yet.
    NotYet,
}

impl Verdict {
    /// May it not be?
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.effect == Effect::Deny
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(name) => write!(f, "rule {name}"),
            Self::Default => f.write_str("the default"),
            Self::NotYet => f.write_str("the start: the rules were not looked at yet"),
        }
    }
}

impl Rules {
    /// The rules of a catalog. Where they forbid anything, everything is forbidden until [`Rules::start`].
    #[must_use]
    pub fn new(catalog: Catalog, metrics: Metrics) -> Self {
        let told = Told::default();
        Self(Arc::new(Shared { catalog, compiled: ArcSwapOption::empty(), told, metrics }))
    }

    /// Looks at what is known of them, and follows them from then on.
    pub async fn start(&self, means: Means, tasks: &Tasks) {
        keeper::start(Arc::clone(&self.0), means, tasks).await;
    }

    /// What holds for a stream that another node asks for, to an instance of this one. What that node says of its client is believed
    /// if it has such an instance. A refusal is counted, and told once.
    #[must_use]
    pub fn of_stream(&self, call: &TunnelCall<'_>, target: &Instance) -> Verdict {
        let shared = &*self.0;
        if !shared.catalog.forbids_anything() {
            return Verdict { effect: Effect::Allow, by: By::Default };
        }
        let compiled = shared.compiled.load();
        let Some(compiled) = compiled.as_deref() else {
            return shared.deny(None, call.client.map(|client| client.ip()), &target.service, By::NotYet);
        };
        let index = &compiled.index;
        let claimed = call.client_service.and_then(|name| shared.catalog.service(name));
        let of_node = |instance: &&Instance| instance.node == *call.node;
        let instances = claimed.iter().flat_map(|service| &service.endpoints);
        let instances = instances.map(|endpoint| &*endpoint.instance).filter(of_node);
        let is_believed = instances.clone().next().is_some();
        let address = call.client.map(|client| client.ip());
        let is_it = |instance: &&Instance| Some(instance.address) == address;
        // Where it can be told, the very instance; where it cannot, any of them.
        let is_told = instances.clone().any(|instance| is_it(&instance));
        let meant = instances.filter(|instance| !is_told || is_it(instance));
        let (from_labels, to_labels) = match index.asks_for_labels() {
            true => {
                let of_target = index.labelled([&target.labels].into_iter());
                (index.labelled(meant.map(|instance| &instance.labels)), of_target)
            }
            false => Default::default(),
        };
        let client = claimed.as_ref().map(|service| &service.name).filter(|_| is_believed);
        let from = client.map_or(Party::UNKNOWN, |client| index.party(client, &from_labels));
        let decision = index.decide(from, index.party(&target.service, &to_labels));
        match decision.effect {
            Effect::Allow => compiled.verdict(decision),
            Effect::Deny => shared.deny(client, address, &target.service, compiled.verdict(decision).by),
        }
    }

    /// What holds between two services, or for clients of whom nothing is known, and how many rules are about connections to the
    /// second.
    #[must_use]
    pub fn explain(&self, from: Option<&ServiceName>, to: &ServiceName) -> (Verdict, usize) {
        let catalog = &self.0.catalog;
        let index = Index::new(&catalog.rules());
        let labelled = |name: &ServiceName| {
            let service = catalog.service(name.as_str());
            let instances = service.iter().flat_map(|service| &service.endpoints);
            index.labelled(instances.map(|endpoint| &endpoint.instance.labels))
        };
        let (from_labels, to_labels) = (from.map(labelled).unwrap_or_default(), labelled(to));
        let from = from.map_or(Party::UNKNOWN, |from| index.party(from, &from_labels));
        let to = index.party(to, &to_labels);
        (compiled::verdict(&index, index.decide(from, to)), index.about(to))
    }
}

impl Shared {
    /// A refusal, which is counted, and told if it is the first of its kind.
    fn deny(&self, from: Option<&ServiceName>, client: Option<IpAddr>, to: &ServiceName, by: By) -> Verdict {
        self.metrics.denied(&by);
        self.told.tell(from, client, to, &by);
        Verdict { effect: Effect::Deny, by }
    }
}

impl AccessRules for Rules {
    fn admit(&self, client: Option<IpAddr>, service: &ServiceName) -> bool {
        let shared = &*self.0;
        if !shared.catalog.forbids_anything() {
            return true;
        }
        let compiled = shared.compiled.load();
        let Some(compiled) = compiled.as_deref() else {
            return !shared.deny(None, client, service, By::NotYet).is_denied();
        };
        compiled.judge(client, service, |Judged { client: from, decision }| match decision.effect {
            Effect::Allow => true,
            Effect::Deny => !shared.deny(from, client, service, compiled.verdict(decision).by).is_denied(),
        })
    }

    fn identify(&self, client: Option<IpAddr>, service: &ServiceName) -> Option<ServiceName> {
        let shared = &*self.0;
        if !shared.catalog.forbids_anything() {
            return None;
        }
        let compiled = shared.compiled.load();
        compiled.as_deref()?.judge(client, service, |judged| judged.client.cloned())
    }
}

#[cfg(test)]
mod tests;
