//! Round robin: each in turn, by weight.
//!
//! Smooth and exact without a lock: the turn is one counter, and the line of weights is walked in steps of the golden
//! section, which visits every position once a round. Weights 5, 1, 1 come as `a a a b a c a`, where the usual smooth
//! algorithm (nginx's) needs the state of all endpoints changed together for it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::weights::Weights;
use super::{Ask, Choice, Member, Policy, propose};
use crate::balance::walk::Walk;

#[derive(Debug)]
pub(super) struct RoundRobin {
    turn: AtomicU64,
    weights: Weights,
    /// None where all weights are equal: then it is the order of the members.
    walk: Option<Walk>,
}

impl RoundRobin {
    pub(super) fn new(members: &[Member], turn: u64) -> Self {
        let weights = Weights::new(members);
        let walk = (weights.total() != members.len() as u64).then(|| Walk::new(weights.total()));
        Self { turn: AtomicU64::new(turn), weights, walk }
    }

    /// The member whose turn it is. One whose turn is lost (it is ejected, or full) is followed by the next turn, so that
    /// its share falls on all others and not on its neighbour.
    pub(super) fn next(&self) -> usize {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let position = match &self.walk {
            Some(walk) => walk.at(turn),
            None => turn.checked_rem(self.weights.total()).unwrap_or(0),
        };
        self.weights.at(position)
    }
}

impl Policy for RoundRobin {
    fn choose(&self, members: &[Member], ask: &Ask<'_>) -> Choice {
        propose(members, ask, |endpoint| ask.is_warm(endpoint), |_| self.next())
    }

    fn turn(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{World, all_at_once};
    use super::*;

    #[test]
    fn weights_are_met_exactly_and_smoothly() {
        let world = World::new(&[5, 1, 1]);
        let policy = RoundRobin::new(&world.members, 0);
        let order: Vec<usize> = (0..14).map(|_| world.pick(&policy, 0)).collect();
        assert_eq!(order, [0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0]);
    }

    proptest! {
        #[test]
        fn shares_are_exact_over_a_round(weights in proptest::collection::vec(1..60u32, 1..12)) {
            let world = World::new(&weights);
            let policy = RoundRobin::new(&world.members, 0);
            let total = policy.weights.total();
            let hits = world.count(&policy, (0..total * 3).map(|_| 0));
            let sum: u32 = weights.iter().sum();
            for (hits, weight) in hits.iter().zip(&weights) {
                prop_assert_eq!(*hits as u64 * u64::from(sum), u64::from(*weight) * total * 3);
            }
        }

        #[test]
        fn at_no_time_is_an_endpoint_far_from_its_share(weights in proptest::collection::vec(1..60u32, 2..8)) {
            let world = World::new(&weights);
            let policy = RoundRobin::new(&world.members, 0);
            let sum: u32 = weights.iter().sum();
            let mut hits = vec![0u32; weights.len()];
            for picked in 1..500u32 {
                hits[world.pick(&policy, 0)] += 1;
                for (hits, weight) in hits.iter().zip(&weights) {
                    let due = f64::from(picked) * f64::from(*weight) / f64::from(sum);
                    prop_assert!((f64::from(*hits) - due).abs() < 3.5, "{hits} of {due} after {picked}");
                }
            }
        }

        #[test]
        fn what_an_ejected_endpoint_does_not_get_is_shared_by_all_others(count in 3..20usize, out in 0..20usize) {
            let world = World::new(&vec![100; count]);
            let policy = RoundRobin::new(&world.members, 0);
            world.eject(out % count);
            let hits = world.count(&policy, (0..(count as u64 - 1) * 50).map(|_| 0));
            for (at, hits) in hits.iter().enumerate() {
                prop_assert_eq!(*hits, if at == out % count { 0 } else { 50 });
            }
        }
    }

    #[test]
    fn threads_at_the_same_time_share_the_turns() {
        let world = World::new(&[3, 2, 1]);
        let policy = RoundRobin::new(&world.members, 0);
        let hits = all_at_once(4, 6000, || world.pick(&policy, 0));
        assert_eq!(hits, [12_000, 8_000, 4_000]);
    }
}
