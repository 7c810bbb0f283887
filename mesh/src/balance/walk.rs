//! A number line walked evenly: the order in which shares get their turns, without state but one counter.

/// Steps that are compared: the nearest to the golden section that will do.
const CANDIDATES: usize = 16;

/// A walk over all positions below a number that visits each once a round, and at any time has been everywhere about
/// equally often: steps of the golden section (the three-gap theorem), adjusted to share no factor with the number.
#[derive(Debug)]
pub(super) struct Walk {
    total: u64,
    step: u64,
}

impl Walk {
    /// For `total` positions, at most 2³².
    pub(super) fn new(total: u64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a positive number below 2³², about"
        )]
        let golden = (total as f64 * 0.618_033_988_749_895).round() as u64;
        let near = (0..total).flat_map(|off| [golden.saturating_sub(off), golden + off]);
        let coprime = near.filter(|step| gcd(*step, total) == 1).take(CANDIDATES);
        Self { total, step: coprime.min_by_key(|step| quotients(*step, total)).unwrap_or(1) }
    }

    /// Over a hundred positions.
    pub(super) const fn percent() -> Self {
        Self { total: 100, step: 61 }
    }

    /// How many positions there are.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The position of turn `turn`.
    pub(super) fn at(&self, turn: u64) -> u64 {
        if self.total == 0 { 0 } else { turn % self.total * self.step % self.total }
    }
}

/// The sum of the partial quotients of `step / total` as a continued fraction: what bounds how uneven a walk is at worst
/// (Niederreiter, «Random Number Generation and Quasi-Monte Carlo Methods», section 3.1). The golden section has the least.
fn quotients(step: u64, total: u64) -> u64 {
    let (mut a, mut b, mut sum) = (total, step, 0);
    while b > 0 {
        sum += a / b;
        (a, b) = (b, a % b);
    }
    sum
}

/// The greatest common divisor.
pub(super) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percent_is_the_walk_over_a_hundred() {
        let walk = Walk::new(100);
        assert!((0..100).all(|turn| Walk::percent().at(turn) == walk.at(turn)), "{walk:?}");
    }

    proptest! {
        #[test]
        fn a_walk_goes_everywhere_once_a_round(total in 1..5000u64) {
            let walk = Walk::new(total);
            let seen: std::collections::HashSet<u64> = (0..total).map(|turn| walk.at(turn)).collect();
            prop_assert!(seen.len() as u64 == total && seen.iter().all(|at| *at < total));
        }
    }
}
