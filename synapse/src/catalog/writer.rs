//! Changing the catalog: the store's records in batches, and what other watchers say in layers below them; one publication a service and
//! batch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nerve::model::{
    Instance, InstanceId, NetworkName, Node, NodeName, PublishedPort, RuleSet, ServiceName, ServiceSettings,
};
use papaya::Guard;

use super::layers::{NodeSettings, Rank, Said};
use super::{Catalog, Endpoint, Freshness, Inner, NetworkUpdate, Service};

/// One change of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An instance appeared or changed.
    PutInstance(Arc<Instance>),
    /// The store no longer lists an instance, for a reason that is not its own: keep it, marked.
    Unconfirm(ServiceName, InstanceId),
    /// An instance is gone.
    RemoveInstance(ServiceName, InstanceId),
    /// A service's settings appeared or changed.
    PutSettings(ServiceName, Arc<ServiceSettings>),
    /// A service's settings are gone: the defaults hold.
    RemoveSettings(ServiceName),
    /// A node appeared or changed.
    PutNode(Arc<Node>),
    /// A node is gone.
    RemoveNode(NodeName),
    /// A virtual address is claimed for a service.
    PutVip(IpAddr, ServiceName),
    /// A virtual address is nobody's.
    RemoveVip(IpAddr),
    /// An overlay network, or who holds a part of it, changed.
    Network(NetworkName, NetworkUpdate),
    /// The rules about who may talk to whom are these; the default ones: there are none.
    PutRules(Arc<RuleSet>),
}

/// The one handle that changes what the store says.
#[derive(Debug)]
pub struct Writer(Arc<Shared>);

/// The parts of the catalog that others than the store fill: watchers, and this node's own configuration.
#[derive(Debug, Clone)]
pub struct Layers(Arc<Shared>);

impl Layers {
    /// The part of a watcher that stands at this place among the others.
    #[must_use]
    pub fn layer(&self, rank: Rank, watcher: &str) -> Layer {
        Layer { shared: Arc::clone(&self.0), rank, watcher: watcher.into() }
    }

    /// What this node's own configuration says of the settings of services from now on, instead of what it said before. It holds here,
    /// where nobody has set any for the fleet.
    pub fn settle(&self, settings: HashMap<ServiceName, Arc<ServiceSettings>>) {
        let mut state = self.0.state();
        for service in state.settings.replace(settings) {
            state.apply_to_service(&self.0.inner, &service, &[]);
        }
        self.0.inner.services.guard().flush();
    }
}

/// A watcher's part of the catalog, below the store's.
#[derive(Debug, Clone)]
pub struct Layer {
    shared: Arc<Shared>,
    rank: Rank,
    watcher: Arc<str>,
}

#[derive(Debug)]
struct Shared {
    inner: Arc<Inner>,
    /// Held for a batch: changes happen one after the other.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    layers: Said,
    settings: NodeSettings,
    /// The addresses of each service, those of services that are gone too: one that comes back has them at once.
    vips: HashMap<ServiceName, BTreeSet<IpAddr>>,
    /// The last one given out, of whatever service: one that vanishes and comes back does not start over.
    generation: u64,
}

impl Writer {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self(Arc::new(Shared { inner, state: Mutex::default() }))
    }

    /// Where other watchers get their parts.
    #[must_use]
    pub fn layers(&self) -> Layers {
        Layers(Arc::clone(&self.0))
    }

    /// A read handle.
    #[must_use]
    pub fn catalog(&self) -> Catalog {
        Catalog(Arc::clone(&self.0.inner))
    }

    /// Says how far the catalog can be trusted from now on.
    pub fn set_freshness(&mut self, freshness: Freshness) {
        self.0.inner.freshness.store(Arc::new(freshness));
    }

    /// Applies `changes` in order and tells how many services are different afterwards. Services that end up as they
    /// were are not published.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> usize {
        let Shared { inner, .. } = &*self.0;
        let mut state = self.0.state();
        let mut by_service: HashMap<ServiceName, Vec<Change>> = HashMap::new();
        for change in changes {
            match change {
                Change::PutNode(node) => inner.put_node(node),
                Change::RemoveNode(name) => inner.remove_node(name),
                Change::Network(name, update) => inner.networks.apply(&name, update),
                Change::PutRules(rules) => inner.put_rules(rules),
                Change::PutInstance(ref instance) => {
                    by_service.entry(instance.service.clone()).or_default().push(change);
                }
                Change::Unconfirm(ref name, _)
                | Change::RemoveInstance(ref name, _)
                | Change::PutSettings(ref name, _)
                | Change::RemoveSettings(ref name) => {
                    by_service.entry(name.clone()).or_default().push(change)
                }
                Change::PutVip(address, service) => {
                    let before = state.move_vip(inner, address, Some(&service));
                    // No change of the service's own: that it is looked at again is enough.
                    for name in before.into_iter().chain([service]) {
                        by_service.entry(name).or_default();
                    }
                }
                Change::RemoveVip(address) => {
                    if let Some(name) = state.move_vip(inner, address, None) {
                        by_service.entry(name).or_default();
                    }
                }
            }
        }
        let different = by_service
            .into_iter()
            .filter(|(name, changes)| state.apply_to_service(inner, name, changes))
            .count();
        // The map hands replaced snapshots back in batches of at least 32: with large services that is a lot of memory.
        inner.services.guard().flush();
        different
    }
}

impl Inner {
    fn put_node(&self, node: Arc<Node>) {
        let name = node.name.clone();
        let nodes = self.nodes.pin();
        if nodes.insert(name.clone(), Arc::clone(&node)).is_none_or(|before| *before != node) {
            self.node_changes.fetch_add(1, Ordering::Release);
            self.node_subscribers.mark(|names| names.extend([name.clone()]));
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    fn put_rules(&self, rules: Arc<RuleSet>) {
        if **self.rules.load() != *rules {
            self.forbidding.store(rules.forbid_anything(), Ordering::Release);
            self.rules.store(rules);
            self.rule_subscribers.mark(|changed| *changed = true);
        }
    }

    fn remove_node(&self, name: NodeName) {
        if self.nodes.pin().remove(&name).is_some() {
            self.node_changes.fetch_add(1, Ordering::Release);
            self.node_subscribers.mark(|names| names.extend([name.clone()]));
            self.changes.fetch_add(1, Ordering::Release);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A batch that panicked has published whole services or nothing of them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layer {
    /// The catalog that it is a part of.
    pub(crate) fn catalog(&self) -> Catalog {
        Catalog(Arc::clone(&self.shared.inner))
    }

    /// What the watcher says of a service from now on, and which ports of it are published on this node, instead of what it said before;
    /// nothing: it says nothing more of it. Tells whether the catalog is different afterwards.
    pub fn say(
        &self,
        service: &ServiceName,
        instances: Vec<Arc<Instance>>,
        published: Vec<PublishedPort>,
    ) -> bool {
        let mut state = self.shared.state();
        state.layers.put(self.rank, &self.watcher, service, instances, published);
        let different = state.apply_to_service(&self.shared.inner, service, &[]);
        self.shared.inner.services.guard().flush();
        different
    }
}

impl State {
    /// Gives an address to a service, or to nobody; tells whose it was.
    fn move_vip(
        &mut self,
        inner: &Inner,
        address: IpAddr,
        service: Option<&ServiceName>,
    ) -> Option<ServiceName> {
        let vips = inner.vips.pin();
        let before = match service {
            Some(service) => vips.insert(address, service.clone()).cloned(),
            None => vips.remove(&address).cloned(),
        };
        if let Some(before) = &before
            && let Some(addresses) = self.vips.get_mut(before)
        {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.vips.remove(before);
            }
        }
        if let Some(service) = service {
            self.vips.entry(service.clone()).or_default().insert(address);
        }
        before
    }

    fn apply_to_service(&mut self, inner: &Inner, name: &ServiceName, changes: &[Change]) -> bool {
        let services = inner.services.pin();
        let old = services.get(name).cloned();
        let mut new = old.as_deref().cloned().unwrap_or_else(|| Service::empty(name.clone()));
        let is_layered = self.layers.speak_of(name) || new.has_watched();
        if is_layered {
            new.endpoints.retain(|endpoint| endpoint.watcher.is_none());
        }
        if let Some(stored) = new.stored.take() {
            new.settings = stored;
        }
        let mut changed = match changes {
            [] => false,
            [change] => apply_one(&mut new, change),
            many => apply_many(&mut new, many),
        };
        if let Some(here) = self.settings.over(name, &new.settings) {
            // The same one while it says the same: whoever has worked it out knows it again.
            let same = old.as_ref().map(|old| &old.settings).filter(|before| **before == here);
            let here = same.cloned().unwrap_or(here);
            new.stored = Some(std::mem::replace(&mut new.settings, here));
        }
        if is_layered {
            new.endpoints = self.layers.under(name, std::mem::take(&mut new.endpoints));
            new.watched_ports = self.layers.published(name, &new.settings.published);
        }
        if is_layered || new.stored.is_some() || old.as_ref().is_some_and(|old| old.stored.is_some()) {
            let same = |old: &Arc<Service>| {
                (&old.endpoints, &old.settings, &old.stored) == (&new.endpoints, &new.settings, &new.stored)
                    && old.watched_ports == new.watched_ports
            };
            changed = match &old {
                Some(old) => !same(old),
                None => !new.is_void(),
            };
        }
        let vips = self.vips.get(name);
        let same_vips = new.vips.iter().eq(vips.into_iter().flatten());
        if !same_vips {
            new.vips = vips.into_iter().flatten().copied().collect();
        }
        if !changed && same_vips {
            return false;
        }
        let before = old.as_ref().map_or(0, |service| service.endpoints.len());
        inner.endpoints.fetch_add(new.endpoints.len(), Ordering::Relaxed);
        inner.endpoints.fetch_sub(before, Ordering::Relaxed);
        if new.is_void() {
            services.remove(name);
        } else {
            self.generation += 1;
            new.generation = self.generation;
            services.insert(name.clone(), Arc::new(new));
        }
        inner.subscribers.mark(|names| names.extend([name.clone()]));
        inner.changes.fetch_add(1, Ordering::Release);
        true
    }
}

fn apply_one(service: &mut Service, change: &Change) -> bool {
    match change {
        Change::PutInstance(instance) => {
            let endpoint = Endpoint::of_store(Arc::clone(instance));
            match service.position(&instance.id) {
                Ok(at) if service.endpoints[at] == endpoint => return false,
                Ok(at) => service.endpoints[at] = endpoint,
                Err(at) => service.endpoints.insert(at, endpoint),
            }
            true
        }
        Change::Unconfirm(_, id) => match service.position(id) {
            Ok(at) => !std::mem::replace(&mut service.endpoints[at].unconfirmed, true),
            Err(_) => false,
        },
        Change::RemoveInstance(_, id) => match service.position(id) {
            Ok(at) => {
                service.endpoints.remove(at);
                true
            }
            Err(_) => false,
        },
        Change::PutSettings(_, settings) => {
            let changed = service.settings != *settings;
            service.settings = Arc::clone(settings);
            changed
        }
        Change::RemoveSettings(_) => {
            let changed = *service.settings != ServiceSettings::default();
            service.settings = Arc::default();
            changed
        }
        Change::PutNode(_)
        | Change::RemoveNode(_)
        | Change::PutVip(..)
        | Change::RemoveVip(_)
        | Change::Network(..)
        | Change::PutRules(_) => false,
    }
}

/// A batch goes through a map, so that n changes of one service with m endpoints cost (n + m) log m and not n × m.
fn apply_many(service: &mut Service, changes: &[Change]) -> bool {
    let before = service.endpoints.clone();
    let mut endpoints: BTreeMap<InstanceId, Endpoint> =
        std::mem::take(&mut service.endpoints).into_iter().map(|e| (e.instance.id.clone(), e)).collect();
    let mut changed = false;
    for change in changes {
        match change {
            Change::PutInstance(instance) => {
                let endpoint = Endpoint::of_store(Arc::clone(instance));
                endpoints.insert(instance.id.clone(), endpoint);
            }
            Change::Unconfirm(_, id) => {
                if let Some(endpoint) = endpoints.get_mut(id) {
                    endpoint.unconfirmed = true;
                }
            }
            Change::RemoveInstance(_, id) => drop(endpoints.remove(id)),
            Change::PutSettings(..)
            | Change::RemoveSettings(_)
            | Change::PutNode(_)
            | Change::RemoveNode(_)
            | Change::PutVip(..)
            | Change::RemoveVip(_)
            | Change::Network(..)
            | Change::PutRules(_) => {
                changed |= apply_one(service, change);
            }
        }
    }
    service.endpoints = endpoints.into_values().collect();
    changed || service.endpoints != before
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve::model::Health;
    use proptest::prelude::*;

    fn instance(service: &str, id: &str, port: u16) -> Arc<Instance> {
        let json = serde_json::json!({ "service": service, "id": id, "node": "a", "address": "192.0.2.1", "port": port });
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    #[test]
    fn a_change_touches_its_service_alone() {
        let (catalog, mut writer) = Catalog::new();
        writer.apply([
            Change::PutInstance(instance("web", "1", 80)),
            Change::PutInstance(instance("api", "1", 81)),
        ]);
        let api = catalog.service("api").unwrap();
        assert_eq!(writer.apply([Change::PutInstance(instance("web", "2", 80))]), 1);
        assert!(Arc::ptr_eq(&api, &catalog.service("api").unwrap()));
        assert_eq!(catalog.service("web").unwrap().endpoints.len(), 2);
    }

    #[test]
    fn who_sees_another_number_of_changes_finds_what_changed() {
        let (catalog, mut writer) = Catalog::new();
        let mut subscription = catalog.subscribe();
        writer.apply([
            Change::PutInstance(instance("web", "1", 80)),
            Change::PutInstance(instance("api", "1", 81)),
        ]);
        assert_eq!((catalog.changes(), subscription.take().len()), (2, 2));
        writer.apply([Change::PutInstance(instance("web", "1", 80))]);
        assert_eq!((catalog.changes(), subscription.take().len()), (2, 0), "nothing new");
        writer.apply([Change::PutInstance(instance("web", "2", 80))]);
        assert_eq!((catalog.changes(), subscription.take()), (3, [name("web")].into()));
        let all = ["1", "2"].map(|id| Change::RemoveInstance(name("web"), InstanceId::new(id).unwrap()));
        writer.apply(all);
        assert_eq!((catalog.changes(), subscription.take()), (4, [name("web")].into()));
    }

    #[test]
    fn what_says_nothing_new_is_not_published() {
        let (_catalog, mut writer) = Catalog::new();
        assert_eq!(writer.apply([Change::PutInstance(instance("web", "1", 80))]), 1);
        assert_eq!(writer.apply([Change::PutInstance(instance("web", "1", 80))]), 0);
        assert_eq!(writer.apply([Change::RemoveInstance(name("web"), InstanceId::new("9").unwrap())]), 0);
    }

    #[test]
    fn a_service_without_settings_and_endpoints_is_gone() {
        let (catalog, mut writer) = Catalog::new();
        writer.apply([Change::PutInstance(instance("web", "1", 80))]);
        writer.apply([Change::RemoveInstance(name("web"), InstanceId::new("1").unwrap())]);
        assert!(catalog.service("web").is_none());
    }

    #[test]
    fn an_address_waits_for_its_service_and_moves_with_its_claim() {
        let (catalog, mut writer) = Catalog::new();
        let address: IpAddr = "10.96.0.1".parse().unwrap();
        let vips = |service: &str| catalog.service(service).map(|service| service.vips.clone());
        writer.apply([Change::PutVip(address, name("web"))]);
        assert_eq!((vips("web"), catalog.vips()), (None, vec![(address, name("web"))]));
        writer.apply([
            Change::PutInstance(instance("web", "1", 80)),
            Change::PutInstance(instance("api", "1", 80)),
        ]);
        assert_eq!((vips("web"), vips("api")), (Some(vec![address]), Some(vec![])));
        assert_eq!(writer.apply([Change::PutVip(address, name("web"))]), 0);
        assert_eq!(writer.apply([Change::PutVip(address, name("api"))]), 2);
        assert_eq!((vips("web"), vips("api")), (Some(vec![]), Some(vec![address])));
        writer.apply([Change::RemoveInstance(name("api"), InstanceId::new("1").unwrap())]);
        assert_eq!((vips("api"), catalog.vips().len()), (None, 1));
        writer.apply([Change::RemoveVip(address)]);
        assert!(catalog.vips().is_empty());
    }

    #[test]
    fn a_service_that_comes_back_is_of_a_later_generation() {
        let (catalog, mut writer) = Catalog::new();
        let mut last = 0;
        for _ in 0..3 {
            writer.apply([Change::PutInstance(instance("web", "1", 80))]);
            let generation = catalog.service("web").unwrap().generation;
            assert!(generation > last);
            last = generation;
            writer.apply([Change::RemoveInstance(name("web"), InstanceId::new("1").unwrap())]);
        }
    }

    #[test]
    fn a_replaced_snapshot_is_let_go_at_once() {
        let (catalog, mut writer) = Catalog::new();
        writer.apply([Change::PutInstance(instance("web", "1", 80))]);
        let old = Arc::downgrade(&catalog.service("web").unwrap());
        writer.apply([Change::PutInstance(instance("web", "2", 80))]);
        assert!(old.upgrade().is_none());
    }

    #[test]
    fn an_unconfirmed_endpoint_keeps_its_traffic_and_is_confirmed_by_the_next_put() {
        let (catalog, mut writer) = Catalog::new();
        writer.apply([Change::PutInstance(instance("web", "1", 80))]);
        writer.apply([Change::Unconfirm(name("web"), InstanceId::new("1").unwrap())]);
        let kept = &catalog.service("web").unwrap().endpoints[0];
        assert!(kept.unconfirmed && kept.is_serving());
        writer.apply([Change::PutInstance(instance("web", "1", 80))]);
        assert!(!catalog.service("web").unwrap().endpoints[0].unconfirmed);
    }

    #[test]
    fn failing_and_draining_endpoints_are_excluded_with_their_reason() {
        let mut sick = (*instance("web", "1", 80)).clone();
        sick.health = Health::Critical;
        let endpoint = Endpoint::of_store(Arc::new(sick.clone()));
        assert_eq!(endpoint.excluded(), Some(super::super::Reason::Critical));
        sick.draining = true;
        let endpoint = Endpoint::of_store(Arc::new(sick));
        assert_eq!(endpoint.excluded(), Some(super::super::Reason::Draining));
    }

    #[test]
    fn an_endpoint_with_a_unix_socket_alone_is_for_its_own_node() {
        let only = Instance {
            port: None,
            socket: Some("/run/app.sock".parse().unwrap()),
            ..(*instance("web", "1", 80)).clone()
        };
        let endpoint = Endpoint::of_store(Arc::new(only));
        let from = |node: &str| endpoint.excluded_from(Some(&NodeName::new(node).unwrap()));
        let out_of_reach = Some(super::super::Reason::UnixSocketOnly);
        assert_eq!((from("a"), from("b"), endpoint.excluded_from(None)), (None, out_of_reach, out_of_reach));
    }

    #[tokio::test]
    async fn a_subscription_reports_each_changed_service_once() {
        let (catalog, mut writer) = Catalog::new();
        writer.apply([Change::PutInstance(instance("web", "1", 80))]);
        let mut subscription = catalog.subscribe();
        assert_eq!(subscription.changed().await.len(), 1);
        writer.apply([Change::PutInstance(instance("api", "1", 80))]);
        writer.apply([Change::PutInstance(instance("api", "2", 80))]);
        assert_eq!(subscription.changed().await.into_iter().collect::<Vec<_>>(), vec![name("api")]);
    }

    #[tokio::test]
    async fn a_node_is_reported_when_it_changes_and_when_it_goes() {
        let node = |address: &str| {
            let json = serde_json::json!({"name": "a", "address": address, "version": "1"});
            Change::PutNode(Arc::new(serde_json::from_value(json).unwrap()))
        };
        let (catalog, mut writer) = Catalog::new();
        writer.apply([node("192.0.2.1")]);
        let mut subscription = catalog.subscribe_nodes();
        assert_eq!(subscription.changed().await.len(), 1);
        writer.apply([node("192.0.2.1"), Change::RemoveNode(NodeName::new("b").unwrap())]);
        assert!(futures_util::FutureExt::now_or_never(subscription.changed()).is_none());
        for change in [node("192.0.2.2"), Change::RemoveNode(NodeName::new("a").unwrap())] {
            writer.apply([change]);
            assert_eq!(subscription.changed().await.len(), 1);
        }
    }

    proptest! {
        #[test]
        fn a_batch_ends_where_its_single_changes_end(ops in proptest::collection::vec((0..3u8, 0..6u8, 1..4u16), 0..40)) {
            let changes: Vec<Change> = ops.iter().map(|(op, id, port)| {
                let id = id.to_string();
                match op {
                    0 => Change::PutInstance(instance("web", &id, *port)),
                    1 => Change::RemoveInstance(name("web"), InstanceId::new(&id).unwrap()),
                    _ => Change::Unconfirm(name("web"), InstanceId::new(&id).unwrap()),
                }
            }).collect();
            let (one_by_one, mut writer) = Catalog::new();
            for change in &changes {
                writer.apply([change.clone()]);
            }
            let (at_once, mut writer) = Catalog::new();
            writer.apply(changes);
            prop_assert_eq!(at_once.endpoint_count(), at_once.service("web").map_or(0, |s| s.endpoints.len()));
            let endpoints = |catalog: &Catalog| catalog.service("web").map(|s| s.endpoints.clone());
            prop_assert_eq!(endpoints(&one_by_one), endpoints(&at_once));
        }
    }
}
