//! Round robin: each in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Endpoint, Policy};

/// Two turns, so that the share of an endpoint that is not eligible is spread evenly over the others, and not all
/// given to its neighbour.
#[derive(Debug, Default)]
pub(in super::super) struct RoundRobin {
    turn: AtomicUsize,
    substitute_turn: AtomicUsize,
}

impl Policy for RoundRobin {
    fn choose<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        eligible: &dyn Fn(&Endpoint) -> bool,
    ) -> Option<&'a Arc<Endpoint>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let next = endpoints.get(turn.checked_rem(endpoints.len())?)?;
        if eligible(next) {
            return Some(next);
        }
        let candidates = || endpoints.iter().filter(|endpoint| eligible(endpoint));
        let count = candidates().count();
        let turn = self.substitute_turn.fetch_add(1, Ordering::Relaxed);
        candidates().nth(turn.checked_rem(count)?)
    }
}

#[cfg(test)]
mod tests {
    use nerve::model::{InstanceId, NodeName};
    use proptest::prelude::*;

    use super::*;

    fn endpoints(count: usize) -> Vec<Arc<Endpoint>> {
        (0..count)
            .map(|n| {
                let id = InstanceId::new(&n.to_string()).unwrap();
                Arc::new(Endpoint::new(id, NodeName::new("a").unwrap(), ([192, 0, 2, 1], 80).into()))
            })
            .collect()
    }

    proptest! {
        #[test]
        fn every_endpoint_gets_its_share(count in 1..20usize, rounds in 1..20usize) {
            let endpoints = endpoints(count);
            let policy = RoundRobin::default();
            let mut seen = vec![0; count];
            for _ in 0..count * rounds {
                let chosen = policy.choose(&endpoints, &|_| true).unwrap();
                seen[chosen.id().as_str().parse::<usize>().unwrap()] += 1;
            }
            prop_assert!(seen.iter().all(|n| *n == rounds));
        }

        #[test]
        fn the_eligible_share_what_the_others_would_have_had(mask in proptest::collection::vec(any::<bool>(), 1..12)) {
            let endpoints = endpoints(mask.len());
            let policy = RoundRobin::default();
            let index = |e: &Endpoint| e.id().as_str().parse::<usize>().unwrap();
            let mut seen = vec![0_i64; mask.len()];
            let rounds = 60 * mask.len();
            for _ in 0..rounds {
                match policy.choose(&endpoints, &|e| mask[index(e)]) {
                    Some(chosen) => seen[index(chosen)] += 1,
                    None => prop_assert!(!mask.contains(&true)),
                }
            }
            prop_assert!(seen.iter().zip(&mask).all(|(n, eligible)| *eligible || *n == 0));
            let shares: Vec<_> = seen.iter().zip(&mask).filter(|(_, eligible)| **eligible).map(|(n, _)| *n).collect();
            if let (Some(most), Some(least)) = (shares.iter().max(), shares.iter().min()) {
                prop_assert!(most - least <= 1, "{shares:?}");
            }
        }
    }

    #[test]
    fn there_is_none_to_choose_of_none() {
        assert!(RoundRobin::default().choose(&[], &|_| true).is_none());
    }
}
