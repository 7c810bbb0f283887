//! Which node holds which subnet of an overlay network, decided by the store.
//!
//! A subnet belongs to whoever wrote its key first, for as long as that one's session lives; agents only ever create and
//! delete these keys by compare-and-swap, so no two nodes hold one subnet, whatever raced. A node that comes back takes
//! over what stands in its own name. When a node wants a subnet is decided elsewhere. Never overwrites another node's.

use std::collections::BTreeMap;

use crate::hash;
use crate::model::{NetworkName, NodeName, Slot, Subnet};
use crate::store::{self, Entry, Expect, Key, Session, Store, Swap};

/// How often a claim that met a change is tried before it counts as taken: an entry of ours that ends at this moment is one.
const ATTEMPTS: usize = 4;

/// How a claim ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The node holds the subnet now, for as long as the session lives.
    Done,
    /// This node holds it; `None` where what stands there cannot be read. The own name: another agent says that it is this
    /// node, or this one did at another address, whose session has not ended yet.
    Taken(Option<NodeName>),
}

/// How giving back ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// Nobody holds the subnet now.
    Done,
    /// It is someone else's, or nobody's: nothing was changed.
    Kept,
}

/// The subnets of a network that nodes hold at this moment. One whose record cannot be read is taken, nobody knows by whom.
pub async fn list(store: &dyn Store, network: &NetworkName) -> store::Result<BTreeMap<Slot, Option<Subnet>>> {
    let entries = store.list(&Key::subnets_of(network)).await?.entries;
    let held = entries.iter().filter_map(|entry| match Key::parse(&entry.path)? {
        Key::Subnet(_, slot) => Some((slot, read(entry))),
        _ => None,
    });
    Ok(held.collect())
}

/// Gives a subnet to the node of `subnet` under its session, unless another node holds it. What this node holds at the same
/// address already, from an earlier life, belongs to the new session afterwards.
pub async fn claim(
    store: &dyn Store,
    session: &Session,
    network: &NetworkName,
    slot: Slot,
    subnet: &Subnet,
) -> store::Result<Claimed> {
    let path = Key::Subnet(network.clone(), slot).path();
    // A name, two addresses, and what was read as JSON: it has a JSON form.
    let value = serde_json::to_vec(subnet).unwrap_or_default();
    let mut expect = Expect::Absent;
    for _ in 0..ATTEMPTS {
        let found = match store.compare_and_swap(&path, expect, Some(value.clone()), Some(session)).await? {
            Swap::Done(_) => return Ok(Claimed::Done),
            Swap::Conflict(found) => found,
        };
        expect = match found.as_ref().map(|entry| (entry.revision, read(entry))) {
            None => Expect::Absent,
            Some((revision, Some(held))) if held.node == subnet.node && held.address == subnet.address => {
                Expect::Unchanged(revision)
            }
            Some((_, held)) => return Ok(Claimed::Taken(held.map(|held| held.node))),
        };
    }
    Ok(Claimed::Taken(Some(subnet.node.clone())))
}

/// Gives back a subnet that `node` holds.
pub async fn release(
    store: &dyn Store,
    network: &NetworkName,
    slot: Slot,
    node: &NodeName,
) -> store::Result<Released> {
    let path = Key::Subnet(network.clone(), slot).path();
    let is_ours = |entry: &Entry| read(entry).is_some_and(|held| held.node == *node);
    let Some(entry) = store.get(&path).await?.filter(is_ours) else { return Ok(Released::Kept) };
    match store.compare_and_swap(&path, Expect::Unchanged(entry.revision), None, None).await? {
        Swap::Done(_) => Ok(Released::Done),
        Swap::Conflict(_) => Ok(Released::Kept),
    }
}

/// The slot of a network with so many that `node` is to try for: the preferred one unless another node holds it, else the
/// first that is free in an order of the node's own. `None` when all are taken. `is_taken` says whether *another* node
/// holds a slot.
///
/// Where the order begins and how far it steps follow from the names, so nodes that start at once seldom want the same slot,
/// and those that did try different ones next, however few are left. Whoever is told that a slot is taken remembers that
/// before choosing again; nobody has to ask for a list of all.
#[must_use]
pub fn choose(
    node: &NodeName,
    network: &NetworkName,
    slots: u32,
    is_taken: impl Fn(Slot) -> bool,
    preferred: Option<Slot>,
) -> Option<Slot> {
    if let Some(slot) = preferred.filter(|slot| slot.0 < slots && !is_taken(*slot)) {
        return Some(slot);
    }
    // A round through a power of two by an odd step meets every number once.
    let round = u64::from(slots).next_power_of_two();
    let hash = hash::of(&format!("{network}/{node}"));
    let (first, step) = (hash % round, (hash >> 32) | 1);
    let order = (0..round).map(|turn| first.wrapping_add(turn.wrapping_mul(step)) % round);
    let mut order = order.filter_map(|slot| u32::try_from(slot).ok()).filter(|slot| *slot < slots);
    order.find(|slot| !is_taken(Slot(*slot))).map(Slot)
}

fn read(entry: &Entry) -> Option<Subnet> {
    serde_json::from_slice(&entry.value).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use futures_util::future::join_all;
    use proptest::prelude::*;

    use super::*;
    use crate::model::Mac;
    use crate::store::{EmbeddedStore, Metrics, StoreConfig, TestCluster, open};

    const TTL: Duration = Duration::from_secs(10);
    const SLOT: Slot = Slot(7);

    fn embedded() -> Arc<dyn Store> {
        Arc::new(EmbeddedStore::open(None, Duration::from_secs(5), Metrics::default()).unwrap())
    }

    fn blue() -> NetworkName {
        NetworkName::new("blue").unwrap()
    }

    fn node(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    fn of(name: &str, address: &str) -> Subnet {
        let (address, mac) = (address.parse().unwrap(), Mac([2, 0, 0, 0, 0, 1]));
        Subnet { node: node(name), address, mac, in_use: false, link: None, unknown: BTreeMap::new() }
    }

    #[tokio::test]
    async fn of_two_that_race_for_a_subnet_one_gets_it_and_the_other_is_told_who() {
        let (store, network) = (embedded(), blue());
        let session = store.open_session(TTL).await.unwrap();
        let (a, b) = (of("a", "192.0.2.1"), of("b", "192.0.2.2"));
        let (first, second) = tokio::join!(
            claim(&*store, &session, &network, SLOT, &a),
            claim(&*store, &session, &network, SLOT, &b)
        );
        let outcomes = [first.unwrap(), second.unwrap()];
        let (winner, loser) =
            if outcomes[0] == Claimed::Done { (a, &outcomes[1]) } else { (b, &outcomes[0]) };
        assert_eq!(*loser, Claimed::Taken(Some(winner.node.clone())));
        assert_eq!(list(&*store, &network).await.unwrap(), BTreeMap::from([(SLOT, Some(winner))]));
    }

    #[tokio::test]
    async fn a_node_that_comes_back_takes_over_its_own_and_outlives_its_earlier_session() {
        let (store, network, mut subnet) = (embedded(), blue(), of("a", "192.0.2.1"));
        let before = store.open_session(TTL).await.unwrap();
        assert_eq!(claim(&*store, &before, &network, SLOT, &subnet).await.unwrap(), Claimed::Done);
        let after = store.open_session(TTL).await.unwrap();
        subnet.mac = Mac([2, 0, 0, 0, 0, 2]);
        assert_eq!(claim(&*store, &after, &network, SLOT, &subnet).await.unwrap(), Claimed::Done);
        store.close_session(before).await.unwrap();
        let held = list(&*store, &network).await.unwrap();
        assert_eq!(held, BTreeMap::from([(SLOT, Some(subnet))]));
        store.close_session(after).await.unwrap();
        assert_eq!(list(&*store, &network).await.unwrap(), BTreeMap::new());
    }

    #[tokio::test]
    async fn a_namesake_at_another_address_takes_nothing_over() {
        let (store, network) = (embedded(), blue());
        let session = store.open_session(TTL).await.unwrap();
        claim(&*store, &session, &network, SLOT, &of("a", "192.0.2.1")).await.unwrap();
        let outcome = claim(&*store, &session, &network, SLOT, &of("a", "192.0.2.9")).await.unwrap();
        assert_eq!(outcome, Claimed::Taken(Some(node("a"))));
    }

    #[tokio::test]
    async fn a_subnet_is_given_back_by_its_node_and_by_no_other() {
        let (store, network) = (embedded(), blue());
        let session = store.open_session(TTL).await.unwrap();
        claim(&*store, &session, &network, SLOT, &of("a", "192.0.2.1")).await.unwrap();
        assert_eq!(release(&*store, &network, SLOT, &node("b")).await.unwrap(), Released::Kept);
        assert_eq!(release(&*store, &network, SLOT, &node("a")).await.unwrap(), Released::Done);
        assert_eq!(release(&*store, &network, SLOT, &node("a")).await.unwrap(), Released::Kept);
    }

    #[tokio::test]
    async fn a_subnet_whose_record_cannot_be_read_is_left_alone() {
        let (store, network) = (embedded(), blue());
        let session = store.open_session(TTL).await.unwrap();
        store.put(&Key::Subnet(network.clone(), SLOT).path(), b"{".to_vec(), None).await.unwrap();
        let outcome = claim(&*store, &session, &network, SLOT, &of("a", "192.0.2.1")).await.unwrap();
        assert_eq!(outcome, Claimed::Taken(None));
        assert_eq!(release(&*store, &network, SLOT, &node("a")).await.unwrap(), Released::Kept);
        assert_eq!(list(&*store, &network).await.unwrap(), BTreeMap::from([(SLOT, None)]));
    }

    /// What each node of a fleet does when all start at once and none knows of another: how many claims that took it.
    async fn settle(store: &dyn Store, session: &Session, number: u32, slots: u32) -> usize {
        let (network, subnet) = (blue(), of(&format!("node-{number}"), "192.0.2.1"));
        let mut taken = BTreeSet::new();
        loop {
            let slot = choose(&subnet.node, &network, slots, |slot| taken.contains(&slot), None).unwrap();
            if claim(store, session, &network, slot, &subnet).await.unwrap() == Claimed::Done {
                return taken.len() + 1;
            }
            taken.insert(slot);
        }
    }

    /// A thousand nodes and a thousand and twenty-four slots: the last ones find hardly any free.
    async fn a_thousand_nodes_settle(store: Arc<dyn Store>, within: Duration) {
        const NODES: u32 = 1000;
        let session = store.open_session(TTL).await.unwrap();
        let began = Instant::now();
        let attempts = join_all((0..NODES).map(|number| settle(&*store, &session, number, 1024))).await;
        let took = began.elapsed();
        let held = list(&*store, &blue()).await.unwrap();
        let nodes: BTreeSet<NodeName> = held.values().flatten().map(|subnet| subnet.node.clone()).collect();
        println!(
            "{took:?}: {} claims, at most {:?} of a node",
            attempts.iter().sum::<usize>(),
            attempts.iter().max()
        );
        assert_eq!((held.len(), nodes.len()), (1000, 1000));
        assert!(took < within, "{took:?}");
    }

    #[tokio::test]
    async fn a_thousand_nodes_that_start_at_once_hold_a_thousand_subnets_within_seconds() {
        a_thousand_nodes_settle(embedded(), Duration::from_secs(20)).await;
    }

    #[tokio::test]
    async fn a_thousand_nodes_settle_as_well_over_etcd() {
        let Some(cluster) = TestCluster::start(1) else { return };
        cluster.ready().await;
        // A thousand nodes share one client here.
        let patient =
            StoreConfig { request_timeout: Duration::from_secs(30), ..StoreConfig::new(cluster.url()) };
        let store = open(&patient, &Metrics::default()).unwrap();
        a_thousand_nodes_settle(store, Duration::from_secs(60)).await;
    }

    #[test]
    fn the_first_choice_never_changes() {
        let first = |name: &str| choose(&node(name), &blue(), 256, |_| false, None);
        assert_eq!([first("a"), first("b")], [Some(Slot(175)), Some(Slot(166))]);
    }

    #[test]
    fn nodes_that_start_at_once_seldom_want_the_same() {
        let wants = |number: u32| choose(&node(&format!("node-{number}")), &blue(), 65_536, |_| false, None);
        let wanted: BTreeSet<_> = (0..1000).map(wants).collect();
        assert!(wanted.len() > 980, "{}", wanted.len());
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_free_and_the_preferred_one_if_that_is(
            name in "[a-z]{1,6}", slots in 0..300_u32, taken in proptest::collection::btree_set(0..300_u32, 0..300), preferred in proptest::option::of(0..400_u32),
        ) {
            let is_taken = |slot: Slot| taken.contains(&slot.0);
            match choose(&node(&name), &blue(), slots, is_taken, preferred.map(Slot)) {
                Some(slot) => {
                    prop_assert!(slot.0 < slots && !is_taken(slot));
                    let could = preferred.is_some_and(|slot| slot < slots && !taken.contains(&slot));
                    prop_assert!(!could || Some(slot.0) == preferred);
                }
                None => prop_assert!((0..slots).all(|slot| taken.contains(&slot))),
            }
        }
    }
}
