//! How an upstream does: how long it takes, and whether it answers at all. Pure: the caller says what time it is.
//!
//! There are no probes: real questions are. An upstream that did not answer is passed over for a while that doubles with each failure;
//! then one question is sent to it first, and the others go past it until that one is answered.

use std::time::Duration;

use tokio::time::Instant;

/// Nobody waits for another upstream's turn for less than this.
const LEAST_HEDGE: Duration = Duration::from_millis(250);
/// The same where the one that was asked is doubted anyway.
const DOUBTED_HEDGE: Duration = Duration::from_millis(50);
/// After the first failure it is passed over for this time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// One lost datagram is no news; so many failures in a row are.
const DOWN: u32 = 3;
/// What was measured longer ago says nothing any more, so that one that was slow is tried again.
const MEASURED_FOR: Duration = Duration::from_secs(60);
/// Answers faster than this are equally fast to whoever waits.
const FAST: Duration = Duration::from_millis(50);
/// So many questions in a row whose letters did not come back as they were sent, and they are not mixed any more.
const CASES_LOST: u8 = 3;

/// What is known of an upstream.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    /// Smoothed as TCP does (RFC 6298): an eighth of each new measurement.
    time: Option<(Duration, Instant)>,
    failures: u32,
    passed_over_until: Option<Instant>,
    last_failure: Option<String>,
    cases_lost: u8,
}

impl Health {
    /// It has answered after `took`. Tells whether it was called down.
    pub(super) fn answered(&mut self, took: Duration, now: Instant) -> bool {
        let was_down = self.failures >= DOWN;
        let time = match self.recent(now) {
            Some(before) => before - before / 8 + took / 8,
            None => took,
        };
        self.time = Some((time, now));
        self.failures = 0;
        self.passed_over_until = None;
        was_down
    }

    /// It has not answered. Tells whether it is now to be called down.
    pub(super) fn failed(&mut self, why: String, now: Instant) -> bool {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(6)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.passed_over_until = Some(now + pause);
        self.last_failure = Some(why);
        self.failures == DOWN
    }

    /// Failures since it last answered.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Why it did not answer, if that was the last that was heard of it.
    pub(super) fn problem(&self) -> Option<&str> {
        self.last_failure.as_deref().filter(|_| self.failures > 0)
    }

    /// When it is asked again, if it is passed over.
    pub(super) fn passed_over_until(&self, now: Instant) -> Option<Instant> {
        self.passed_over_until.filter(|until| now < *until)
    }

    /// A question is sent to it that shows how it does: others go past it meanwhile.
    pub(super) fn probe(&mut self, now: Instant) {
        if self.failures > 0 {
            self.passed_over_until = Some(now + FIRST_PAUSE);
        }
    }

    /// How long it takes to answer, if that was measured lately.
    pub(super) fn recent(&self, now: Instant) -> Option<Duration> {
        self.time.filter(|(_, at)| now.saturating_duration_since(*at) < MEASURED_FOR).map(|(time, _)| time)
    }

    /// How long it is waited for before another is asked too.
    pub(super) fn patience(&self, now: Instant) -> Duration {
        match self.failures {
            0 => self.recent(now).map_or(LEAST_HEDGE, |time| (2 * time).max(LEAST_HEDGE)),
            _ => DOUBTED_HEDGE,
        }
    }

    /// How it compares to others: less is better. Of those that are equal the order of preference decides, so times count only
    /// where one takes twice as long.
    pub(super) fn rank(&self, now: Instant) -> (Option<Instant>, u32) {
        let slow = self.recent(now).map_or(0, |time| {
            let times = time.as_micros() / FAST.as_micros();
            u128::BITS - times.leading_zeros()
        });
        (self.passed_over_until(now), slow)
    }

    /// Does it give back the letters of a question as they were sent?
    pub(super) fn keeps_case(&self) -> bool {
        self.cases_lost < CASES_LOST
    }

    /// Whether it did so for a question. Tells whether it is now known not to.
    pub(super) fn kept_case(&mut self, kept: bool) -> bool {
        let before = self.keeps_case();
        self.cases_lost = if kept { 0 } else { self.cases_lost.saturating_add(1) };
        before && !self.keeps_case()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_is_passed_over_for_longer_each_time_until_it_answers() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        let mut pauses = Vec::new();
        for nth in 0..9 {
            assert_eq!(health.failed("silent".to_owned(), now), nth == 2);
            let until = health.passed_over_until(now).unwrap();
            pauses.push((until - now).as_secs());
            now = until;
            assert_eq!(health.passed_over_until(now), None, "its turn has come");
            health.probe(now);
            assert!(health.passed_over_until(now).is_some(), "for one question alone");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!((health.problem(), health.patience(now)), (Some("silent"), DOUBTED_HEDGE));
        assert!(health.answered(MS, now));
        assert_eq!((health.problem(), health.passed_over_until(now), health.failures()), (None, None, 0));
        health.probe(now);
        assert_eq!(health.passed_over_until(now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn another_is_asked_the_sooner_the_faster_this_one_is() {
        let (mut health, now) = (Health::default(), Instant::now());
        assert_eq!(health.patience(now), LEAST_HEDGE);
        health.answered(400 * MS, now);
        assert_eq!(health.patience(now), 800 * MS);
        (0..60).for_each(|_| assert!(!health.answered(10 * MS, now)));
        assert_eq!(health.patience(now), LEAST_HEDGE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_order_of_preference_holds_among_those_that_are_about_as_fast() {
        let now = Instant::now();
        let of = |millis: u32| {
            let mut health = Health::default();
            health.answered(millis * MS, now);
            health.rank(now)
        };
        assert_eq!(of(1), of(49));
        assert!(of(1) < of(60) && of(60) < of(500));
        assert_eq!(of(1), Health::default().rank(now));
        let mut failed = Health::default();
        failed.failed(String::new(), now);
        assert!(failed.rank(now) > of(1900));
        let mut slow = Health::default();
        slow.answered(900 * MS, now);
        assert_eq!(slow.rank(now + MEASURED_FOR), Health::default().rank(now), "forgotten, and tried again");
    }

    #[test]
    fn letters_that_are_lost_time_and_again_are_not_mixed_any_more() {
        let mut health = Health::default();
        assert!(!health.kept_case(false) && !health.kept_case(false) && !health.kept_case(true));
        assert!(!health.kept_case(false) && !health.kept_case(false) && health.kept_case(false));
        assert!(!health.keeps_case() && !health.kept_case(false));
    }

    proptest! {
        #[test]
        fn its_time_is_never_beyond_what_was_measured(times in proptest::collection::vec(0..10_000_u32, 1..50)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _guard = runtime.enter();
            let (mut health, now) = (Health::default(), Instant::now());
            times.iter().for_each(|millis| assert!(!health.answered(*millis * MS, now)));
            let time = health.recent(now).unwrap();
            prop_assert!(time <= *times.iter().max().unwrap() * MS + MS);
            prop_assert!(time + MS >= *times.iter().min().unwrap() * MS);
        }
    }
}
