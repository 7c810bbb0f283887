//! Which endpoints an answer names: the best that there are (`Rank`), the nearest first, each address once, at most so many, in a random order.
//!
//! A service may have thousands of endpoints and an answer names eight: the walk starts anywhere, goes by a random
//! stride that meets each endpoint once, and stops when the answer is full. So an answer costs its own length, not the
//! service's, allocates nothing for those it leaves out, and each serving endpoint is as likely to come first.

use std::net::IpAddr;

use hickory_proto::rr::RecordType;
use nerve::model::{Health, NodeName, PortName};
use rand::{Rng, RngExt};
use smallvec::SmallVec;
use synapse::catalog::{Endpoint, Reason};

use super::lookup::Group;
use crate::dns::config::Place;

/// Where a client is to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) node: NodeName,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) weight: u16,
}

/// The numbers below `n`, each once, in a random order.
pub(super) fn walk<R: Rng>(n: usize, rng: &mut R) -> impl Iterator<Item = usize> + Clone + use<R> {
    let (start, stride) = match n {
        0 | 1 => (0, 1),
        n => {
            // Two numbers are coprime six times in ten, so this ends after a step or two; one always is.
            let mut stride = rng.random_range(1..n);
            while gcd(stride, n) != 1 {
                stride = rng.random_range(1..n);
            }
            (rng.random_range(0..n), stride)
        }
    };
    (0..n).scan(start, move |at, _| {
        let here = *at;
        *at = (here + stride) % n;
        Some(here)
    })
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// How an answer is made up.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// What warns counts less than what passes.
    pub(super) only_passing: bool,
    /// Where all fail, all are named.
    pub(super) panics: bool,
    pub(super) place: Place,
}

/// How good an endpoint is for an answer: only the best that there are stand in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Regular,
    Backup,
    Warning,
    /// A check of it fails. When all fail, it is likelier that a check is wrong than that everything is broken at once, as
    /// the balancer has it.
    Critical,
}

impl Rules {
    fn rank(&self, endpoint: &Endpoint) -> Option<Rank> {
        match endpoint.excluded() {
            None if self.only_passing && endpoint.instance.health == Health::Warning => Some(Rank::Warning),
            None if endpoint.instance.backup => Some(Rank::Backup),
            None => Some(Rank::Regular),
            Some(Reason::Critical) => self.panics.then_some(Rank::Critical),
            Some(_) => None,
        }
    }

    /// The best rank in a group.
    fn best(&self, endpoints: &[Endpoint], group: &Group) -> Option<Rank> {
        let mut best = None;
        for endpoint in endpoints.iter().filter(|endpoint| group.has(endpoint)) {
            let rank = self.rank(endpoint).filter(|_| endpoint.instance.has_ports());
            if rank.is_some() && (best.is_none() || rank < best) {
                best = rank;
            }
            if best == Some(Rank::Regular) {
                break;
            }
        }
        best
    }

    /// Those that an answer may name: the nearest first, in a random order of those that are equally near.
    pub(super) fn wanted<'a, R: Rng>(
        &'a self,
        endpoints: &'a [Endpoint],
        group: &'a Group,
        rng: &mut R,
    ) -> impl Iterator<Item = &'a Endpoint> + use<'a, R> {
        let best = self.best(endpoints, group);
        let is_wanted =
            move |endpoint: &&Endpoint| best.is_some() && self.rank(endpoint) == best && group.has(endpoint);
        // A node that stands nowhere is as near to all.
        let steps = if self.place.is_known() { 0..=Place::FAR } else { Place::FAR..=Place::FAR };
        let (known, walked) = (self.place.is_known(), walk(endpoints.len(), rng));
        steps.flat_map(move |step| {
            walked
                .clone()
                .map(|at| &endpoints[at])
                .filter(is_wanted)
                .filter(move |endpoint| !known || self.place.distance(&endpoint.instance) == step)
        })
    }
}

/// At most `most` addresses of the family that `kind` (A or AAAA) names.
pub(super) fn addresses(
    (endpoints, group, rules): (&[Endpoint], &Group, &Rules),
    kind: RecordType,
    most: usize,
    rng: &mut impl Rng,
) -> SmallVec<[IpAddr; 8]> {
    let mut picked = SmallVec::new();
    for endpoint in rules.wanted(endpoints, group, rng) {
        if picked.len() >= most {
            break;
        }
        if !endpoint.instance.has_ports() {
            continue;
        }
        let ip = endpoint.instance.address.to_canonical();
        if ip.is_ipv4() == (kind == RecordType::A) && !picked.contains(&ip) {
            picked.push(ip);
        }
    }
    picked
}

/// At most `most` address–port pairs: of the port of that name, or of the main port.
pub(super) fn targets(
    (endpoints, group, rules): (&[Endpoint], &Group, &Rules),
    port: Option<&PortName>,
    most: usize,
    rng: &mut impl Rng,
) -> Vec<Target> {
    let mut picked: Vec<Target> = Vec::new();
    for endpoint in rules.wanted(endpoints, group, rng) {
        if picked.len() >= most {
            break;
        }
        let Some(target) = target(endpoint, port) else { continue };
        if !picked.iter().any(|t| (t.address, t.port) == (target.address, target.port)) {
            picked.push(target);
        }
    }
    picked
}

/// Where an endpoint's port of that name is, or its main one; `None`: it has none.
pub(super) fn target(endpoint: &Endpoint, port: Option<&PortName>) -> Option<Target> {
    let instance = &endpoint.instance;
    let number = match port {
        None => instance.port,
        Some(name) => instance.ports.get(name).copied(),
    };
    Some(Target {
        node: instance.node.clone(),
        address: instance.address.to_canonical(),
        port: number?.get(),
        weight: instance.weight.0.get(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_walk_meets_each_once(n in 0..300usize) {
            let mut met: Vec<_> = walk(n, &mut rand::rng()).collect();
            met.sort_unstable();
            prop_assert_eq!(met, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_start_is_as_likely() {
        let mut first = [0_u32; 10];
        for _ in 0..20_000 {
            first[walk(10, &mut rand::rng()).next().unwrap()] += 1;
        }
        // 2000 ± 45 is one deviation; ten of them never happen.
        assert!(first.iter().all(|n| (1550..2450).contains(n)), "{first:?}");
    }
}
