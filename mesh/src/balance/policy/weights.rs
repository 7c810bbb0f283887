//! Weights laid end to end: which member does a number below their sum fall on?
//!
//! The common divisor is taken out, so that equal weights are 1 each and a turn through all is as short as it can be. A
//! guide, one entry a member, leads to the neighbourhood; there the search is binary: O(1) where weights are alike,
//! O(log n) where they are not.

use super::Member;
use crate::balance::walk::gcd;

/// The largest sum: positions and their products with it fit 64 bits.
const MAX_TOTAL: u64 = 1 << 32;

/// The line of weights.
#[derive(Debug)]
pub(super) struct Weights {
    /// Where each member ends; empty where all weights are equal.
    ends: Box<[u64]>,
    guide: Box<[u32]>,
    total: u64,
}

impl Weights {
    pub(super) fn new(members: &[Member]) -> Self {
        Self::of(&members.iter().map(|member| u64::from(member.weight.max(1))).collect::<Vec<_>>())
    }

    pub(super) fn of(weights: &[u64]) -> Self {
        let divisor = weights.iter().copied().fold(0, gcd).max(1);
        let sum: u64 = weights.iter().map(|weight| weight / divisor).sum();
        if sum == weights.len() as u64 {
            return Self { ends: Box::default(), guide: Box::default(), total: sum };
        }
        // Too long a line is scaled down; nobody vanishes.
        let shrink = sum.div_ceil(MAX_TOTAL - weights.len() as u64).max(1);
        let mut end = 0;
        let ends: Box<[u64]> = weights
            .iter()
            .map(|weight| {
                end += (weight / divisor / shrink).max(1);
                end
            })
            .collect();
        let guide = (0..=ends.len() as u64)
            .map(|at| {
                let position = at * end / ends.len() as u64;
                u32::try_from(ends.partition_point(|end| *end <= position)).unwrap_or(u32::MAX)
            })
            .collect();
        Self { ends, guide, total: end }
    }

    /// The sum; 0 for no members.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The member that a position below the sum falls on.
    pub(super) fn at(&self, position: u64) -> usize {
        if self.ends.is_empty() {
            return usize::try_from(position).unwrap_or(usize::MAX);
        }
        let near = usize::try_from(position * self.ends.len() as u64 / self.total).unwrap_or(usize::MAX);
        let from = self.guide.get(near).map_or(0, |at| *at as usize);
        let to =
            self.guide.get(near + 1).map_or(self.ends.len(), |at| (*at as usize + 1).min(self.ends.len()));
        from + self.ends[from..to].partition_point(|end| *end <= position)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_member_has_as_many_positions_as_its_weight(weights in proptest::collection::vec(1..500u64, 1..60)) {
            let line = Weights::of(&weights);
            let mut hits = vec![0u64; weights.len()];
            (0..line.total()).for_each(|position| hits[line.at(position)] += 1);
            for (hit, weight) in hits.iter().zip(&weights) {
                prop_assert_eq!(hit * weights.iter().sum::<u64>(), weight * line.total());
            }
        }

        #[test]
        fn the_heaviest_and_the_most_members_fit(count in 1..200_000usize) {
            let line = Weights::of(&[vec![65_535; count], vec![1]].concat());
            prop_assert!(line.total() <= MAX_TOTAL);
            prop_assert_eq!(line.at(line.total() - 1), count);
            prop_assert_eq!(line.at(0), 0);
        }
    }
}
