//! What a service's answers are made of, put together once a change instead of once a query.
//!
//! Made when it is asked for first, of the snapshot that the catalog has at that moment; so an answer is never older than the
//! catalog, and a change costs the services that somebody asks for.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::Name;
use nerve::model::ServiceName;
use rand::{Rng, RngExt};
use synapse::catalog::Service;

use super::lookup::Group;
use super::{Zone, none_serves, pick};
use crate::dns::config::Place;
use crate::dns::ttls::Ttl;

/// The answers' parts.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::dns) struct Prepared {
    /// Of the service.
    generation: u64,
    /// Of the nodes, whose names are in `targets`.
    nodes: u64,
    /// How long what is said of its endpoints may be kept.
    pub(in crate::dns) ttl: Ttl,
    /// How long its virtual address may be kept.
    pub(in crate::dns) virtual_ttl: Ttl,
    pub(in crate::dns) v4: Steps<[u8; 4]>,
    pub(in crate::dns) v6: Steps<[u8; 16]>,
    pub(in crate::dns) targets: Steps<PreparedTarget>,
    /// The hosts of the targets: their names, as octets without the domain, and their addresses.
    pub(in crate::dns) hosts: Box<[(Box<[u8]>, IpAddr)]>,
    /// Nobody serves, which there is more to be said about.
    pub(in crate::dns) is_out: bool,
}

/// Some of a kind, the nearest first. In which order those stand that are equally near has no meaning.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::dns) struct Steps<T> {
    all: Vec<T>,
    /// Where each distance ends.
    ends: [usize; Place::FAR as usize + 1],
}

impl<T> Default for Steps<T> {
    fn default() -> Self {
        Self { all: Vec::new(), ends: Default::default() }
    }
}

impl<T> Steps<T> {
    /// Behind the others; none that is farther away is there already.
    fn push(&mut self, step: u8, one: T) {
        self.all.push(one);
        self.ends[usize::from(step)..].fill(self.all.len());
    }

    pub(in crate::dns) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many of them an answer of at most so many has.
    pub(in crate::dns) fn count(&self, most: usize) -> usize {
        self.all.len().min(most)
    }

    /// At most `most`, the nearest first, in turn of those that are equally near. Tells how many.
    pub(in crate::dns) fn pick(&self, most: usize, rng: &mut impl Rng, mut each: impl FnMut(&T)) -> usize {
        let (mut left, mut begin) = (most, 0);
        for end in self.ends {
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
#[derive(Debug, PartialEq, Eq)]
pub(in crate::dns) struct PreparedTarget {
    pub(in crate::dns) weight: u16,
    pub(in crate::dns) port: u16,
    /// Among the hosts.
    pub(in crate::dns) host: usize,
}

/// What is prepared, by the services' names.
pub(super) type Shelf = papaya::HashMap<ServiceName, Arc<Prepared>>;

impl Zone {
    /// What the answers of a service are made of.
    pub(in crate::dns) fn prepared(&self, service: &Service) -> Arc<Prepared> {
        let nodes = self.catalog.node_changes();
        let shelf = self.shelf.pin();
        if let Some(prepared) = shelf.get(&service.name)
            && prepared.generation == service.generation
            && prepared.nodes == nodes
        {
            return Arc::clone(prepared);
        }
        let prepared = Arc::new(self.prepare(service, nodes));
        shelf.insert(service.name.clone(), Arc::clone(&prepared));
        prepared
    }

    /// Lets go of what was prepared for services that are gone.
    pub(in crate::dns) fn tidy(&self) {
        let shelf = self.shelf.pin();
        if shelf.len() > self.catalog.service_count() {
            shelf.retain(|name, _| self.catalog.service(name.as_str()).is_some());
        }
    }

    fn prepare(&self, service: &Service, nodes: u64) -> Prepared {
        let (mut v4, mut v6, mut seen) = (Steps::default(), Steps::default(), HashSet::new());
        let (mut targets, mut named) = (Steps::default(), HashSet::new());
        let (mut hosts, mut places) = (Vec::new(), HashMap::<Box<[u8]>, usize>::new());
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
            let name = self.host(&target).octets();
            let host = *places.entry(name.clone()).or_insert_with(|| {
                hosts.push((name, target.address));
                hosts.len() - 1
            });
            targets.push(step, PreparedTarget { weight: target.weight, port: target.port, host });
        }
        Prepared {
            generation: service.generation,
            nodes,
            ttl: self.ttls.service(&service.name),
            virtual_ttl: self.ttls.virtual_address(&service.name),
            v4,
            v6,
            targets,
            hosts: hosts.into(),
            is_out: none_serves(service, &Group::All).is_some(),
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
            let mut steps = Steps::default();
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
