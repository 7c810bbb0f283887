//! When a check changes its mind: so many probes in a row, never one.
//!
//! Pure: no clock, no task. It is told each probe's result and the age of the check, and answers with the health. Whether it
//! works and whether there is something to look after are two questions with the same rule: `fall` results in a row that
//! are at least as bad change the answer, and `rise` in a row that are better change it back.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Level, Progress};
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
    pub fn observe(&mut self, level: Level, age: Duration) -> Health {
        let healthy = level != Level::Critical;
        let progress = &mut self.progress;
        if healthy != progress.last_healthy {
            progress.streak = 0;
        }
        progress.last_healthy = healthy;
        let starting = progress.health == Health::Starting;
        let (needed, verdict) = match healthy {
            true => (self.rise, Health::Passing),
            false if starting && age < self.start_period => return progress.health(),
            false => (self.fall, Health::Critical),
        };
        progress.streak = progress.streak.saturating_add(1);
        if progress.streak >= needed.get() {
            progress.health = verdict;
        }
        let (warned, warns) = (&mut progress.warned, level >= Level::Warning);
        warned.streak = if warns == warned.last { warned.streak.saturating_add(1) } else { 1 };
        warned.last = warns;
        let needed = if warns { self.fall } else { self.rise };
        // What has just been decided for the first time is as it was seen last.
        if warned.streak >= needed.get() || (starting && progress.health == Health::Passing) {
            warned.verdict = warns;
        }
        progress.health()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Level::{Critical, Passing, Warning};
    use super::*;

    fn hysteresis(rise: u32, fall: u32, start_period: u64, initial: Health) -> Hysteresis {
        let count = |n| NonZeroU32::new(n).unwrap();
        Hysteresis::new(count(rise), count(fall), Duration::from_secs(start_period), Progress::new(initial))
    }

    const LATER: Duration = Duration::from_secs(1000);

    #[test]
    fn a_new_check_passes_after_rise_successes() {
        let mut check = hysteresis(2, 3, 0, Health::Starting);
        assert_eq!(check.observe(Passing, LATER), Health::Starting);
        assert_eq!(check.observe(Critical, LATER), Health::Starting);
        assert_eq!(check.observe(Passing, LATER), Health::Starting);
        assert_eq!(check.observe(Passing, LATER), Health::Passing);
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_but_a_success_does() {
        let mut check = hysteresis(1, 1, 10, Health::Starting);
        for second in 0..10 {
            assert_eq!(check.observe(Critical, Duration::from_secs(second)), Health::Starting);
        }
        assert_eq!(check.clone().observe(Critical, Duration::from_secs(10)), Health::Critical);
        assert_eq!(check.observe(Passing, Duration::from_secs(5)), Health::Passing);
        assert_eq!(check.observe(Critical, Duration::from_secs(6)), Health::Critical, "it had started");
    }

    #[test]
    fn a_warning_works_and_is_told_once_there_are_enough_of_them() {
        let mut check = hysteresis(2, 2, 0, Health::Passing);
        let seen =
            [Warning, Warning, Passing, Passing, Warning, Critical, Critical, Warning, Warning, Passing];
        let expected = [
            Health::Passing,
            Health::Warning,
            Health::Warning,
            Health::Passing,
            Health::Passing,
            Health::Warning,
            Health::Critical,
            Health::Critical,
            Health::Warning,
            Health::Warning,
        ];
        assert_eq!(seen.map(|level| check.observe(level, LATER)), expected);
        let mut new = hysteresis(1, 3, 0, Health::Starting);
        assert_eq!(new.observe(Warning, LATER), Health::Warning, "it begins as it was seen");
    }

    fn levels(most: usize) -> impl Strategy<Value = Vec<Level>> {
        prop::collection::vec(prop::sample::select(vec![Passing, Warning, Critical]), 0..most)
    }

    proptest! {
        #[test]
        fn the_verdict_flips_exactly_after_enough_results_in_a_row(
            rise in 1u32..6,
            fall in 1u32..6,
            start in prop::sample::select(vec![Health::Passing, Health::Critical, Health::Starting]),
            results in levels(200),
        ) {
            let mut check = hysteresis(rise, fall, 0, start);
            let mut expected = start;
            for (index, &level) in results.iter().enumerate() {
                let healthy = level != Critical;
                let row = results[..=index].iter().rev().take_while(|&&r| (r != Critical) == healthy).count();
                if healthy && row >= rise as usize {
                    expected = Health::Passing;
                } else if !healthy && row >= fall as usize {
                    expected = Health::Critical;
                }
                let seen = check.observe(level, LATER);
                let without_warning = if seen == Health::Warning { Health::Passing } else { seen };
                prop_assert_eq!(without_warning, expected);
            }
        }

        #[test]
        fn a_warning_begins_and_ends_by_the_same_rule(
            rise in 1u32..6,
            fall in 1u32..6,
            results in levels(200),
        ) {
            let mut check = hysteresis(rise, fall, 0, Health::Passing);
            let mut expected = false;
            for (index, &level) in results.iter().enumerate() {
                let bad = level != Passing;
                let row = results[..=index].iter().rev().take_while(|&&r| (r != Passing) == bad).count();
                if row >= (if bad { fall } else { rise }) as usize {
                    expected = bad;
                }
                let seen = check.observe(level, LATER);
                prop_assert!(seen == Health::Critical || (seen == Health::Warning) == expected);
            }
        }

        #[test]
        fn it_never_becomes_critical_in_its_start_period(results in levels(50)) {
            let mut check = hysteresis(60, 1, 100, Health::Starting);
            for (second, level) in results.into_iter().enumerate() {
                prop_assert_eq!(check.observe(level, Duration::from_secs(second as u64)), Health::Starting);
            }
        }
    }
}
