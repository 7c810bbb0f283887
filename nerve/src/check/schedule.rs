//! When a check probes: at once and quickly while it starts, then steadily at a moment of its own.
//!
//! Each check has a phase within its interval, one of fifty, drawn from its name: a thousand checks of one interval fire evenly
//! over it, and stay so. Pure: it is told the time.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::Health;

/// The pause between the probes of a check that has not been decided yet. It doubles with each failure, up to the interval.
pub const START_PAUSE: Duration = Duration::from_millis(250);

/// So many phases an interval has. To be woken costs as much as a probe: those of one moment share it.
const MOMENTS: u64 = 50;

/// The moments at which one check probes.
#[derive(Debug)]
pub(super) struct Schedule {
    epoch: Instant,
    phase: Duration,
    interval: Duration,
    start_pause: Duration,
    due: Instant,
}

impl Schedule {
    /// The first probe is due `now`; later ones stand on a grid that begins at `epoch`, shifted by a hash of `name`.
    pub(super) fn new(name: &str, index: usize, interval: Duration, epoch: Instant, now: Instant) -> Self {
        let start_pause = START_PAUSE.min(interval);
        Self { epoch, phase: phase(name, index, interval), interval, start_pause, due: now }
    }

    /// Goes on with a check that another process has decided: its next probe waits for its moment.
    pub(super) fn resumed(mut self, now: Instant) -> Self {
        self.due = self.next_on_grid(now);
        self
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Plans the next probe after one that ended `now` with this result and verdict.
    pub(super) fn advance(&mut self, now: Instant, healthy: bool, health: Health) {
        if health == Health::Starting {
            self.due = now + self.start_pause;
            if !healthy {
                self.start_pause = (self.start_pause * 2).min(self.interval);
            }
            return;
        }
        // A probe may end as late as its successor is due (timeout = interval): that one is then late, not left out,
        // else `fall` probes would take twice as long as promised. Only whole lost intervals are left out.
        let successor = self.due + self.interval;
        let on_grid = self.offset(successor) == self.phase;
        self.due =
            if on_grid && successor + self.interval > now { successor } else { self.next_on_grid(now) };
    }

    fn offset(&self, at: Instant) -> Duration {
        let since = at.saturating_duration_since(self.epoch);
        Duration::from_nanos(nanos(since) % nanos(self.interval).max(1))
    }

    fn next_on_grid(&self, now: Instant) -> Instant {
        let ahead = self.phase + self.interval - self.offset(now);
        now + if ahead > self.interval { ahead - self.interval } else { ahead }
    }
}

fn phase(name: &str, index: usize, interval: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    (name, index).hash(&mut hasher);
    Duration::from_nanos(hasher.finish() % MOMENTS * (nanos(interval) / MOMENTS))
}

/// Fits: 64 bits of nanoseconds are 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_thousand_checks_are_spread_over_their_interval() {
        let mut buckets = [0u32; 20];
        for n in 0..1000 {
            let bucket = phase(&format!("web/web-a-{}", 8000 + n), 0, SECOND).as_millis() / 50;
            buckets[usize::try_from(bucket).unwrap()] += 1;
        }
        // 50 each on average; 5 standard deviations are 35.
        assert!(buckets.iter().all(|&count| (15..=85).contains(&count)), "{buckets:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn once_decided_it_probes_every_interval_at_its_own_moment() {
        let epoch = Instant::now();
        let mut schedule = Schedule::new("a", 0, SECOND, epoch, epoch + SECOND * 7);
        schedule.advance(schedule.due(), true, Health::Passing);
        let first = schedule.due();
        assert!(first > epoch + SECOND * 7 && first <= epoch + SECOND * 8);
        for n in 1..5 {
            schedule.advance(schedule.due() + Duration::from_millis(30), true, Health::Passing);
            assert_eq!(schedule.due(), first + SECOND * n);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_takes_its_whole_interval_delays_the_next_by_nothing() {
        let epoch = Instant::now();
        let mut schedule = Schedule::new("a", 0, SECOND, epoch, epoch);
        schedule.advance(epoch, true, Health::Passing);
        let first = schedule.due();
        schedule.advance(first + SECOND + Duration::from_millis(2), false, Health::Passing);
        assert_eq!(schedule.due(), first + SECOND, "due already");
        schedule.advance(first + SECOND * 5, false, Health::Passing);
        assert_eq!(schedule.due(), first + SECOND * 6, "what was lost is left out");
    }

    #[tokio::test(start_paused = true)]
    async fn while_it_starts_it_probes_quickly_and_backs_off_on_failures() {
        let epoch = Instant::now();
        let mut schedule = Schedule::new("a", 0, SECOND, epoch, epoch);
        let mut pauses = Vec::new();
        for healthy in [true, false, false, false, false] {
            let now = schedule.due();
            schedule.advance(now, healthy, Health::Starting);
            pauses.push((schedule.due() - now).as_millis());
        }
        assert_eq!(pauses, [250, 250, 500, 1000, 1000]);
    }
}
