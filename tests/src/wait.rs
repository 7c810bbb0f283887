//! Waiting: for a condition with a deadline, never for luck. The only file of the tests that sleeps.
//!
//! A condition that does not come true in time panics with what was awaited, for how long, and the last value seen.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Between two looks at a condition. Short against every bound that the tests assert.
const POLL: Duration = Duration::from_millis(10);

/// A moment until which something may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// So far from now.
    #[must_use]
    pub fn after(within: Duration) -> Self {
        Self(Instant::now() + within)
    }

    /// Has it passed?
    #[must_use]
    pub fn passed(self) -> bool {
        Instant::now() >= self.0
    }

    /// What is left; zero when it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Lets time pass where the passing of time is what is tested (a server that is down for a minute, the pace of a load).
#[allow(clippy::disallowed_methods, reason = "the one place of the tests where time is let pass")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Looks at `value` until `good` says so; the last value seen otherwise.
///
/// # Errors
/// The last value, when `within` has passed without a good one.
pub fn wait_until<T>(
    within: Duration,
    mut value: impl FnMut() -> T,
    good: impl Fn(&T) -> bool,
) -> Result<T, T> {
    let deadline = Deadline::after(within);
    loop {
        let seen = value();
        if good(&seen) {
            return Ok(seen);
        }
        if deadline.passed() {
            return Err(seen);
        }
        pause(POLL.min(deadline.left()));
    }
}

/// What [`eventually!`] does: the value, or a panic that names what was awaited.
#[track_caller]
#[doc(hidden)]
pub fn eventually<T: Debug>(
    within: Duration,
    (value_text, good_text): (&str, &str),
    value: impl FnMut() -> T,
    good: impl Fn(&T) -> bool,
) -> T {
    match wait_until(within, value, good) {
        Ok(seen) => seen,
        Err(seen) => panic!("not within {within:?}: {value_text}: {good_text}\n  last seen: {seen:?}"),
    }
}

/// What [`throughout!`] does: a panic at the first value that is not good.
#[track_caller]
#[doc(hidden)]
pub fn throughout<T: Debug>(
    during: Duration,
    (value_text, good_text): (&str, &str),
    mut value: impl FnMut() -> T,
    good: impl Fn(&T) -> bool,
) {
    let start = Instant::now();
    let deadline = Deadline::after(during);
    while !deadline.passed() {
        let seen = value();
        let at = start.elapsed();
        assert!(
            good(&seen),
            "not throughout {during:?}: {value_text}: {good_text}\n  after {at:?} seen: {seen:?}"
        );
        pause(POLL.min(deadline.left()));
    }
}

/// Waits until a value is as it should be: `eventually!(Duration, expression, |value| condition)`; returns the value.
///
/// Panics with the expressions and the last value seen when the time has passed. Looks once more after the deadline,
/// so that a slow look is not a failure.
#[macro_export]
macro_rules! eventually {
    ($within:expr, $value:expr, $good:expr $(,)?) => {
        $crate::__wait::eventually($within, (stringify!($value), stringify!($good)), || $value, $good)
    };
}

/// Asserts that a value stays as it should be: `throughout!(Duration, expression, |value| condition)`.
#[macro_export]
macro_rules! throughout {
    ($during:expr, $value:expr, $good:expr $(,)?) => {
        $crate::__wait::throughout($during, (stringify!($value), stringify!($good)), || $value, $good)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_returns_its_value() {
        let mut looks = 0;
        let seen = eventually(
            Duration::from_secs(5),
            ("", ""),
            || {
                looks += 1;
                looks
            },
            |n| *n == 3,
        );
        assert_eq!(seen, 3);
    }

    #[test]
    fn a_condition_that_never_holds_gives_the_last_value() {
        assert_eq!(wait_until(Duration::from_millis(20), || 7, |n| *n == 8), Err(7));
    }

    #[test]
    #[should_panic(expected = "last seen: 7")]
    fn the_panic_shows_the_last_value() {
        eventually(Duration::from_millis(1), ("x", "is 8"), || 7, |n| *n == 8);
    }

    #[test]
    #[should_panic(expected = "seen: 3")]
    fn what_must_hold_throughout_fails_at_the_first_bad_value() {
        let mut looks = 0;
        throughout(
            Duration::from_secs(5),
            ("x", "below 3"),
            || {
                looks += 1;
                looks
            },
            |n| *n < 3,
        );
    }
}
