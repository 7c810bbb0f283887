//! What changed when: the indexes that Consul's clients know an answer by, and who is woken when one of them grows.
//!
//! Data: the index of the last change of each service, of each node, and of the two lists of them; one number for what is not there,
//! as Consul has it. All of them count on from one number, so that an index belongs to one moment. Update: a change of the
//! catalog costs the work of the service that changed, and wakes who waits for that service, for a node that it runs on, or for a list that is
//! another one now. Who waits costs an entry in a table. Never holds an answer.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use nerve::model::{Node, NodeName, Region, ServiceName, Zone};
use synapse::catalog::{Catalog, Endpoint, NodeChanges, Service, Subscription};
use tokio::sync::Notify;

/// So many nodes have an index of their own; then all of them count as changed, and those that are gone are forgotten.
const MOST_NODES: usize = 65_536;

/// What a question is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    /// The instances of a service.
    Service(String),
    /// A node, and the instances on it.
    Node(String),
    /// Which services there are, and their tags.
    Services,
    /// Which nodes there are.
    Nodes,
    /// Any instance, any node.
    Everything,
}

/// The indexes, and who waits.
#[derive(Debug)]
pub(super) struct Changes {
    catalog: Catalog,
    /// Less than every index.
    pub(super) first: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    services: Subscription,
    nodes: Subscription<NodeChanges>,
    /// As they were when they were last looked at.
    known: HashMap<ServiceName, Known>,
    known_nodes: HashMap<NodeName, Arc<Node>>,
    /// The last index that was given out.
    last: u64,
    /// When a service was last gone: the index of every one that is not there.
    vanished: u64,
    list: u64,
    node_list: u64,
    of_node: HashMap<NodeName, u64>,
    of_other_nodes: u64,
    waiting: HashMap<Topic, Arc<Notify>>,
}

#[derive(Debug)]
struct Known {
    service: Arc<Service>,
    index: u64,
}

impl Changes {
    /// Of this catalog, counting on from `first`.
    pub(super) fn new(catalog: Catalog, first: u64) -> Self {
        let first = first.max(1);
        let state = State {
            services: catalog.subscribe(),
            nodes: catalog.subscribe_nodes(),
            known: HashMap::new(),
            known_nodes: HashMap::new(),
            last: first + 1,
            vanished: first + 1,
            list: first + 1,
            node_list: first + 1,
            of_node: HashMap::new(),
            of_other_nodes: first + 1,
            waiting: HashMap::new(),
        };
        Self { catalog, first, state: Mutex::new(state) }
    }

    /// Wakes who waits, for as long as it is polled.
    pub(super) async fn follow(self: Arc<Self>) {
        // Those of the state are read by whoever asks; these only tell that there is something to read.
        let (mut services, mut nodes) = (self.catalog.subscribe(), self.catalog.subscribe_nodes());
        loop {
            tokio::select! {
                _ = services.changed() => {}
                _ = nodes.changed() => {}
            }
            drop(self.current());
        }
    }

    /// The index of the last change of what a question is about. What is read of the catalog afterwards is at least as new.
    pub(super) fn index(&self, topic: &Topic) -> u64 {
        self.current().index(topic)
    }

    /// Waits until the index of `topic` is another than `known`, at most for `within`.
    pub(super) async fn differs(&self, topic: &Topic, known: u64, within: Duration) {
        let waiting = Waiting::new(self, topic);
        let changed = async {
            loop {
                // Before the look: what changes in between wakes it.
                let woken = waiting.notify.notified();
                if self.index(topic) != known {
                    return;
                }
                woken.await;
            }
        };
        let _ = tokio::time::timeout(within, changed).await;
    }

    /// With everything that has changed by now.
    fn current(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.catch_up(&self.catalog);
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has its place among those that wait for as long as it lives.
struct Waiting<'a> {
    changes: &'a Changes,
    topic: &'a Topic,
    notify: Arc<Notify>,
}

impl<'a> Waiting<'a> {
    fn new(changes: &'a Changes, topic: &'a Topic) -> Self {
        let notify = Arc::clone(changes.lock().waiting.entry(topic.clone()).or_default());
        Self { changes, topic, notify }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.changes.lock();
        // The table's and this one's.
        if Arc::strong_count(&self.notify) <= 2 {
            state.waiting.remove(self.topic);
        }
    }
}

impl State {
    fn index(&self, topic: &Topic) -> u64 {
        match topic {
            Topic::Service(name) => self.known.get(name.as_str()).map_or(self.vanished, |known| known.index),
            Topic::Node(name) => self.of_node.get(name.as_str()).copied().unwrap_or(self.of_other_nodes),
            Topic::Services => self.list,
            Topic::Nodes => self.node_list,
            Topic::Everything => self.last,
        }
    }

    fn catch_up(&mut self, catalog: &Catalog) {
        let mut woken = HashSet::new();
        if let Some(names) = self.services.changed().now_or_never() {
            for name in names {
                let now = catalog.service(name.as_str());
                self.service_changed(name, now, &mut woken);
            }
        }
        if let Some(names) = self.nodes.changed().now_or_never() {
            for name in names {
                self.last += 1;
                self.node_changed(&name, &mut woken);
                let now = catalog.node(name.as_str());
                let before = match &now {
                    Some(node) => self.known_nodes.insert(name, Arc::clone(node)),
                    None => self.known_nodes.remove(&name),
                };
                // That one is drained is nothing that the list says.
                let listed = |node: Arc<Node>| Node { draining: false, ..Node::clone(&node) };
                if before.map(listed) != now.map(listed) {
                    self.node_list = self.last;
                    woken.insert(Topic::Nodes);
                }
            }
        }
        if !woken.is_empty() {
            woken.insert(Topic::Everything);
        }
        for notify in woken.iter().filter_map(|topic| self.waiting.get(topic)) {
            notify.notify_waiters();
        }
    }

    fn service_changed(&mut self, name: ServiceName, now: Option<Arc<Service>>, woken: &mut HashSet<Topic>) {
        // One that only has settings is none for those who ask here.
        let now = now.filter(|service| !service.endpoints.is_empty());
        let before = self.known.get(&name).map(|known| Arc::clone(&known.service));
        let [old, new] = [&before, &now]
            .map(|service| service.as_ref().map_or(&[][..], |service| service.endpoints.as_slice()));
        let nodes: BTreeSet<&NodeName> =
            differing(old, new).into_iter().map(|endpoint| &endpoint.instance.node).collect();
        if nodes.is_empty() {
            if let (Some(known), Some(now)) = (self.known.get_mut(&name), now) {
                known.service = now;
            }
            return;
        }
        self.last += 1;
        if before.is_none() || now.is_none() || tags(old) != tags(new) {
            self.list = self.last;
            woken.insert(Topic::Services);
        }
        if strangers(old) != strangers(new) {
            self.node_list = self.last;
            woken.insert(Topic::Nodes);
        }
        for node in nodes {
            self.node_changed(node, woken);
        }
        woken.insert(Topic::Service(name.as_str().to_owned()));
        match now {
            Some(service) => drop(self.known.insert(name, Known { service, index: self.last })),
            None => {
                self.vanished = self.last;
                self.known.remove(&name);
            }
        }
    }

    fn node_changed(&mut self, name: &NodeName, woken: &mut HashSet<Topic>) {
        if self.of_node.len() >= MOST_NODES && !self.of_node.contains_key(name) {
            self.of_node.clear();
            self.of_other_nodes = self.last;
        }
        self.of_node.insert(name.clone(), self.last);
        woken.insert(Topic::Node(name.as_str().to_owned()));
    }
}

/// Endpoints that only one side has, or that are not the same on both. Both are in the order of their ids.
fn differing<'a>(old: &'a [Endpoint], new: &'a [Endpoint]) -> Vec<&'a Endpoint> {
    let (mut old, mut new, mut found) = (old.iter().peekable(), new.iter().peekable(), Vec::new());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return found,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.instance.id.cmp(&new.instance.id),
        };
        match order {
            Ordering::Less => found.extend(old.next()),
            Ordering::Greater => found.extend(new.next()),
            Ordering::Equal => {
                let both = old.next().zip(new.next());
                found.extend(
                    both.filter(|(old, new)| old != new).into_iter().flat_map(|(old, new)| [old, new]),
                );
            }
        }
    }
}

fn tags(endpoints: &[Endpoint]) -> BTreeSet<&str> {
    endpoints.iter().flat_map(|endpoint| &endpoint.instance.tags).map(|tag| tag.as_str()).collect()
}

/// The nodes that watchers name.
fn strangers(endpoints: &[Endpoint]) -> BTreeSet<(&NodeName, IpAddr, Option<&Region>, Option<&Zone>)> {
    let found =
        endpoints.iter().filter(|endpoint| endpoint.watcher.is_some()).map(|endpoint| &endpoint.instance);
    found
        .map(|instance| (&instance.node, instance.address, instance.region.as_ref(), instance.zone.as_ref()))
        .collect()
}

#[cfg(test)]
mod tests {
    use nerve::model::{Instance, InstanceId, ServiceSettings};
    use nerve::tasks::Tasks;
    use proptest::prelude::*;
    use serde_json::json;
    use synapse::catalog::{Change, Rank, Writer};

    use super::*;

    const FIRST: u64 = 1000;
    const LONG: Duration = Duration::from_secs(60);

    fn instance(service: &str, id: &str, node: &str, tag: &str) -> Arc<Instance> {
        let tags: Vec<&str> = Some(tag).filter(|tag| !tag.is_empty()).into_iter().collect();
        let json = json!({"service": service, "id": id, "node": node, "address": "192.0.2.1", "port": 80, "tags": tags});
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn put(service: &str, id: &str, node: &str, tag: &str) -> Change {
        Change::PutInstance(instance(service, id, node, tag))
    }

    fn remove(service: &str, id: &str) -> Change {
        Change::RemoveInstance(ServiceName::new(service).unwrap(), InstanceId::new(id).unwrap())
    }

    fn node(name: &str, version: &str) -> Change {
        drained(name, version, false)
    }

    fn drained(name: &str, version: &str, draining: bool) -> Change {
        let json = json!({"name": name, "address": "192.0.2.1", "version": version, "draining": draining});
        Change::PutNode(Arc::new(serde_json::from_value(json).unwrap()))
    }

    fn service(name: &str) -> Topic {
        Topic::Service(name.to_owned())
    }

    fn on(node: &str) -> Topic {
        Topic::Node(node.to_owned())
    }

    fn world() -> (Arc<Changes>, Writer) {
        let (catalog, mut writer) = Catalog::new();
        writer.apply([put("web", "1", "a", "v1"), put("api", "1", "b", ""), node("a", "1"), node("b", "1")]);
        let changes = Arc::new(Changes::new(catalog, FIRST));
        (changes, writer)
    }

    /// Which of the topics have another index after a change.
    fn moved(changes: &Changes, writer: &mut Writer, change: Change) -> Vec<Topic> {
        let topics = [
            service("web"),
            service("api"),
            on("a"),
            on("b"),
            Topic::Services,
            Topic::Nodes,
            Topic::Everything,
        ];
        let before = topics.clone().map(|topic| (changes.index(&topic), topic));
        writer.apply([change]);
        let moved = before.into_iter().filter(|(index, topic)| {
            let now = changes.index(topic);
            assert!(now >= *index, "{topic:?}: {index} → {now}");
            now != *index
        });
        moved.map(|(_, topic)| topic).collect()
    }

    #[tokio::test]
    async fn a_change_moves_the_indexes_of_what_it_is_about_and_no_other() {
        let (changes, mut writer) = world();
        let all = [service("web"), on("a"), Topic::Services, Topic::Nodes, Topic::Everything];
        assert!(all.iter().all(|topic| changes.index(topic) > FIRST));
        let everything = Topic::Everything;
        for (change, expected) in [
            (put("web", "1", "a", "v1"), vec![]),
            (put("web", "2", "b", "v1"), vec![service("web"), on("b"), everything.clone()]),
            (put("web", "2", "b", "v2"), vec![service("web"), on("b"), Topic::Services, everything.clone()]),
            (put("web", "2", "a", "v2"), vec![service("web"), on("a"), on("b"), everything.clone()]),
            (node("a", "1"), vec![]),
            (node("a", "2"), vec![on("a"), Topic::Nodes, everything.clone()]),
            (drained("a", "2", true), vec![on("a"), everything.clone()]),
            (remove("api", "1"), vec![service("api"), on("b"), Topic::Services, everything.clone()]),
            (put("api", "1", "b", ""), vec![service("api"), on("b"), Topic::Services, everything.clone()]),
        ] {
            assert_eq!(moved(&changes, &mut writer, change.clone()), expected, "{change:?}");
        }
        // What is set for a service is nothing that is answered here.
        let mut settings = ServiceSettings::default();
        settings.unknown.insert("of_later".to_owned(), true.into());
        let settings = Change::PutSettings(ServiceName::new("web").unwrap(), Arc::new(settings));
        assert_eq!(moved(&changes, &mut writer, settings), []);
    }

    #[tokio::test]
    async fn a_node_that_only_a_watcher_names_is_one_of_the_list() {
        let (changes, writer) = world();
        let layer = writer.layers().layer(Rank { place: 0, life: 0 }, "old");
        let (nodes, web) = (changes.index(&Topic::Nodes), changes.index(&service("web")));
        layer.say(&ServiceName::new("old").unwrap(), vec![instance("old", "x", "c", "")], Vec::new());
        assert!(changes.index(&Topic::Nodes) > nodes);
        assert_eq!(changes.index(&service("web")), web);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_woken_by_its_own_service_and_by_no_other() {
        let (changes, mut writer) = world();
        let tasks = Tasks::new();
        tasks.spawn_while_wanted("follow", Arc::clone(&changes).follow());
        let (topic, known) = (service("web"), changes.index(&service("web")));
        let waits = changes.differs(&topic, known, LONG);
        tokio::pin!(waits);
        assert!(waits.as_mut().now_or_never().is_none());
        writer.apply([put("api", "2", "b", ""), node("a", "3")]);
        let soon = tokio::time::timeout(LONG / 2, waits.as_mut()).await;
        assert!(soon.is_err(), "woken by another's change");
        writer.apply([put("web", "2", "a", "")]);
        let began = tokio::time::Instant::now();
        waits.await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(changes.index(&topic) > known);
        assert!(changes.lock().waiting.is_empty(), "who does not wait has no place");
        tasks.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_in_time_and_one_for_an_index_of_another_life_at_once() {
        let (changes, _writer) = world();
        let (topic, began) = (service("nothing"), tokio::time::Instant::now());
        let known = changes.index(&topic);
        changes.differs(&topic, known + 1_000_000, LONG).await;
        changes.differs(&topic, FIRST - 1, LONG).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        changes.differs(&topic, known, LONG).await;
        assert_eq!((began.elapsed(), changes.lock().waiting.len()), (LONG, 0));
    }

    proptest! {
        #[test]
        fn indexes_never_go_back_and_tell_every_change(
            ops in proptest::collection::vec((any::<bool>(), 0..2u8, 0..3u8, 0..2u8), 1..40),
        ) {
            let (changes, mut writer) = world();
            let topics = [service("s0"), service("s1"), Topic::Services, Topic::Everything];
            let mut before = topics.clone().map(|topic| changes.index(&topic));
            for (puts, of, id, tag) in ops {
                let (name, id) = (format!("s{of}"), id.to_string());
                let shown = |changes: &Changes| changes.catalog.service(&name).map(|service| service.endpoints.clone());
                let was = shown(&changes);
                writer.apply([if puts { put(&name, &id, "a", &format!("t{tag}")) } else { remove(&name, &id) }]);
                let now = topics.clone().map(|topic| changes.index(&topic));
                prop_assert!(now.iter().zip(&before).all(|(now, before)| now >= before));
                let at = usize::from(of);
                prop_assert_eq!(now[at] > before[at], was != shown(&changes));
                before = now;
            }
        }
    }
}
