//! The endpoints of one balancer: replaced whole on a change, with what is known of those that stay.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use nerve::model::{Address, Instance, InstanceId, Locality, NodeName, PortName, Region, Zone};
use synapse::catalog::{Catalog, Endpoint as Listed, Reason, Service};

use super::endpoint::{Endpoint, Excluded, Life};
use super::locality::Capacity;
use super::panic::Needed;
use super::policy::Member;
use super::settings::Settings;
use super::shared::Shared;
use super::snapshot::{Entry, Group, Set, Snapshot, Tier};
use super::walk::Walk;
use super::{locality, split, subset};

/// Where a balancer stands in the fleet: decides nearness and subset.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// This node.
    pub node: Option<NodeName>,
    /// Its region.
    pub region: Option<Region>,
    /// Its zone.
    pub zone: Option<Zone>,
    /// The fleet's nodes.
    pub fleet: Option<Catalog>,
}

impl Place {
    /// How many nodes of the fleet come before this one by name.
    pub(super) fn rank(&self) -> usize {
        let (Some(node), Some(fleet)) = (&self.node, &self.fleet) else { return 0 };
        fleet.nodes().iter().filter(|other| other.name < *node).count()
    }
}

/// One pointer to the snapshot: readers take no lock.
#[derive(Debug)]
pub(super) struct Pool(ArcSwap<Snapshot>);

/// An endpoint whose place in the catalog is another than before.
#[derive(Debug)]
pub(super) enum Change {
    /// It died with its connections.
    Died(Arc<Endpoint>),
    /// It gets nothing new, and what it has goes on.
    Leaves(Arc<Endpoint>),
}

impl Default for Pool {
    fn default() -> Self {
        Self(ArcSwap::from_pointee(Snapshot {
            settings: Arc::default(),
            known: Arc::new([]),
            entries: Box::default(),
            excluded: BTreeMap::new(),
            serving: 0,
            total: 0,
            needed: Needed::Of(0),
            panic: false,
            groups: Box::default(),
            shares: Walk::new(0),
            turn: AtomicU64::new(0),
        }))
    }
}

impl Pool {
    pub(super) fn load(&self) -> Guard<Arc<Snapshot>> {
        self.0.load()
    }

    /// Takes over what the catalog says. Costs the endpoints of this service. Returns who died or leaves.
    pub(super) fn update(
        &self,
        service: Option<&Service>,
        target: Option<&PortName>,
        shared: &Arc<Shared>,
        place: &Place,
    ) -> Vec<Change> {
        let old = self.0.load_full();
        let settings = match service {
            Some(service) if Arc::ptr_eq(&service.settings, &old.settings.service) => {
                Arc::clone(&old.settings)
            }
            Some(service) => Arc::new(Settings::new(&service.settings)),
            None => Arc::default(),
        };
        shared.settings.store(Arc::clone(&settings));
        let addresses_of = |endpoint: &Endpoint| (endpoint.address().clone(), endpoint.datagram_address());
        let mut before: HashMap<(&InstanceId, Addresses), &Entry> = old
            .entries
            .iter()
            .map(|entry| ((entry.endpoint.id(), addresses_of(&entry.endpoint)), entry))
            .collect();
        let mut changes = Vec::new();
        let (mut entries, mut excluded) = (Vec::new(), BTreeMap::new());
        // Those that are there from the beginning are not new: this agent is.
        let may_be_new = old.serving > 0 && settings.slow_start > 0;
        for listed in service.map_or(&[][..], |service| &service.endpoints) {
            let instance = &listed.instance;
            let addresses = match addresses(instance, target, place) {
                Ok(addresses) => addresses,
                Err(reason) => {
                    *excluded.entry(reason).or_default() += 1;
                    continue;
                }
            };
            let key = (&instance.id, addresses);
            let is_registered = listed.watcher.is_none();
            let same = |entry: &&&Entry| entry.endpoint.registered_by().is_some() == is_registered;
            let endpoint = match before.get(&key).filter(same).copied() {
                Some(entry) => {
                    before.remove(&key);
                    Arc::clone(&entry.endpoint)
                }
                None => {
                    let (id, node) = (instance.id.clone(), (instance.node.clone(), is_registered));
                    Arc::new(Endpoint::new(id, node, key.1, Arc::clone(shared)))
                }
            };
            let entry = Entry {
                excluded: listed.excluded().map(Excluded::ByCatalog),
                instance: Arc::clone(instance),
                endpoint,
            };
            entry.excluded.iter().for_each(|reason| *excluded.entry(*reason).or_default() += 1);
            changes.extend(turn_life(&entry, life(listed), may_be_new, shared));
            entries.push(entry);
        }
        for gone in before.into_values() {
            let life = if gone.excluded == Some(Excluded::ByCatalog(Reason::Draining)) {
                Life::Left
            } else {
                Life::Dead
            };
            changes.extend(turn_life(gone, life, false, shared));
            gone.endpoint.outlier.leave(&shared.census);
        }
        self.0.store(Arc::new(snapshot(settings, entries, excluded, &old, shared, place)));
        changes
    }

    /// Makes the tables anew for what is known: an ejection, a rank in the fleet is another than it was.
    pub(super) fn rebuild(&self, shared: &Shared, place: &Place) {
        let old = self.0.load_full();
        let new = snapshot(
            Arc::clone(&old.settings),
            old.entries.to_vec(),
            old.excluded.clone(),
            &old,
            shared,
            place,
        );
        self.0.store(Arc::new(new));
    }
}

/// Where to connect to an instance, and where to send datagrams to.
type Addresses = (Address, Option<SocketAddr>);

/// On its own node an instance is connected to by its unix socket, which is its main port's.
fn addresses(instance: &Instance, target: Option<&PortName>, place: &Place) -> Result<Addresses, Excluded> {
    let ip = match target {
        None => instance.socket_addr(),
        Some(port) => instance.named_socket_addr(port),
    };
    let is_near = target.is_none() && place.node.as_ref() == Some(&instance.node);
    match (instance.socket.as_ref().filter(|_| is_near), ip) {
        (Some(socket), ip) => Ok((Address::Unix(socket.clone()), ip)),
        (None, Some(ip)) => Ok((Address::Ip(ip), Some(ip))),
        (None, None) if target.is_none() => Err(Excluded::ByCatalog(Reason::UnixSocketOnly)),
        (None, None) => Err(Excluded::NoSuchPort),
    }
}

fn life(listed: &Listed) -> Life {
    match listed.excluded() {
        None => Life::Serving,
        Some(Reason::Starting | Reason::Draining | Reason::UnixSocketOnly) => Life::Quiet,
        Some(Reason::Critical) => Life::Dead,
    }
}

/// Moves an endpoint to where it is in its life now.
fn turn_life(entry: &Entry, life: Life, may_be_new: bool, shared: &Shared) -> Option<Change> {
    let endpoint = &entry.endpoint;
    let before = endpoint.lives(life);
    if before == life as u8 {
        return None;
    }
    match life {
        Life::Serving => {
            if may_be_new {
                endpoint.ramp.begin(Shared::now());
            }
            None
        }
        Life::Quiet | Life::Left | Life::Dead => {
            // Its checks decide now; when it comes back it begins anew.
            endpoint.outlier.forget(&shared.census);
            endpoint.ramp.end();
            let endpoint = Arc::clone(endpoint);
            Some(if life == Life::Dead { Change::Died(endpoint) } else { Change::Leaves(endpoint) })
        }
    }
}

fn snapshot(
    settings: Arc<Settings>,
    entries: Vec<Entry>,
    excluded: BTreeMap<Excluded, usize>,
    old: &Snapshot,
    shared: &Shared,
    place: &Place,
) -> Snapshot {
    let count = |wanted: &dyn Fn(&Entry) -> bool| {
        u32::try_from(entries.iter().filter(|entry| wanted(entry)).count()).unwrap_or(u32::MAX)
    };
    let serving = count(&|entry| entry.excluded.is_none());
    let total = serving + count(&|entry| is_critical(entry));
    let needed = needed(&entries);
    let panic = needed.is_panic(serving, settings.panic_threshold);
    shared.census.endpoints.store(if panic { total } else { serving }, Ordering::Relaxed);
    let (used, unused): (Vec<&Entry>, Vec<&Entry>) =
        entries.iter().partition(|entry| entry.excluded.is_none() || panic && is_critical(entry));
    used.iter().for_each(|entry| entry.endpoint.outlier.join(&shared.census));
    unused.iter().for_each(|entry| entry.endpoint.outlier.leave(&shared.census));
    let mut groups: Vec<Group> = split::groups(settings.split.as_ref(), &used)
        .into_iter()
        .map(|(name, share, members)| {
            let before = old.groups.iter().find(|group| group.name == name);
            group(name, share, &members, (&settings, &entries, panic), before, place)
        })
        .collect();
    let mut ends = 0;
    for group in &mut groups {
        ends += if group.sets.iter().all(|set| set.members.is_empty()) { 0 } else { group.share };
        group.ends = ends;
    }
    Snapshot {
        known: entries.iter().map(|entry| Arc::clone(&entry.endpoint)).collect(),
        entries: entries.into(),
        excluded,
        serving,
        total,
        needed,
        panic,
        groups: groups.into(),
        shares: Walk::new(ends.into()),
        turn: AtomicU64::new(old.turn.load(Ordering::Relaxed)),
        settings,
    }
}

/// Backups that are well stand in for all others; those that are not are missed only where there is nobody else.
fn needed(entries: &[Entry]) -> Needed {
    if entries.iter().any(|entry| entry.instance.backup && entry.excluded.is_none()) {
        return Needed::One;
    }
    let wanted: Vec<&Entry> =
        entries.iter().filter(|entry| entry.excluded.is_none() || is_critical(entry)).collect();
    let backups = wanted.iter().filter(|entry| entry.instance.backup).count();
    let needed = if backups < wanted.len() { wanted.len() - backups } else { wanted.len() };
    Needed::Of(u32::try_from(needed).unwrap_or(u32::MAX))
}

fn is_critical(entry: &Entry) -> bool {
    entry.excluded == Some(Excluded::ByCatalog(Reason::Critical))
}

fn group(
    name: Option<String>,
    share: u32,
    used: &[&Entry],
    (settings, all, panic): (&Settings, &[Entry], bool),
    before: Option<&Group>,
    place: &Place,
) -> Group {
    let mut sets: [Vec<&Entry>; Tier::ALL.len()] = Default::default();
    for entry in used {
        sets[tier(&entry.instance, settings, place) as usize].push(entry);
    }
    if settings.subset > 0 {
        for level in Tier::LEVELS {
            let entries = std::mem::take(&mut sets[level as usize]);
            let hashes: Vec<u64> = entries.iter().map(|entry| entry.endpoint.hash()).collect();
            let chosen = subset::subset(&hashes, place.rank(), settings.subset);
            for (entry, chosen) in entries.into_iter().zip(chosen) {
                sets[if chosen { level } else { Tier::Outside } as usize].push(entry);
            }
        }
    }
    let mut levels = Tier::LEVELS.map(|level| capacity(&sets[level as usize]));
    // In panic they are used, and counted with the others.
    let unwell = all.iter().filter(|entry| !panic && is_critical(entry));
    for entry in unwell.filter(|e| split::group_of(settings.split.as_ref(), &e.instance) == name.as_deref()) {
        if let Some(level) = levels.get_mut(tier(&entry.instance, settings, place) as usize) {
            level.all += weight(entry);
        }
    }
    let build = |tier: Tier| {
        let old = before.map(|group| &group.sets[tier as usize]);
        let members = sets[tier as usize].iter().map(|entry| Member {
            endpoint: Arc::clone(&entry.endpoint),
            weight: entry.instance.weight.0.get().into(),
        });
        let members: Vec<Member> = members.collect();
        match old {
            Some(old) if old.is_of(settings.policy, &members) => Arc::clone(old),
            old => Arc::new(Set::new(settings.policy, members, old.map_or(0, |old| old.turn()))),
        }
    };
    Group {
        name,
        share,
        ends: 0,
        levels: locality::shares(levels),
        turn: AtomicU64::new(before.map_or(0, |group| group.turn.load(Ordering::Relaxed))),
        sets: Tier::ALL.map(build),
    }
}

/// Where an endpoint stands, seen from this node; outside of its subset is nobody yet.
fn tier(instance: &Instance, settings: &Settings, place: &Place) -> Tier {
    if instance.backup {
        return Tier::Backup;
    }
    let is_in_region = instance.region == place.region;
    let is_near = match settings.locality {
        Locality::Any => true,
        Locality::PreferZone => is_in_region && instance.zone == place.zone,
        Locality::PreferRegion => is_in_region,
    };
    match (is_near, is_in_region) {
        (true, _) => Tier::Near,
        (false, true) => Tier::Region,
        (false, false) => Tier::Far,
    }
}

fn weight(entry: &Entry) -> u64 {
    entry.instance.weight.0.get().into()
}

/// What the members of a level can carry, before those that are not among them are counted.
fn capacity(members: &[&Entry]) -> Capacity {
    let available = members.iter().filter(|entry| !entry.endpoint.outlier.is_ejected());
    Capacity {
        available: available.map(|entry| weight(entry)).sum(),
        all: members.iter().map(|entry| weight(entry)).sum(),
        is_there: !members.is_empty(),
    }
}
