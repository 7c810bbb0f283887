//! Overlay networks, and who holds which subnet of them.
//!
//! Data: one immutable record a network; beside it one map of its subnets, which readers share with the writer. When a
//! thousand nodes join, a thousand subnets change one by one: a snapshot that is copied for each would cost a million
//! entries, one entry of a map costs one. So a reader may see two subnets as they were at two moments, which
//! is no half a change: each of them is a record of its own.
//! A subnet may be known before its network, and after: it waits here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nerve::model::{Network, NetworkName, Slot, Subnet};

use super::subscription::{Subscribers, Subscription};

/// One network as it is now.
#[derive(Debug, Clone)]
pub struct NetworkView {
    /// Its name.
    pub name: NetworkName,
    /// What holds for it on every node.
    pub network: Arc<Network>,
    /// Which node holds which part of it.
    pub subnets: Subnets,
}

/// The subnets of a network that nodes hold. Live: what is read twice may differ. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Subnets(Arc<papaya::HashMap<Slot, Held>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    subnet: Arc<Subnet>,
    unconfirmed: bool,
}

impl Subnets {
    /// Who holds this one.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<Arc<Subnet>> {
        self.0.pin().get(&slot).map(|held| Arc::clone(&held.subnet))
    }

    /// All of them, in the order of their numbers.
    #[must_use]
    pub fn all(&self) -> Vec<(Slot, Arc<Subnet>)> {
        let mut all: Vec<_> =
            self.0.pin().iter().map(|(slot, held)| (*slot, Arc::clone(&held.subnet))).collect();
        all.sort_unstable_by_key(|(slot, _)| *slot);
        all
    }

    /// Does the store no longer confirm this one (it was cut off, wiped, or restored)? It is kept for a grace period.
    #[must_use]
    pub fn is_unconfirmed(&self, slot: Slot) -> bool {
        self.0.pin().get(&slot).is_some_and(|held| held.unconfirmed)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Does no node hold any?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What has changed of networks, by their names: those that came and went included.
pub type NetworkChanges = BTreeMap<NetworkName, NetworkChange>;

/// What has changed of one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkChange {
    /// Its record: it came, went, or is another one. Its subnets may have been there before.
    pub record: bool,
    /// Subnets whose holder came, went, changed, or is no longer confirmed.
    pub slots: BTreeSet<Slot>,
}

/// One change of a network in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkUpdate {
    /// It appeared or changed.
    Put(Arc<Network>),
    /// It is gone.
    Remove,
    /// A node holds a subnet, or what it says about it changed.
    PutSubnet(Slot, Arc<Subnet>),
    /// The store no longer lists a subnet, for a reason that is not its own: keep it, marked.
    UnconfirmSubnet(Slot),
    /// Nobody holds a subnet any more.
    RemoveSubnet(Slot),
}

/// Every network. Reads take no lock; one writer at a time calls [`Networks::apply`].
#[derive(Debug, Default)]
pub(super) struct Networks {
    views: papaya::HashMap<NetworkName, Arc<NetworkView>>,
    /// Of networks that are not known as well.
    subnets: papaya::HashMap<NetworkName, Subnets>,
    /// Kept with each change, so that a metric need not count them.
    held: AtomicUsize,
    subscribers: Subscribers<NetworkChanges>,
}

impl Networks {
    pub(super) fn get(&self, name: &str) -> Option<Arc<NetworkView>> {
        self.views.pin().get(name).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<NetworkView>> {
        let mut views: Vec<_> = self.views.pin().values().cloned().collect();
        views.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        views
    }

    pub(super) fn len(&self) -> usize {
        self.views.len()
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The subnets of every network, of those that are not known as well, in no order.
    pub(super) fn subnets(&self) -> Vec<(NetworkName, Subnets)> {
        self.subnets.pin().iter().map(|(name, subnets)| (name.clone(), subnets.clone())).collect()
    }

    /// The subnets of a network, whether it is known or not.
    pub(super) fn subnets_of(&self, name: &str) -> Option<Subnets> {
        self.subnets.pin().get(name).cloned()
    }

    pub(super) fn subscribe(&self) -> Subscription<NetworkChanges> {
        // Registered before anything is read: what appears in between is reported twice, never missed.
        let subscription = self.subscribers.add();
        for view in self.all() {
            let held = view.subnets.all();
            subscription.mark(|changes| {
                let change = changes.entry(view.name.clone()).or_default();
                change.record = true;
                change.slots.extend(held.iter().map(|(slot, _)| *slot));
            });
        }
        subscription
    }

    /// Applies one change; what says nothing new is told to nobody.
    pub(super) fn apply(&self, name: &NetworkName, update: NetworkUpdate) {
        match update {
            NetworkUpdate::Put(network) => {
                let views = self.views.pin();
                if views.get(name).is_none_or(|view| *view.network != *network) {
                    let subnets = self.subnets_or_none_yet(name);
                    views
                        .insert(name.clone(), Arc::new(NetworkView { name: name.clone(), network, subnets }));
                    self.tell(name, None);
                }
            }
            NetworkUpdate::Remove => {
                if self.views.pin().remove(name).is_some() {
                    self.forget_unless_held(name);
                    self.tell(name, None);
                }
            }
            NetworkUpdate::PutSubnet(slot, subnet) => {
                let (subnets, held) = (self.subnets_or_none_yet(name), Held { subnet, unconfirmed: false });
                let subnets = subnets.0.pin();
                if subnets.get(&slot) != Some(&held) {
                    let is_new = subnets.insert(slot, held).is_none();
                    self.held.fetch_add(usize::from(is_new), Ordering::Relaxed);
                    self.tell(name, Some(slot));
                }
            }
            NetworkUpdate::UnconfirmSubnet(slot) => {
                let Some(subnets) = self.subnets_of(name.as_str()) else { return };
                let subnets = subnets.0.pin();
                if let Some(held) = subnets.get(&slot).filter(|held| !held.unconfirmed) {
                    subnets.insert(slot, Held { unconfirmed: true, ..held.clone() });
                    self.tell(name, Some(slot));
                }
            }
            NetworkUpdate::RemoveSubnet(slot) => {
                let Some(subnets) = self.subnets_of(name.as_str()) else { return };
                if subnets.0.pin().remove(&slot).is_some() {
                    self.held.fetch_sub(1, Ordering::Relaxed);
                    self.forget_unless_held(name);
                    self.tell(name, Some(slot));
                }
            }
        }
    }

    fn subnets_or_none_yet(&self, name: &NetworkName) -> Subnets {
        self.subnets.pin().get_or_insert_with(name.clone(), Subnets::default).clone()
    }

    /// Of a network that is not known, nothing is kept but its subnets.
    fn forget_unless_held(&self, name: &NetworkName) {
        let is_empty = self.subnets.pin().get(name).is_some_and(Subnets::is_empty);
        if is_empty && !self.views.pin().contains_key(name) {
            self.subnets.pin().remove(name);
        }
    }

    fn tell(&self, name: &NetworkName, slot: Option<Slot>) {
        self.subscribers.mark(|changes| {
            let change = changes.entry(name.clone()).or_default();
            change.record |= slot.is_none();
            change.slots.extend(slot);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Catalog, Change, Writer};
    use super::*;

    fn blue() -> NetworkName {
        NetworkName::new("blue").unwrap()
    }

    fn network(vni: u32) -> NetworkUpdate {
        let json = serde_json::json!({"vni": vni, "pools": [{"cidr": "10.42.0.0/16", "subnet_length": 24}]});
        NetworkUpdate::Put(Arc::new(serde_json::from_value(json).unwrap()))
    }

    fn subnet(slot: u32, node: &str) -> NetworkUpdate {
        let json = serde_json::json!({"node": node, "address": "192.0.2.1", "mac": "02:00:00:00:00:01"});
        NetworkUpdate::PutSubnet(Slot(slot), Arc::new(serde_json::from_value(json).unwrap()))
    }

    fn apply<const N: usize>(writer: &mut Writer, updates: [NetworkUpdate; N]) {
        writer.apply(updates.map(|update| Change::Network(blue(), update)));
    }

    fn changed(record: bool, slots: &[u32]) -> NetworkChanges {
        let slots = slots.iter().map(|slot| Slot(*slot)).collect();
        NetworkChanges::from([(blue(), NetworkChange { record, slots })])
    }

    #[test]
    fn a_subnet_waits_for_its_network_and_outlives_it() {
        let (catalog, mut writer) = Catalog::new();
        apply(&mut writer, [subnet(7, "a")]);
        assert!(catalog.network("blue").is_none() && catalog.subnet_count() == 1);
        apply(&mut writer, [network(1)]);
        let view = catalog.network("blue").unwrap();
        assert_eq!(view.subnets.get(Slot(7)).unwrap().node.as_str(), "a");
        apply(&mut writer, [NetworkUpdate::Remove]);
        assert!(catalog.network("blue").is_none() && catalog.subnet_count() == 1);
        apply(&mut writer, [network(2), NetworkUpdate::RemoveSubnet(Slot(7)), NetworkUpdate::Remove]);
        assert_eq!((catalog.network_count(), catalog.subnet_count(), catalog.subnets().len()), (0, 0, 0));
    }

    #[test]
    fn a_view_is_live_and_a_change_of_a_subnet_copies_no_other() {
        let (catalog, mut writer) = Catalog::new();
        apply(&mut writer, [network(1), subnet(1, "a"), subnet(2, "b")]);
        let view = catalog.network("blue").unwrap();
        let before = view.subnets.get(Slot(1)).unwrap();
        apply(&mut writer, [subnet(2, "c"), subnet(3, "d")]);
        assert!(Arc::ptr_eq(&view, &catalog.network("blue").unwrap()));
        assert!(Arc::ptr_eq(&before, &view.subnets.get(Slot(1)).unwrap()));
        let all = view.subnets.all();
        let all: Vec<_> = all.iter().map(|(slot, subnet)| (slot.0, subnet.node.as_str())).collect();
        assert_eq!(all, [(1, "a"), (2, "c"), (3, "d")]);
        apply(&mut writer, [network(2)]);
        assert_eq!(catalog.network("blue").unwrap().subnets.len(), 3);
    }

    #[test]
    fn a_kept_subnet_is_confirmed_by_the_next_put() {
        let (catalog, mut writer) = Catalog::new();
        apply(&mut writer, [network(1), subnet(1, "a"), NetworkUpdate::UnconfirmSubnet(Slot(1))]);
        let subnets = &catalog.network("blue").unwrap().subnets;
        assert!(subnets.is_unconfirmed(Slot(1)) && subnets.get(Slot(1)).is_some());
        apply(&mut writer, [subnet(1, "a")]);
        assert!(!subnets.is_unconfirmed(Slot(1)));
    }

    #[tokio::test]
    async fn a_subscription_reports_what_is_there_then_each_change_once_and_nothing_that_is_none() {
        let (catalog, mut writer) = Catalog::new();
        apply(&mut writer, [network(1), subnet(1, "a"), subnet(2, "b")]);
        let mut subscription = catalog.subscribe_networks();
        assert_eq!(subscription.changed().await, changed(true, &[1, 2]));
        apply(&mut writer, [network(1), subnet(1, "a"), NetworkUpdate::RemoveSubnet(Slot(9))]);
        apply(&mut writer, [subnet(2, "c"), subnet(2, "d"), NetworkUpdate::RemoveSubnet(Slot(1))]);
        assert_eq!(subscription.changed().await, changed(false, &[1, 2]));
        apply(
            &mut writer,
            [NetworkUpdate::UnconfirmSubnet(Slot(2)), NetworkUpdate::UnconfirmSubnet(Slot(2))],
        );
        assert_eq!(subscription.changed().await, changed(false, &[2]));
        apply(&mut writer, [NetworkUpdate::Remove, NetworkUpdate::Remove]);
        assert_eq!(subscription.changed().await, changed(true, &[]));
    }
}
