//! Zones: how much of the traffic stays in the node's own one.
//!
//! As Envoy does with priorities: the own zone is taken to have 1.4 times the capacity it needs, so it keeps all traffic
//! until fewer than 71 % of its weight are available; what is then too much spills over to the other zones.

/// Capacity in percent of what is needed; Envoy's overprovisioning factor.
const OVERPROVISIONING: u64 = 140;

/// The percentage of connections that stays in the own zone: `min(100, 140 × available / all)`, weights of its endpoints.
pub(super) fn share(available: u64, all: u64) -> u32 {
    let share = (OVERPROVISIONING * available).checked_div(all).unwrap_or(0);
    u32::try_from(share.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_stays_until_capacity_is_short() {
        for (available, all, expected) in
            [(0, 0, 0), (0, 300, 0), (300, 300, 100), (72, 100, 100), (50, 100, 70), (1, 10, 14)]
        {
            assert_eq!(share(available, all), expected, "{available} of {all}");
        }
    }

    proptest! {
        #[test]
        fn more_capacity_never_keeps_less(available in 0..10_000u64, all in 1..10_000u64) {
            prop_assert!(share(available, all) <= share(available + 1, all));
            prop_assert!(share(available, all) <= 100);
        }
    }
}
