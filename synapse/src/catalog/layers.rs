//! What watchers beside the store's say of services: a layer each, below the store's own records.
//!
//! Precedence: the store's records first, then the watchers in their order. Two that name one address and port are one endpoint, by
//! the word of the first. What it hides is kept here, and stands in the catalog again when the first no longer says it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use nerve::model::{Instance, InstanceId, ServiceName};

use super::Endpoint;

/// A watcher's place among those that the catalog is filled by: the lower one goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// As they are configured.
    pub place: u16,
    /// Tells a watcher from the one whose place it takes.
    pub life: u64,
}

/// What each watcher says of each service.
#[derive(Debug, Default)]
pub(super) struct Said(HashMap<ServiceName, BTreeMap<Rank, Word>>);

#[derive(Debug)]
struct Word {
    watcher: Arc<str>,
    instances: Vec<Arc<Instance>>,
}

impl Said {
    /// Takes the place of what this watcher said of the service; with nothing it says nothing more.
    pub(super) fn put(
        &mut self,
        rank: Rank,
        watcher: &Arc<str>,
        service: &ServiceName,
        instances: Vec<Arc<Instance>>,
    ) {
        if instances.is_empty() {
            if let Some(layers) = self.0.get_mut(service) {
                layers.remove(&rank);
                if layers.is_empty() {
                    self.0.remove(service);
                }
            }
            return;
        }
        let word = Word { watcher: Arc::clone(watcher), instances };
        self.0.entry(service.clone()).or_default().insert(rank, word);
    }

    /// Do others than the store say something of it?
    pub(super) fn speak_of(&self, service: &ServiceName) -> bool {
        self.0.contains_key(service)
    }

    /// The store's own endpoints of a service with those of the layers below them, in the order of their ids.
    pub(super) fn under(&self, service: &ServiceName, own: Vec<Endpoint>) -> Vec<Endpoint> {
        let Some(layers) = self.0.get(service) else { return own };
        let mut addresses: BTreeSet<SocketAddr> =
            own.iter().filter_map(|endpoint| endpoint.instance.socket_addr()).collect();
        let mut merged: BTreeMap<InstanceId, Endpoint> =
            own.into_iter().map(|endpoint| (endpoint.instance.id.clone(), endpoint)).collect();
        for Word { watcher, instances } in layers.values() {
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

    fn rank(place: u16) -> Rank {
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
        assert!(older.say(&web(), vec![instance("x", 80), instance("y", 81)]));
        assert!(old.say(&web(), vec![instance("z", 80)]));
        assert_eq!(shown(&catalog), ["y:81 older", "z:80 old"]);
        writer.apply([Change::PutInstance(instance("web-a", 80))]);
        assert_eq!(shown(&catalog), ["web-a:80 store", "y:81 older"]);
        assert_eq!(catalog.endpoint_count(), 2);
        // What nobody sees is no change.
        assert!(!old.say(&web(), vec![instance("z", 80)]));
        assert!(!old.say(&web(), Vec::new()));
        writer.apply([Change::RemoveInstance(web(), InstanceId::new("web-a").unwrap())]);
        assert_eq!(shown(&catalog), ["x:80 older", "y:81 older"]);
        // A stranger of the same id is another.
        writer.apply([Change::PutInstance(instance("x", 90))]);
        assert_eq!(shown(&catalog), ["older.x:80 older", "x:90 store", "y:81 older"]);
        older.say(&web(), Vec::new());
        writer.apply([Change::RemoveInstance(web(), InstanceId::new("x").unwrap())]);
        assert!(catalog.service("web").is_none());
    }

    proptest! {
        #[test]
        fn each_address_is_there_once_by_the_word_of_the_first_who_says_it(
            store in proptest::collection::btree_set(1..8u16, 0..6),
            said in proptest::collection::vec((0..3u16, proptest::collection::btree_set(1..8u16, 0..6)), 0..8),
        ) {
            let (catalog, mut writer) = Catalog::new();
            let mut last: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
            for (place, ports) in said {
                let instances = ports.iter().map(|port| instance(&format!("w{port}"), *port)).collect();
                writer.layers().layer(rank(place), &place.to_string()).say(&web(), instances);
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
