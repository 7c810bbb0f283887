//! What a service's answers are made of, put together once a change instead of once a query.
//!
//! Made when it is asked for first, of the snapshot that the catalog has at that moment; so an answer is never older than the
//! catalog, and a change costs the services that somebody asks for. Whoever answers keeps a shelf of its own, so that finding
//! something is one look into a table whose places hold all that most answers need: where there are many names, memory is
//! what a look costs.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::Name;
use rand::{Rng, RngExt};
use smallvec::{Array, SmallVec};
use synapse::catalog::{Service, Subscription};

use super::lookup::Group;
use super::{Zone, none_serves, pick};
use crate::dns::config::Place;
use crate::dns::ttls::Ttl;

/// The answers' parts, laid out by how often they are wanted: a question for addresses costs a cache line of this, one for targets two.
#[derive(Debug)]
#[repr(C)]
pub(in crate::dns) struct Prepared {
    /// It is made as of so many changes of the nodes, whose names are in `targets`.
    nodes: u64,
    /// How long what is said of its endpoints may be kept.
    pub(in crate::dns) ttl: Ttl,
    /// How long its virtual addresses may be kept, if it has any and wants to be answered by them.
    pub(in crate::dns) virtual_ttl: Option<Ttl>,
    /// Nobody serves, which there is more to be said about.
    pub(in crate::dns) is_out: bool,
    /// It is a name outside the mesh.
    pub(in crate::dns) is_external: bool,
    pub(in crate::dns) v4: Steps<[[u8; 4]; 4]>,
    /// None where `virtual_ttl` is none.
    pub(in crate::dns) vips: SmallVec<[IpAddr; 1]>,
    pub(in crate::dns) v6: Steps<[[u8; 16]; 1]>,
    pub(in crate::dns) targets: Steps<[PreparedTarget; 2]>,
}

#[cfg(target_pointer_width = "64")]
const _: () = {
    use std::mem::offset_of;

    assert!(offset_of!(Prepared, vips) == CACHE_LINE);
    // As a table has them.
    assert!(
        offset_of!((Label, Prepared), 1) == CACHE_LINE && size_of::<(Label, Prepared)>() == 4 * CACHE_LINE
    );
};

/// Of the processors that this runs on, as a rule.
#[cfg(target_pointer_width = "64")]
const CACHE_LINE: usize = 64;

/// Some of a kind, the nearest first. In which order those stand that are equally near has no meaning.
pub(in crate::dns) struct Steps<A: Array> {
    /// As many as the array has stand with the rest of what is prepared, so that they cost no further look into memory.
    all: SmallVec<A>,
    /// Where each distance ends.
    ends: [u32; Place::FAR as usize + 1],
}

impl<A: Array<Item: fmt::Debug>> fmt::Debug for Steps<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steps").field("all", &self.all).field("ends", &self.ends).finish()
    }
}

impl<A: Array> Default for Steps<A> {
    fn default() -> Self {
        Self { all: SmallVec::new(), ends: Default::default() }
    }
}

impl<A: Array> Steps<A> {
    /// Behind the others; none that is farther away is there already.
    fn push(&mut self, step: u8, one: A::Item) {
        self.all.push(one);
        let end = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.ends[usize::from(step)..].fill(end);
    }

    pub(in crate::dns) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many of them an answer of at most so many has.
    pub(in crate::dns) fn count(&self, most: usize) -> usize {
        self.all.len().min(most)
    }

    /// At most `most`, the nearest first, in turn of those that are equally near. Tells how many.
    pub(in crate::dns) fn pick<'a>(
        &'a self,
        most: usize,
        rng: &mut impl Rng,
        mut each: impl FnMut(&'a A::Item),
    ) -> usize {
        let (mut left, mut begin) = (most, 0);
        for end in self.ends.map(|end| end as usize) {
            let step = &self.all[begin..end];
            let start = if step.len() > 1 { rng.random_range(0..step.len()) } else { 0 };
            let (before, from) = step.split_at(start);
            from.iter().chain(before).take(left).for_each(&mut each);
            left -= step.len().min(left);
            begin = end;
        }
        most - left
    }
}

/// Where a client is to connect.
#[derive(Debug)]
pub(in crate::dns) struct PreparedTarget {
    pub(in crate::dns) weight: u16,
    pub(in crate::dns) port: u16,
    /// The same one for all that are there.
    pub(in crate::dns) host: Arc<PreparedHost>,
}

/// Where targets are.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(in crate::dns) struct PreparedHost {
    /// As octets, without the domain.
    pub(in crate::dns) name: Box<[u8]>,
    pub(in crate::dns) address: IpAddr,
}

/// Hosts that are named, each once: many services are on few.
type Hosts = HashSet<Arc<PreparedHost>>;

fn known(host: PreparedHost, hosts: &mut Hosts) -> Arc<PreparedHost> {
    if let Some(known) = hosts.get(&host) {
        return Arc::clone(known);
    }
    let host = Arc::new(host);
    hosts.insert(Arc::clone(&host));
    host
}

/// What is prepared, by the services' names.
#[derive(Debug)]
pub(in crate::dns) struct Shelf {
    zone: Arc<Zone>,
    /// What is here holds as of the last look at what has changed.
    ready: HashMap<Label, Prepared>,
    hosts: Hosts,
    changed: Subscription,
    /// How many changes of the catalog have been looked at.
    changes: u64,
    /// How many of its nodes.
    nodes: u64,
}

/// A label of a name; zero behind its octets, which may be zero themselves. What stands behind it in a table begins a cache line.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(align(64))]
struct Label {
    length: u8,
    octets: [u8; Self::LONGEST],
}

impl Label {
    /// RFC 1035 section 2.3.4.
    const LONGEST: usize = 63;

    fn new(label: &[u8]) -> Option<Self> {
        let mut octets = [0; Self::LONGEST];
        octets.get_mut(..label.len())?.copy_from_slice(label);
        Some(Self { length: u8::try_from(label.len()).ok()?, octets })
    }

    fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }

    fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(self.as_bytes()).ok()
    }
}

impl Hash for Label {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.as_bytes());
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

impl Shelf {
    pub(in crate::dns) fn new(zone: Arc<Zone>) -> Self {
        let mut changed = zone.catalog.subscribe();
        // What is there already: nothing is made of it yet.
        drop(changed.take());
        Self { zone, ready: HashMap::new(), hosts: Hosts::new(), changed, changes: 0, nodes: 0 }
    }

    /// Lets go of what has changed until now. To be called when queries have come, before they are answered.
    pub(in crate::dns) fn renew(&mut self) {
        let catalog = &self.zone.catalog;
        let changes = catalog.changes();
        if self.changes == changes {
            return;
        }
        for name in self.changed.take() {
            if let Some(label) = Label::new(name.as_str().as_bytes()) {
                self.ready.remove(&label);
            }
        }
        (self.changes, self.nodes) = (changes, catalog.node_changes());
    }

    /// What the answers of the service of this name are made of, if there is one.
    pub(in crate::dns) fn service(&mut self, name: &[u8]) -> Option<&Prepared> {
        let label = Label::new(name)?;
        let known = match self.ready.entry(label) {
            Entry::Occupied(known) if known.get().nodes == self.nodes => return Some(known.into_mut()),
            entry => entry,
        };
        let service = self.zone.catalog.service(label.as_str()?)?;
        let prepared = self.zone.prepare(&service, self.nodes, &mut self.hosts);
        Some(known.insert_entry(prepared).into_mut())
    }

    /// Lets go of what nothing needs any more.
    pub(in crate::dns) fn tidy(&mut self) {
        self.hosts.retain(|host| Arc::strong_count(host) > 1);
    }
}

impl Zone {
    fn prepare(&self, service: &Service, nodes: u64, hosts: &mut Hosts) -> Prepared {
        let (mut v4, mut v6, mut seen) = (Steps::default(), Steps::default(), HashSet::new());
        let (mut targets, mut named) = (Steps::default(), HashSet::new());
        for endpoint in self.rules.wanted(&service.endpoints, &Group::All, &mut rand::rng()) {
            let instance = &endpoint.instance;
            let address = instance.address.to_canonical();
            let step = self.rules.place.distance(instance);
            if instance.has_ports() && seen.insert(address) {
                match address {
                    IpAddr::V4(ip) => v4.push(step, ip.octets()),
                    IpAddr::V6(ip) => v6.push(step, ip.octets()),
                }
            }
            let Some(target) = pick::target(endpoint, None) else { continue };
            if !named.insert((target.address, target.port)) {
                continue;
            }
            let host = PreparedHost { name: self.host(&target).octets(), address: target.address };
            let host = known(host, hosts);
            targets.push(step, PreparedTarget { weight: target.weight, port: target.port, host });
        }
        let has_vip = service.settings.wants_vip() && !service.vips.is_empty();
        Prepared {
            nodes,
            ttl: self.ttls.service(&service.name),
            virtual_ttl: has_vip.then(|| self.ttls.virtual_address(&service.name)),
            vips: service.vips.iter().copied().filter(|_| has_vip).collect(),
            v4,
            v6,
            targets,
            is_out: none_serves(service, &Group::All).is_some(),
            is_external: service.settings.external.is_some(),
        }
    }
}

/// A name as it stands in a message, uncompressed.
pub(in crate::dns) fn octets(name: &Name) -> Box<[u8]> {
    // A label has at most 63 octets.
    let labels = name.iter().flat_map(|label| {
        std::iter::once(u8::try_from(label.len()).unwrap_or(0)).chain(label.iter().copied())
    });
    labels.chain([0]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_nearest_come_first_and_each_once(counts in proptest::array::uniform3(0..6usize), most in 0..20usize) {
            let mut steps = Steps::<[(u8, usize); 2]>::default();
            for (step, count) in (0u8..).zip(counts) {
                (0..count).for_each(|number| steps.push(step, (step, number)));
            }
            let mut picked = Vec::new();
            let count = steps.pick(most, &mut rand::rng(), |one| picked.push(*one));
            prop_assert_eq!((picked.len(), steps.count(most)), (count, count));
            prop_assert_eq!(count, counts.iter().sum::<usize>().min(most));
            prop_assert!(picked.is_sorted_by_key(|(step, _)| *step));
            prop_assert_eq!(picked.iter().collect::<HashSet<_>>().len(), count);
        }
    }
}
