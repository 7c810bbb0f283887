//! What was made of one set of rules: its index, and beside it what that says of services and of clients, as they are.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use nerve::model::{Effect, RuleSet, ServiceName};
use synapse::catalog::Service;

use super::clients::Clients;
use super::index::{Decision, Index, Labelled, Party, UNLABELLED};
use super::{By, Verdict};

/// Rules as connections ask them.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) index: Index,
    /// Services that label selectors take in.
    services: papaya::HashMap<ServiceName, Arc<Labelled>>,
    clients: ArcSwap<Clients>,
}

/// What the rules say of a client and a service.
pub(super) struct Judged<'a> {
    /// Which of the services that the client is decided it, if it is any.
    pub(super) client: Option<&'a ServiceName>,
    pub(super) decision: Decision,
}

impl Compiled {
    pub(super) fn new(set: &RuleSet) -> Self {
        let index = Index::new(set);
        Self { index, services: papaya::HashMap::new(), clients: ArcSwap::default() }
    }

    /// A service is this now, or is gone.
    pub(super) fn note_service(&self, name: &ServiceName, service: Option<&Service>) {
        let instances = service.into_iter().flat_map(|service| &service.endpoints);
        let labelled = self.index.labelled(instances.map(|endpoint| &endpoint.instance.labels));
        let services = self.services.pin();
        if labelled == Labelled::default() {
            services.remove(name);
        } else {
            services.insert(name.clone(), Arc::new(labelled));
        }
    }

    /// The clients of this node are these now.
    pub(super) fn note_clients(&self, clients: Clients) {
        self.clients.store(Arc::new(clients));
    }

    /// What holds for a client of this node and a service. A client that is several services is refused what any of them is
    /// refused, and may do what any of them may.
    pub(super) fn judge<R>(
        &self,
        client: Option<IpAddr>,
        service: &ServiceName,
        told: impl FnOnce(Judged<'_>) -> R,
    ) -> R {
        let (services, clients) = (self.services.pin(), self.clients.load());
        let labels = services.get(service).map_or(&UNLABELLED, |labels| &**labels);
        let to = self.index.party(service, labels);
        let identities = client.map(|client| clients.at(client)).unwrap_or_default();
        let mut best: Option<Judged<'_>> = None;
        for identity in identities {
            let from = self.index.party(&identity.service, &identity.labels);
            let judged = Judged { client: Some(&identity.service), decision: self.index.decide(from, to) };
            let Decision { effect, rule } = judged.decision;
            if effect == Effect::Deny && rule.is_some() {
                return told(judged);
            }
            if best.as_ref().is_none_or(|best| best.decision.rule.is_none() && rule.is_some()) {
                best = Some(judged);
            }
        }
        let unknown = || Judged { client: None, decision: self.index.decide(Party::UNKNOWN, to) };
        told(best.unwrap_or_else(unknown))
    }

    pub(super) fn verdict(&self, decision: Decision) -> Verdict {
        verdict(&self.index, decision)
    }
}

/// A decision in words.
pub(super) fn verdict(index: &Index, decision: Decision) -> Verdict {
    let rule = decision.rule.and_then(|rule| index.name(rule));
    let by = rule.map_or(By::Default, |rule| By::Rule(rule.clone()));
    Verdict { effect: decision.effect, by }
}
