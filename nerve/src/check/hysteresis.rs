//! When a check changes its mind: so many probes in a row, never one.
//!
//! Pure: no clock, no task. It is told each probe's result and the age of the check, and answers with the health.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Progress;
use crate::model::Health;

/// The verdict of one check over its probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hysteresis {
    rise: NonZeroU32,
    fall: NonZeroU32,
    start_period: Duration,
    progress: Progress,
}

impl Hysteresis {
    /// A check that begins with this: nothing seen unless an earlier life's is carried over.
    #[must_use]
    pub fn new(rise: NonZeroU32, fall: NonZeroU32, start_period: Duration, begin: Progress) -> Self {
        Self { rise, fall, start_period, progress: begin }
    }

    /// The verdict so far, and what speaks against it.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Takes in one probe's result; `age` is how long the check has been running.
    ///
    /// While starting, failures younger than the start period do not count towards `fall`; a success counts
    /// always. `rise` successes in a row make it passing, `fall` failures in a row critical.
    pub fn observe(&mut self, healthy: bool, age: Duration) -> Health {
        let progress = &mut self.progress;
        if healthy != progress.last_healthy {
            progress.streak = 0;
        }
        progress.last_healthy = healthy;
        let in_grace = progress.health == Health::Starting && age < self.start_period;
        let (needed, verdict) = match healthy {
            true => (self.rise, Health::Passing),
            false if in_grace => return progress.health,
            false => (self.fall, Health::Critical),
        };
        progress.streak = progress.streak.saturating_add(1);
        if progress.streak >= needed.get() {
            progress.health = verdict;
        }
        progress.health
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hysteresis(rise: u32, fall: u32, start_period: u64, initial: Health) -> Hysteresis {
        let count = |n| NonZeroU32::new(n).unwrap();
        Hysteresis::new(count(rise), count(fall), Duration::from_secs(start_period), Progress::new(initial))
    }

    const LATER: Duration = Duration::from_secs(1000);

    #[test]
    fn a_new_check_passes_after_rise_successes() {
        let mut check = hysteresis(2, 3, 0, Health::Starting);
        assert_eq!(check.observe(true, LATER), Health::Starting);
        assert_eq!(check.observe(false, LATER), Health::Starting);
        assert_eq!(check.observe(true, LATER), Health::Starting);
        assert_eq!(check.observe(true, LATER), Health::Passing);
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_but_a_success_does() {
        let mut check = hysteresis(1, 1, 10, Health::Starting);
        for second in 0..10 {
            assert_eq!(check.observe(false, Duration::from_secs(second)), Health::Starting);
        }
        assert_eq!(check.clone().observe(false, Duration::from_secs(10)), Health::Critical);
        assert_eq!(check.observe(true, Duration::from_secs(5)), Health::Passing);
        assert_eq!(check.observe(false, Duration::from_secs(6)), Health::Critical, "it had started");
    }

    proptest! {
        #[test]
        fn the_verdict_flips_exactly_after_enough_results_in_a_row(
            rise in 1u32..6,
            fall in 1u32..6,
            start in prop::sample::select(vec![Health::Passing, Health::Critical, Health::Starting]),
            results in prop::collection::vec(any::<bool>(), 0..200),
        ) {
            let mut check = hysteresis(rise, fall, 0, start);
            let mut expected = start;
            for (index, &healthy) in results.iter().enumerate() {
                let row = results[..=index].iter().rev().take_while(|&&r| r == healthy).count();
                if healthy && row >= rise as usize {
                    expected = Health::Passing;
                } else if !healthy && row >= fall as usize {
                    expected = Health::Critical;
                }
                prop_assert_eq!(check.observe(healthy, LATER), expected);
            }
        }

        #[test]
        fn it_never_becomes_critical_in_its_start_period(results in prop::collection::vec(any::<bool>(), 0..50)) {
            let mut check = hysteresis(60, 1, 100, Health::Starting);
            for (second, healthy) in results.into_iter().enumerate() {
                prop_assert_eq!(check.observe(healthy, Duration::from_secs(second as u64)), Health::Starting);
            }
        }
    }
}
