//! Peak EWMA: an estimate of latency that jumps up at once and comes down slowly, as in Finagle and Linkerd. A balancer
//! must believe bad news at the first word and good news only when it is repeated.
//!
//! Estimate and time stand in one atomic, so that no reader sees half a change and no lock is needed.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The time in which a sample loses all but 1/e of its weight, in milliseconds; Finagle's default.
const DECAY: f32 = 10_000.0;
/// What is assumed of an endpoint of which nothing is known, in microseconds: little, so that it is tried.
const UNKNOWN: f32 = 1_000.0;

/// The latency of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Ewma {
    /// The estimate in microseconds as an f32, above the time of the last sample in milliseconds (the low half of it: it
    /// comes round in 49 days). 0: no sample yet.
    state: AtomicU64,
    /// Time to the first byte was seen: what connecting takes says nothing more then.
    answers: AtomicBool,
    /// Samples since the last look of the outlier detection.
    sum: AtomicU64,
    samples: AtomicU32,
}

impl Ewma {
    /// How long a connect took. Counts as long as the endpoint has never sent anything: there are protocols in which it
    /// does not.
    pub(super) fn connected(&self, latency: Duration, now: u64) {
        if !self.answers.load(Ordering::Relaxed) {
            self.sample(latency, now);
        }
    }

    /// How long the first byte took.
    pub(super) fn answered(&self, latency: Duration, now: u64) {
        if !self.answers.load(Ordering::Relaxed) {
            self.answers.store(true, Ordering::Relaxed);
            self.state.store(0, Ordering::Relaxed);
        }
        self.sample(latency, now);
    }

    fn sample(&self, latency: Duration, now: u64) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        self.sum.fetch_add(micros, Ordering::Relaxed);
        self.samples.fetch_add(1, Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a latency to 24 bits")]
        let sample = (micros as f32).max(1.0);
        let _ = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
            let estimate = match unpack(state) {
                Some((estimate, since)) if sample < estimate => {
                    let keep = weight(since, now);
                    sample * (1.0 - keep) + estimate * keep
                }
                _ => sample,
            };
            Some(pack(estimate, now))
        });
    }

    /// The estimate in microseconds. It falls while nothing is heard, so that an endpoint that was slow once is tried
    /// again.
    pub(super) fn estimate(&self, now: u64) -> f32 {
        unpack(self.state.load(Ordering::Relaxed))
            .map_or(UNKNOWN, |(estimate, since)| (estimate * weight(since, now)).max(1.0))
    }

    /// The last estimate as it was, if there is one.
    pub(super) fn last(&self) -> Option<Duration> {
        unpack(self.state.load(Ordering::Relaxed))
            .map(|(estimate, _)| Duration::from_secs_f32(estimate / 1e6))
    }

    /// The mean of the samples since the last call that returned one, in microseconds; `None` with fewer than `least`.
    pub(super) fn take_mean(&self, least: u32) -> Option<u64> {
        if self.samples.load(Ordering::Relaxed) < least {
            return None;
        }
        let samples = self.samples.swap(0, Ordering::Relaxed);
        Some(self.sum.swap(0, Ordering::Relaxed) / u64::from(samples.max(1)))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half of the time is what is kept")]
fn pack(estimate: f32, now: u64) -> u64 {
    u64::from(estimate.to_bits()) << 32 | u64::from(now as u32)
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
fn unpack(state: u64) -> Option<(f32, u32)> {
    (state != 0).then(|| (f32::from_bits((state >> 32) as u32), state as u32))
}

/// What is left of the weight of a sample: `e^(−age / decay)`.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "an age to 24 bits")]
fn weight(since: u32, now: u64) -> f32 {
    let age = (now as u32).wrapping_sub(since);
    // Another thread's clock may have been read a moment later.
    let age = if age > u32::MAX / 2 { 0 } else { age };
    (-(age as f32) / DECAY).exp()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_jumps_to_a_peak_and_comes_down_as_the_formula_says() {
        let ewma = Ewma::default();
        ewma.answered(10 * MS, 0);
        ewma.answered(100 * MS, 1000);
        assert!((ewma.estimate(1000) - 100_000.0).abs() < 1.0);
        ewma.answered(10 * MS, 11_000);
        let expected = 10_000.0 * (1.0 - (-1.0f32).exp()) + 100_000.0 * (-1.0f32).exp();
        assert!((ewma.estimate(11_000) - expected).abs() < 10.0, "{}", ewma.estimate(11_000));
    }

    #[test]
    fn an_endpoint_that_was_slow_is_tried_again_after_a_while() {
        let ewma = Ewma::default();
        ewma.answered(1000 * MS, 0);
        assert!(ewma.estimate(60_000) < 3_000.0);
    }

    #[test]
    fn what_answers_is_judged_by_its_answers() {
        let ewma = Ewma::default();
        ewma.connected(50 * MS, 0);
        assert!((ewma.estimate(0) - 50_000.0).abs() < 1.0);
        ewma.answered(5 * MS, 0);
        ewma.connected(50 * MS, 0);
        assert!((ewma.estimate(0) - 5_000.0).abs() < 1.0);
    }

    proptest! {
        #[test]
        fn it_stays_between_the_least_and_the_largest_sample(samples in proptest::collection::vec((1..1_000_000u64, 0..5_000u64), 1..100)) {
            let (ewma, mut now) = (Ewma::default(), 0);
            let (mut least, mut most) = (f32::MAX, 0.0f32);
            for (micros, passes) in samples {
                now += passes;
                ewma.answered(Duration::from_micros(micros), now);
                least = least.min(micros as f32);
                most = most.max(micros as f32);
                let estimate = ewma.estimate(now);
                prop_assert!(estimate >= least * 0.999 && estimate <= most * 1.001, "{least} {estimate} {most}");
            }
        }
    }
}
