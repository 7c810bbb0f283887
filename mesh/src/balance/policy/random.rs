//! Random, by weight. Needs nothing shared, not even a counter.

use super::weights::Weights;
use super::{Ask, Choice, Member, Policy, propose};
use crate::balance::rng;

#[derive(Debug)]
pub(super) struct Random(Weights);

impl Random {
    pub(super) fn new(members: &[Member]) -> Self {
        Self(Weights::new(members))
    }

    pub(super) fn next(&self) -> usize {
        self.0.at(rng::below(self.0.total()))
    }
}

impl Policy for Random {
    fn choose(&self, members: &[Member], ask: &Ask<'_>) -> Choice {
        propose(members, ask, |endpoint| ask.is_warm(endpoint), |_| self.next())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::World;
    use super::*;

    #[test]
    fn shares_are_as_the_weights() {
        let world = World::new(&[1, 2, 7]);
        let policy = Random::new(&world.members);
        let hits = world.count(&policy, (0..50_000).map(|_| 0));
        // Six standard deviations of a binomial distribution: once in 500 million runs.
        for (hits, share) in hits.iter().zip([0.1f64, 0.2, 0.7]) {
            let (mean, deviation) = (50_000.0 * share, (50_000.0 * share * (1.0 - share)).sqrt());
            assert!((f64::from(*hits) - mean).abs() < 6.0 * deviation, "{hits} for {share}");
        }
    }
}
