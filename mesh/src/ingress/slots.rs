//! The listeners that are wanted, each open or not, and the balancers that they share.
//!
//! Counts are kept with each change, so that neither a metric nor the closing of one listener looks at ten thousand.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use nerve::model::{Address, PortName, Protocol, ServiceName};

use super::desired::Holder;
use super::{ListenerKind, ListenerState, ListenerStatus};
use crate::balance::Balancer;
use crate::proxy::Listener;

/// One address on which something is to listen.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SlotKey {
    pub(super) kind: ListenerKind,
    pub(super) protocol: Protocol,
    pub(super) address: Address,
}

impl SlotKey {
    /// The IP address, if it is one.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.address.ip().map(|address| address.ip())
    }

    /// The port, if it has one.
    pub(super) fn port(&self) -> Option<NonZeroU16> {
        self.address.ip().and_then(|address| NonZeroU16::new(address.port()))
    }
}

/// How it stands with a slot.
#[derive(Debug)]
pub(super) enum State {
    Open(Listener),
    Held(String),
    Failed(String),
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) holder: Holder,
    pub(super) state: State,
    /// Its failure is in the log.
    pub(super) said: bool,
    /// It is not tried before: who had it may be followed by another one.
    pub(super) not_before: Option<Instant>,
}

/// Every slot, and every balancer that one leads to.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: BTreeMap<SlotKey, Slot>,
    published: HashMap<(Protocol, NonZeroU16), BTreeSet<SlotKey>>,
    /// The addresses on which a port is open.
    listening: HashMap<(Protocol, NonZeroU16), HashSet<IpAddr>>,
    open: usize,
    held: usize,
    failed: usize,
    balancers: HashMap<ServiceName, BTreeMap<Route, InUse>>,
}

/// Which balancer of a service: by target, and whether for the instances of this node only.
type Route = (Option<PortName>, bool);

#[derive(Debug)]
struct InUse {
    balancer: Arc<Balancer>,
    slots: usize,
}

impl Slots {
    pub(super) fn get(&self, key: &SlotKey) -> Option<&Slot> {
        self.slots.get(key)
    }

    /// Puts a slot where none is; its [balancer](Self::balancer) was asked for before.
    pub(super) fn insert(&mut self, key: SlotKey, slot: Slot) {
        match slot.state {
            State::Open(_) => {
                self.open += 1;
                if let Some((port, ip)) = key.port().zip(key.ip()) {
                    self.listening.entry((key.protocol, port)).or_default().insert(ip);
                }
            }
            State::Held(_) => self.held += 1,
            State::Failed(_) => self.failed += 1,
        }
        let route = (slot.holder.target.clone(), slot.holder.local);
        if let Some(used) = self.balancers.get_mut(&slot.holder.service).and_then(|of| of.get_mut(&route)) {
            used.slots += 1;
        }
        if key.kind == ListenerKind::Published
            && let Some(port) = key.port()
        {
            self.published.entry((key.protocol, port)).or_default().insert(key.clone());
        }
        self.slots.insert(key, slot);
    }

    /// Takes a slot out, and its balancer if no other slot leads to it.
    pub(super) fn remove(&mut self, key: &SlotKey) -> Option<Slot> {
        let slot = self.slots.remove(key)?;
        match slot.state {
            State::Open(_) => {
                self.open -= 1;
                self.no_longer_listens(key);
            }
            State::Held(_) => self.held -= 1,
            State::Failed(_) => self.failed -= 1,
        }
        let port = key.port().map(|port| (key.protocol, port));
        if key.kind == ListenerKind::Published
            && let Some(port) = port
            && let Some(keys) = self.published.get_mut(&port)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.published.remove(&port);
            }
        }
        let Holder { service, target, local, .. } = &slot.holder;
        let left = self.balancers.get_mut(service).is_some_and(|of_service| {
            let route = (target.clone(), *local);
            if let Some(used) = of_service.get_mut(&route) {
                used.slots = used.slots.saturating_sub(1);
                if used.slots == 0 {
                    of_service.remove(&route);
                }
            }
            !of_service.is_empty()
        });
        if !left {
            self.balancers.remove(service);
        }
        Some(slot)
    }

    fn no_longer_listens(&mut self, key: &SlotKey) {
        let Some((port, ip)) = key.port().map(|port| (key.protocol, port)).zip(key.ip()) else { return };
        if let Some(addresses) = self.listening.get_mut(&port) {
            addresses.remove(&ip);
            if addresses.is_empty() {
                self.listening.remove(&port);
            }
        }
    }

    /// Is the port open on other addresses, and neither on this one nor, where this is a wildcard, on another wildcard? Then
    /// a socket there stands beside the others, and each gets what is meant for it.
    pub(super) fn stands_beside(&self, key: &SlotKey) -> bool {
        const WILDCARDS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let Some((port, own)) = key.port().map(|port| (key.protocol, port)).zip(key.ip()) else {
            return false;
        };
        let taken_by = |others: &HashSet<IpAddr>| match own.is_unspecified() {
            true => WILDCARDS.iter().any(|ip| others.contains(ip)),
            false => others.contains(&own),
        };
        self.listening.get(&port).is_some_and(|others| !taken_by(others))
    }

    /// The one balancer that all slots of this holder share; `make` makes it where there is none.
    pub(super) fn balancer(&mut self, holder: &Holder, make: impl FnOnce() -> Balancer) -> Arc<Balancer> {
        let of_service = self.balancers.entry(holder.service.clone()).or_default();
        let route = (holder.target.clone(), holder.local);
        let used = of_service.entry(route).or_insert_with(|| InUse { balancer: Arc::new(make()), slots: 0 });
        Arc::clone(&used.balancer)
    }

    /// The balancers of a service; `true`: for the instances of this node only.
    pub(super) fn balancers(&self, service: &ServiceName) -> Vec<(Arc<Balancer>, bool)> {
        let of_service = self.balancers.get(service).into_iter().flatten();
        of_service.map(|((_, local), used)| (Arc::clone(&used.balancer), *local)).collect()
    }

    /// Every balancer.
    pub(super) fn all_balancers(&self) -> Vec<Arc<Balancer>> {
        self.balancers.values().flat_map(BTreeMap::values).map(|used| Arc::clone(&used.balancer)).collect()
    }

    /// The slots of a published port, on whatever addresses.
    pub(super) fn published_on(&self, protocol: Protocol, port: NonZeroU16) -> Vec<SlotKey> {
        self.published.get(&(protocol, port)).into_iter().flatten().cloned().collect()
    }

    /// The slots that could not be opened and may be tried again, each with who is to have it.
    pub(super) fn closed(&self) -> Vec<(SlotKey, Holder)> {
        let now = Instant::now();
        let is_due = |slot: &Slot| slot.not_before.is_none_or(|then| then <= now);
        let closed = self.waiting().filter(|(_, slot)| is_due(slot));
        closed.map(|(key, slot)| (key.clone(), slot.holder.clone())).collect()
    }

    /// The slots that are not open and that no instance has.
    fn waiting(&self) -> impl Iterator<Item = (&SlotKey, &Slot)> {
        let any = (self.failed + self.held > 0).then_some(&self.slots);
        let is_open = |slot: &Slot| matches!(slot.state, State::Open(_));
        any.into_iter().flatten().filter(move |(_, slot)| !is_open(slot) && slot.holder.occupied.is_none())
    }

    /// When the first of those that are not to be tried yet may be.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting().filter_map(|(_, slot)| slot.not_before).min()
    }

    /// Somebody else says from now on why the slot is there; it leads where it did.
    pub(super) fn rename(&mut self, key: &SlotKey, holder: &Holder) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.holder = holder.clone();
        }
    }

    /// The open slots that no client finds any more, each with who has it.
    pub(super) fn lost(&self) -> Vec<(SlotKey, Holder)> {
        let lost = self.slots.iter().filter(|(key, slot)| match &slot.state {
            // Only files can be taken away: of ten thousand ports none is looked at.
            State::Open(listener) => matches!(key.address, Address::Unix(_)) && !listener.can_be_found(),
            State::Held(_) | State::Failed(_) => false,
        });
        lost.map(|(key, slot)| (key.clone(), slot.holder.clone())).collect()
    }

    /// How many listen, how many somebody else serves, and how many are to listen and cannot.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.open, self.held, self.failed)
    }

    /// What each slot is up to, in the order of kind, transport and address.
    pub(super) fn statuses(&self, of: impl Fn(&Slot) -> bool) -> Vec<ListenerStatus> {
        self.slots.iter().filter(|(_, slot)| of(slot)).map(|(key, slot)| status(key, slot)).collect()
    }

    /// Every listener that is open.
    pub(super) fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.slots.values().filter_map(|slot| match &slot.state {
            State::Open(listener) => Some(listener),
            State::Held(_) | State::Failed(_) => None,
        })
    }

    /// Takes every listener out. The balancers stay: connections that are open may need them still.
    pub(super) fn take_listeners(&mut self) -> Vec<Listener> {
        (self.open, self.held, self.failed) = (0, 0, 0);
        self.published.clear();
        self.listening.clear();
        let slots = std::mem::take(&mut self.slots);
        let open = slots.into_values().filter_map(|slot| match slot.state {
            State::Open(listener) => Some(listener),
            State::Held(_) | State::Failed(_) => None,
        });
        open.collect()
    }
}

fn status(key: &SlotKey, slot: &Slot) -> ListenerStatus {
    ListenerStatus {
        service: slot.holder.service.clone(),
        target: slot.holder.target.clone(),
        local: slot.holder.local,
        address: key.address.clone(),
        protocol: key.protocol,
        kind: key.kind,
        state: match &slot.state {
            State::Open(listener) => ListenerState::Open { connections: listener.connections() },
            State::Held(by) => ListenerState::Held { by: by.clone() },
            State::Failed(error) => ListenerState::Failed { error: error.clone() },
        },
    }
}
