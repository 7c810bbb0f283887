//! Ring hashing: endpoints stand at many points of a circle, a client goes to the next point after its own (Karger and
//! others, 1997; Ketama). Less even than Maglev's table, and a change of one endpoint moves its own share and nothing
//! else.
//!
//! The number of points of an endpoint follows from its weight and a scale that is a power of two, so that a change of
//! one endpoint does not move the points of all others: only where the mean weight or the number of endpoints crosses a
//! power of two are they laid out anew.

use super::{Ask, Choice, Member, Policy, Standing};
use crate::balance::hash;

/// The least points an endpoint of mean weight has; the most are twice as many.
const POINTS: f64 = 100.0;
/// The most points of a ring: 12 MiB.
const MAX_POINTS: f64 = 1_048_576.0;

/// Points in the order of their places.
#[derive(Debug)]
pub(super) struct Ring {
    places: Box<[u64]>,
    members: Box<[u32]>,
}

impl Ring {
    pub(super) fn new(members: &[Member]) -> Self {
        Self::of(&members.iter().map(|m| (m.endpoint.hash(), m.weight)).collect::<Vec<_>>())
    }

    fn of(shares: &[(u64, u32)]) -> Self {
        let sum: f64 = shares.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let scale = scale(sum, shares.len());
        let mut points: Vec<(u64, u32)> = Vec::new();
        for (at, (hash, weight)) in (0u32..).zip(shares) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most MAX_POINTS")]
            let count = (f64::from(*weight) * scale).round().max(1.0) as u64;
            points.extend((0..count).map(|number| (hash::mix(*hash ^ hash::mix(number + 1)), at)));
        }
        points.sort_unstable();
        Self {
            places: points.iter().map(|(place, _)| *place).collect(),
            members: points.iter().map(|(_, at)| *at).collect(),
        }
    }
}

/// Points for each unit of weight: the power of two that gives the mean endpoint at least [`POINTS`], and fewer only
/// where the ring would be too large.
fn scale(sum: f64, count: usize) -> f64 {
    if count == 0 {
        return 1.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2⁵²")]
    let mean = sum / count as f64;
    let wanted = (POINTS / mean).log2().ceil();
    let possible = (MAX_POINTS / sum).log2().floor();
    wanted.min(possible).exp2()
}

impl Policy for Ring {
    fn choose(&self, members: &[Member], ask: &Ask<'_>) -> Choice {
        let start = self.places.partition_point(|place| *place < ask.client);
        let mut none = Choice::Nobody;
        let mut cold = None;
        // Each point that is passed over is of an endpoint that cannot be had; they come in no order, so after a few
        // times their number all others have been seen. Bounded all the same by going round once.
        for point in (start..self.members.len()).chain(0..start.min(self.members.len())) {
            let at = self.members[point] as usize;
            let Some(Member { endpoint, .. }) = members.get(at) else { continue };
            match ask.standing(endpoint) {
                Standing::Out => {}
                Standing::Full => none = Choice::Full,
                Standing::Free if !ask.is_warm_for_client(endpoint) => cold = cold.or(Some(at)),
                Standing::Free if ask.take(endpoint) => return Choice::Taken(at),
                Standing::Free => {}
            }
        }
        match cold {
            Some(at) if ask.take(&members[at].endpoint) => Choice::Taken(at),
            _ => none,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::super::tests::World;
    use super::*;

    fn shares(weights: &[u32]) -> Vec<(u64, u32)> {
        let hash = |at: usize| hash::bytes(format!("web-{at}").as_bytes(), 0);
        weights.iter().enumerate().map(|(at, weight)| (hash(at), *weight)).collect()
    }

    fn points(shares: &[(u64, u32)]) -> HashSet<(u64, u64)> {
        let ring = Ring::of(shares);
        ring.places.iter().zip(&ring.members).map(|(place, at)| (*place, shares[*at as usize].0)).collect()
    }

    #[test]
    fn a_change_of_one_moves_its_own_share_and_nothing_else() {
        let all = shares(&[100; 50]);
        let (before, after) = (points(&all), points(&all[..49]));
        assert!(after.is_subset(&before));
        assert!(before.difference(&after).all(|(_, hash)| *hash == all[49].0));
    }

    #[test]
    fn clients_are_spread_by_weight_and_stay_where_they_are() {
        let world = World::new(&[100, 100, 200]);
        let policy = Ring::new(&world.members);
        let clients = || (0..20_000).map(hash::mix);
        let hits = world.count(&policy, clients());
        for (hits, share) in hits.iter().zip([0.25, 0.25, 0.5]) {
            assert!((f64::from(*hits) / 20_000.0 / share - 1.0).abs() < 0.25, "{hits} for {share}");
        }
        assert_eq!(world.count(&policy, clients()), hits);
    }

    #[test]
    fn a_client_whose_endpoint_is_out_goes_to_the_next_and_comes_back() {
        let world = World::new(&[100; 5]);
        let policy = Ring::new(&world.members);
        let picks = || (0..200).map(|client| world.pick(&policy, hash::mix(client))).collect::<Vec<_>>();
        let before = picks();
        world.eject(2);
        let during = picks();
        for (before, during) in before.iter().zip(&during) {
            assert!(*before == 2 && *during != 2 || before == during);
        }
        assert_eq!(during, picks());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_ring_is_never_too_large_and_leaves_nobody_out(weights in proptest::collection::vec(1..65_536u32, 1..3000)) {
            let ring = Ring::of(&shares(&weights));
            prop_assert!(ring.places.len() as f64 <= MAX_POINTS + weights.len() as f64);
            prop_assert_eq!(ring.members.iter().collect::<HashSet<_>>().len(), weights.len());
        }
    }
}
