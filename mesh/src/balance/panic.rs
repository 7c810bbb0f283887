//! The panic threshold: with too few endpoints available, all are balanced over, since those that are left would be
//! overrun, and since it is likelier that a check or a rule is wrong than that nearly everything is broken at once.

/// What there must be enough of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needed {
    /// A share of so many endpoints.
    Of(u32),
    /// One: somebody stands in for those that fail.
    One,
}

impl Needed {
    /// Are fewer than `threshold` percent available? Never without a threshold, and never of nothing.
    pub(super) fn is_panic(self, available: u32, threshold: u32) -> bool {
        match self {
            Self::Of(total) => u64::from(available) * 100 < u64::from(total) * u64::from(threshold),
            Self::One => available == 0 && threshold > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fewer_than_the_threshold_is_panic() {
        for (available, total, threshold, panic) in [
            (0, 0, 50, false),
            (0, 3, 0, false),
            (0, 3, 1, true),
            (1, 3, 1, false),
            (1, 3, 50, true),
            (5, 10, 50, false),
            (4, 10, 50, true),
            (10, 10, 100, false),
            (9, 10, 100, true),
        ] {
            assert_eq!(
                Needed::Of(total).is_panic(available, threshold),
                panic,
                "{available}/{total} of {threshold} %"
            );
        }
    }

    proptest! {
        #[test]
        fn an_endpoint_more_never_brings_panic(available in 0..1000u32, total in 0..1000u32, threshold in 0..101u32) {
            for needed in [Needed::Of(total), Needed::One] {
                prop_assert!(needed.is_panic(available, threshold) || !needed.is_panic(available + 1, threshold));
            }
        }
    }
}
