//! What watchers beside the store's say of services: a layer each, below the store's own records. Of ports that they publish here, too. And
//! what this node's own configuration says of settings: one layer, below the store's as well.
//!
//! Precedence: the store's records first, then the watchers in their order. Two that name one address and port are one endpoint, by
//! the word of the first. What it hides is kept here, and stands in the catalog again when the first no longer says it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use nerve::model::{Instance, InstanceId, PublishedPort, ServiceName, ServiceSettings};

use super::Endpoint;

/// A watcher's place among those that the catalog is filled by: the lower one goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// As they are configured, among those that may say something of one service.
    pub place: u32,
    /// Tells a watcher from the one whose place it takes.
    pub life: u64,
}

/// What this node alone holds to.
#[derive(Debug, Default)]
pub(super) struct NodeSettings(HashMap<ServiceName, Arc<ServiceSettings>>);

impl NodeSettings {
    /// Takes the place of all that was said; tells of which services that is news.
    pub(super) fn replace(
        &mut self,
        settings: HashMap<ServiceName, Arc<ServiceSettings>>,
    ) -> HashSet<ServiceName> {
        let before = std::mem::replace(&mut self.0, settings);
        let all = before.keys().chain(self.0.keys());
        all.filter(|service| before.get(*service) != self.0.get(*service)).cloned().collect()
    }

    /// What holds of a service here, where the store says `stored`: this node's word, until somebody has set anything for the fleet.
    /// Ports and virtual addresses are the fleet's in any case. `None`: what the store says.
    pub(super) fn over(
        &self,
        service: &ServiceName,
        stored: &ServiceSettings,
    ) -> Option<Arc<ServiceSettings>> {
        let here = self.0.get(service).filter(|_| !stored.is_any_set())?;
        let ServiceSettings { published, vip, unknown, .. } = stored.clone();
        Some(Arc::new(ServiceSettings { published, vip, unknown, ..ServiceSettings::clone(here) }))
    }
}

/// A port that a watcher publishes on this node, below the store's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedPort {
    /// The port.
    pub port: PublishedPort,
    /// Who says so.
    pub watcher: Arc<str>,
}

/// What each watcher says of each service.
#[derive(Debug, Default)]
pub(super) struct Said(HashMap<ServiceName, BTreeMap<Rank, Word>>);

#[derive(Debug)]
struct Word {
    watcher: Arc<str>,
    instances: Vec<Arc<Instance>>,
    published: Vec<PublishedPort>,
}

impl Said {
    /// Takes the place of what this watcher said of the service; with nothing it says nothing more.
    pub(super) fn put(
        &mut self,
        rank: Rank,
        watcher: &Arc<str>,
        service: &ServiceName,
        instances: Vec<Arc<Instance>>,
        published: Vec<PublishedPort>,
    ) {
        if instances.is_empty() && published.is_empty() {
            if let Some(layers) = self.0.get_mut(service) {
                layers.remove(&rank);
                if layers.is_empty() {
                    self.0.remove(service);
                }
            }
            return;
        }
        let word = Word { watcher: Arc::clone(watcher), instances, published };
        self.0.entry(service.clone()).or_default().insert(rank, word);
    }

    /// Do others than the store say something of it?
    pub(super) fn speak_of(&self, service: &ServiceName) -> bool {
        self.0.contains_key(service)
    }

    /// The ports that watchers publish of a service: of those that have a port in common the first one counts, and before them
    /// all what the store says.
    pub(super) fn published(&self, service: &ServiceName, stored: &[PublishedPort]) -> Vec<WatchedPort> {
        let mut published: Vec<WatchedPort> = Vec::new();
        for Word { watcher, published: said, .. } in
            self.0.get(service).into_iter().flat_map(BTreeMap::values)
        {
            for port in said {
                // Addresses do not matter: two ways for one port would depend on those of the node.
                let is_said = |other: &PublishedPort| {
                    other.protocol == port.protocol && other.range().overlaps(port.range())
                };
                if !stored.iter().chain(published.iter().map(|known| &known.port)).any(is_said) {
                    published.push(WatchedPort { port: port.clone(), watcher: Arc::clone(watcher) });
                }
            }
        }
        published
    }

    /// The store's own endpoints of a service with those of the layers below them, in the order of their ids.
    pub(super) fn under(&self, service: &ServiceName, own: Vec<Endpoint>) -> Vec<Endpoint> {
        let Some(layers) = self.0.get(service) else { return own };
        let mut addresses: BTreeSet<SocketAddr> =
            own.iter().filter_map(|endpoint| endpoint.instance.socket_addr()).collect();
        let mut merged: BTreeMap<InstanceId, Endpoint> =
            own.into_iter().map(|endpoint| (endpoint.instance.id.clone(), endpoint)).collect();
        for Word { watcher, instances, .. } in layers.values() {
            for instance in instances {
                let is_hidden = match instance.socket_addr() {
                    Some(address) => !addresses.insert(address),
                    None => merged.contains_key(&instance.id),
                };
                if is_hidden {
                    continue;
                }
                let endpoint = |instance: &Arc<Instance>| Endpoint {
                    instance: Arc::clone(instance),
                    unconfirmed: false,
                    watcher: Some(Arc::clone(watcher)),
                };
                // An id of another place that is taken here by a stranger.
                let instance = match merged.contains_key(&instance.id) {
                    false => Arc::clone(instance),
                    true => match InstanceId::new(&format!("{watcher}.{}", instance.id)) {
                        Ok(id) if !merged.contains_key(&id) => {
                            Arc::new(Instance { id, ..Instance::clone(instance) })
                        }
                        _ => continue,
                    },
                };
                merged.insert(instance.id.clone(), endpoint(&instance));
            }
        }
        merged.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Catalog, Change};
    use super::*;

    fn web() -> ServiceName {
        ServiceName::new("web").unwrap()
    }

    fn instance(id: &str, port: u16) -> Arc<Instance> {
        let json = serde_json::json!({"service": "web", "id": id, "node": "a", "address": "192.0.2.1", "port": port});
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn rank(place: u32) -> Rank {
        Rank { place, life: 0 }
    }

    fn shown(catalog: &Catalog) -> Vec<String> {
        let web = catalog.service("web");
        let endpoint = |endpoint: &Endpoint| {
            let by = endpoint.watcher.as_deref().unwrap_or("store");
            format!("{}:{} {by}", endpoint.instance.id, endpoint.instance.port.unwrap())
        };
        web.map_or_else(Vec::new, |web| web.endpoints.iter().map(endpoint).collect())
    }

    #[test]
    fn the_store_goes_first_and_what_it_hides_is_there_again_when_it_is_silent() {
        let (catalog, mut writer) = Catalog::new();
        let layers = writer.layers();
        let (old, older) = (layers.layer(rank(0), "old"), layers.layer(rank(1), "older"));
        assert!(older.say(&web(), vec![instance("x", 80), instance("y", 81)], Vec::new()));
        assert!(old.say(&web(), vec![instance("z", 80)], Vec::new()));
        assert_eq!(shown(&catalog), ["y:81 older", "z:80 old"]);
        writer.apply([Change::PutInstance(instance("web-a", 80))]);
        assert_eq!(shown(&catalog), ["web-a:80 store", "y:81 older"]);
        assert_eq!(catalog.endpoint_count(), 2);
        // What nobody sees is no change.
        assert!(!old.say(&web(), vec![instance("z", 80)], Vec::new()));
        assert!(!old.say(&web(), Vec::new(), Vec::new()));
        writer.apply([Change::RemoveInstance(web(), InstanceId::new("web-a").unwrap())]);
        assert_eq!(shown(&catalog), ["x:80 older", "y:81 older"]);
        // A stranger of the same id is another.
        writer.apply([Change::PutInstance(instance("x", 90))]);
        assert_eq!(shown(&catalog), ["older.x:80 older", "x:90 store", "y:81 older"]);
        older.say(&web(), Vec::new(), Vec::new());
        writer.apply([Change::RemoveInstance(web(), InstanceId::new("x").unwrap())]);
        assert!(catalog.service("web").is_none());
    }

    #[test]
    fn ports_that_watchers_publish_are_below_the_store_s_and_one_alone_makes_a_service() {
        let (catalog, mut writer) = Catalog::new();
        let layers = writer.layers();
        let (old, older) = (layers.layer(rank(0), "old"), layers.layer(rank(1), "older"));
        let ports = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let shown = || -> Vec<String> {
            let web = catalog.service("web");
            let all = web.iter().flat_map(|web| web.published());
            all.map(|(port, by)| format!("{port} {}", by.map_or("store", |by| by))).collect()
        };
        assert!(older.say(&web(), Vec::new(), ports(&["8080:a", "9090"])));
        assert_eq!(shown(), ["8080:a/tcp older", "9090/tcp older"]);
        assert!(old.say(&web(), Vec::new(), ports(&["8080:b", "9090/udp"])));
        assert!(!old.say(&web(), Vec::new(), ports(&["8080:b", "9090/udp"])));
        assert_eq!(shown(), ["8080:b/tcp old", "9090/udp old", "9090/tcp older"]);
        let stored = ServiceSettings { published: ports(&["8000-8100"]), ..ServiceSettings::default() };
        writer.apply([Change::PutSettings(web(), Arc::new(stored))]);
        assert_eq!(shown(), ["8000-8100/tcp store", "9090/udp old", "9090/tcp older"]);
        writer.apply([Change::RemoveSettings(web())]);
        assert_eq!(shown()[0], "8080:b/tcp old");
        old.say(&web(), Vec::new(), Vec::new());
        older.say(&web(), Vec::new(), Vec::new());
        assert!(catalog.service("web").is_none());
    }

    #[test]
    fn settings_of_the_node_hold_until_the_fleet_has_any_and_make_no_service() {
        let (catalog, mut writer) = Catalog::new();
        let layers = writer.layers();
        let settings = |text: &str| Arc::new(serde_json::from_str::<ServiceSettings>(text).unwrap());
        let least = settings(r#"{"balance": {"policy": "least_connections"}}"#);
        let holds = || catalog.service("web").map(|web| (Arc::clone(&web.settings), web.has_node_settings()));
        layers.settle(HashMap::from([(web(), Arc::clone(&least))]));
        assert_eq!(holds(), None);
        writer.apply([Change::PutInstance(instance("web-a", 80))]);
        assert_eq!(holds(), Some((Arc::clone(&least), true)));
        // A port that the fleet publishes is no word on how it is balanced.
        writer.apply([Change::PutSettings(web(), settings(r#"{"published": [{"port": 8080}]}"#))]);
        let (both, is_here) = holds().unwrap();
        assert_eq!((both.published.len(), &both.balance, is_here), (1, &least.balance, true));
        // One that it sets counts, and with it all that it sets.
        let set = settings(r#"{"limits": {"queue": 7}}"#);
        writer.apply([Change::PutSettings(web(), Arc::clone(&set))]);
        assert_eq!(holds(), Some((Arc::clone(&set), false)));
        writer.apply([Change::RemoveSettings(web())]);
        assert_eq!(holds(), Some((Arc::clone(&least), true)));
        // Another word, and none.
        let first = settings(r#"{"balance": {"policy": "first"}}"#);
        layers.settle(HashMap::from([(web(), Arc::clone(&first))]));
        assert_eq!(holds(), Some((first, true)));
        layers.settle(HashMap::new());
        assert_eq!(holds(), Some((Arc::default(), false)));
        layers.settle(HashMap::from([(web(), least)]));
        writer.apply([Change::RemoveInstance(web(), InstanceId::new("web-a").unwrap())]);
        assert_eq!(holds(), None);
    }

    proptest! {
        #[test]
        fn each_address_is_there_once_by_the_word_of_the_first_who_says_it(
            store in proptest::collection::btree_set(1..8u16, 0..6),
            said in proptest::collection::vec((0..3u32, proptest::collection::btree_set(1..8u16, 0..6)), 0..8),
        ) {
            let (catalog, mut writer) = Catalog::new();
            let mut last: BTreeMap<u32, BTreeSet<u16>> = BTreeMap::new();
            for (place, ports) in said {
                let instances = ports.iter().map(|port| instance(&format!("w{port}"), *port)).collect();
                writer.layers().layer(rank(place), &place.to_string()).say(&web(), instances, Vec::new());
                last.insert(place, ports);
            }
            writer.apply(store.iter().map(|port| Change::PutInstance(instance(&format!("s{port}"), *port))));
            let mut expected: BTreeMap<u16, String> = BTreeMap::new();
            for (place, ports) in last.iter().rev() {
                expected.extend(ports.iter().map(|port| (*port, place.to_string())));
            }
            expected.extend(store.iter().map(|port| (*port, "store".to_owned())));
            let web = catalog.service("web");
            let found = web.iter().flat_map(|web| &web.endpoints).map(|endpoint| {
                let by = endpoint.watcher.as_deref().unwrap_or("store").to_owned();
                (endpoint.instance.port.unwrap().get(), by)
            });
            prop_assert_eq!(found.clone().count(), expected.len());
            prop_assert_eq!(found.collect::<BTreeMap<_, _>>(), expected);
        }
    }
}
