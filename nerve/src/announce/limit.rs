//! How often an announcement may come and go: a bucket of tokens, one a change (pure: it is told the time).

use tokio::time::{Duration, Instant};

use crate::source::Limit;

/// A change that has no token at all waits for as long as anybody looks.
const NEVER: Duration = Duration::from_secs(86_400);

/// The tokens of one instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// With the tokens of a second, and one at least: what begins is no reason to wait.
    pub(super) fn new(limit: &Limit, now: Instant) -> Self {
        let tokens = limit.average_rate.map_or(1.0, |rate| rate.max(1.0));
        Self { tokens: tokens.min(capacity(limit)), filled: now }
    }

    /// Takes a token, or says when there is one.
    pub(super) fn take(&mut self, limit: &Limit, now: Instant) -> Result<(), Instant> {
        let Some(rate) = limit.average_rate else { return Ok(()) };
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * rate).min(capacity(limit));
        self.filled = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let wait = Duration::try_from_secs_f64((1.0 - self.tokens) / rate).unwrap_or(NEVER);
        Err(now + wait.clamp(Duration::from_millis(1), NEVER))
    }
}

fn capacity(limit: &Limit) -> f64 {
    limit.max_burst.map_or(f64::INFINITY, |burst| f64::from(burst.get()))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn limit(rate: Option<f64>, burst: Option<u32>) -> Limit {
        Limit { only_counted: false, average_rate: rate, max_burst: burst.and_then(NonZeroU32::new) }
    }

    #[test]
    fn without_a_rate_there_is_no_limit_and_a_rate_of_nothing_lets_one_pass() {
        let now = Instant::now();
        let mut free = Bucket::new(&limit(None, Some(1)), now);
        assert!((0..1000).all(|_| free.take(&limit(None, Some(1)), now).is_ok()));
        let mut none = Bucket::new(&limit(Some(0.0), None), now);
        assert_eq!(none.take(&limit(Some(0.0), None), now), Ok(()));
        assert!(none.take(&limit(Some(0.0), None), now).unwrap_err() > now + Duration::from_secs(3600));
    }

    proptest! {
        #[test]
        fn no_more_pass_than_the_burst_and_what_the_time_allows(
            rate in 0.1..20.0_f64, burst in 1..10_u32, pauses in prop::collection::vec(0..2000_u64, 1..300),
        ) {
            let limit = limit(Some(rate), Some(burst));
            let begun = Instant::now();
            let (mut bucket, mut now, mut passed) = (Bucket::new(&limit, begun), begun, 0_u32);
            for pause in pauses {
                now += Duration::from_millis(pause);
                match bucket.take(&limit, now) {
                    Ok(()) => passed += 1,
                    Err(until) => {
                        prop_assert!(until > now);
                        let mut later = bucket;
                        prop_assert!(later.take(&limit, until + Duration::from_millis(1)).is_ok());
                    }
                }
            }
            let allowed = f64::from(burst) + now.duration_since(begun).as_secs_f64() * rate + 1.0;
            prop_assert!(f64::from(passed) <= allowed);
        }
    }
}
