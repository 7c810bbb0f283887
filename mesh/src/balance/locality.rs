//! Levels of nearness: how much of the traffic stays in the node's own zone, then in its region.
//!
//! As Envoy does with priorities: a level is taken to have 1.4 times the capacity it needs, so it keeps all that comes to it
//! until fewer than 71 % of its weight are available; what is then too much spills over to the next one. The last takes what is left.

/// Capacity in percent of what is needed; Envoy's overprovisioning factor.
const OVERPROVISIONING: u64 = 140;

/// The endpoints of a level, by their weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Of those that can be had.
    pub(super) available: u64,
    /// Of these, and of those that cannot.
    pub(super) all: u64,
    /// There is somebody to be tried at all.
    pub(super) is_there: bool,
}

/// The percentage of connections that each level gets, the nearest first: `min(what is left, 140 × available / all)`.
pub(super) fn shares<const N: usize>(levels: [Capacity; N]) -> [u32; N] {
    let mut left = 100;
    std::array::from_fn(|at| {
        let is_last = levels[at + 1..].iter().all(|level| !level.is_there);
        let share = match levels[at] {
            Capacity { is_there: false, .. } => 0,
            _ if is_last => left,
            Capacity { available, all, .. } => {
                let share = (OVERPROVISIONING * available).checked_div(all).unwrap_or(0);
                u32::try_from(share).unwrap_or(u32::MAX).min(left)
            }
        };
        left -= share;
        share
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn level((available, all): (u64, u64)) -> Capacity {
        Capacity { available, all, is_there: all > 0 }
    }

    #[test]
    fn all_stays_until_capacity_is_short() {
        for (near, expected) in
            [((0, 0), 0), ((0, 300), 0), ((300, 300), 100), ((72, 100), 100), ((50, 100), 70), ((1, 10), 14)]
        {
            assert_eq!(shares([near, (1, 1)].map(level)), [expected, 100 - expected], "{near:?}");
        }
    }

    #[test]
    fn what_is_too_much_for_a_level_goes_to_the_next_and_the_last_takes_the_rest() {
        for (levels, expected) in [
            ([(1, 2), (2, 2), (1, 1)], [70, 30, 0]),
            ([(1, 2), (1, 10), (1, 1)], [70, 14, 16]),
            ([(0, 2), (0, 2), (0, 9)], [0, 0, 100]),
            ([(1, 2), (1, 10), (0, 0)], [70, 30, 0]),
            ([(1, 2), (0, 0), (0, 0)], [100, 0, 0]),
            ([(0, 0), (0, 0), (0, 0)], [0, 0, 0]),
        ] {
            assert_eq!(shares(levels.map(level)), expected, "{levels:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_more_capacity_never_keeps_less(
            mut levels in proptest::array::uniform3((0..1000u64, 0..1000u64)), at in 0..3usize,
        ) {
            levels = levels.map(|(one, other)| (one.min(other), one.max(other)));
            let before = shares(levels.map(level));
            prop_assert_eq!(before.iter().sum::<u32>(), if levels.iter().any(|level| level.1 > 0) { 100 } else { 0 });
            prop_assert!(before.iter().zip(levels).all(|(share, level)| level.1 > 0 || *share == 0));
            if levels[at].0 < levels[at].1 {
                levels[at].0 += 1;
                let after = shares(levels.map(level));
                prop_assert!(before[..=at].iter().sum::<u32>() <= after[..=at].iter().sum::<u32>());
            }
        }
    }
}
