//! Moments as numbers that fit an atomic: milliseconds since the first look at the clock.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds on our clock; from 1 on, so that 0 can say «never».
pub(super) fn millis(now: Instant) -> u64 {
    whole_millis(now.saturating_duration_since(*START)) + 1
}

pub(super) fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}
