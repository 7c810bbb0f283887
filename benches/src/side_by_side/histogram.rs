//! Durations counted in buckets whose width is 1/64 of their octave: constant memory, percentiles good to 1.6 %.

use std::time::Duration;

use super::plan::Latency;

/// Buckets an octave.
const STEPS: usize = 64;
/// 2 to this power is [`STEPS`].
const STEP_BITS: u32 = STEPS.trailing_zeros();

/// Counts of durations.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; STEPS * 60], total: 0 }
    }

    pub(crate) fn add(&mut self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let last = self.counts.len() - 1;
        self.counts[bucket(nanoseconds).min(last)] += 1;
        self.total += 1;
    }

    pub(crate) fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }

    pub(crate) fn latency(&self) -> Latency {
        Latency { p50: self.per_mille(500), p99: self.per_mille(990), p999: self.per_mille(999) }
    }

    /// The least bucket's upper end that as many of a thousand do not exceed.
    fn per_mille(&self, share: u64) -> Duration {
        let rank = (self.total * share).div_ceil(1000);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return Duration::from_nanos(upper_end(index));
            }
        }
        Duration::ZERO
    }
}

/// Values below [`STEPS`] have a bucket each; then every octave has as many.
fn bucket(value: u64) -> usize {
    let octave = value.checked_ilog2().unwrap_or(0).saturating_sub(STEP_BITS);
    // Between STEPS and 2 × STEPS from the second octave on, so that octaves follow each other without a gap.
    let step = usize::try_from(value >> octave).unwrap_or(0);
    octave as usize * STEPS + step
}

fn upper_end(index: usize) -> u64 {
    let octave = (index / STEPS).saturating_sub(1);
    let step = (index - octave * STEPS) as u64;
    ((step + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_a_bucket_that_ends_close_above_it() {
        let mut value = 0_u64;
        while value < 1 << 50 {
            let end = upper_end(bucket(value));
            assert!(end >= value && end - value <= value / 64, "{value} in a bucket up to {end}");
            value += 1 + value / 97;
        }
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|micros| histogram.add(Duration::from_micros(micros)));
        let near = |found: Duration, micros: f64| (found.as_secs_f64() * 1e6 / micros - 1.0).abs() < 0.016;
        let latency = histogram.latency();
        assert!(near(latency.p50, 500.0), "{latency:?}");
        assert!(near(latency.p99, 990.0), "{latency:?}");
        assert!(near(latency.p999, 999.0), "{latency:?}");
        histogram.clear();
        assert_eq!(histogram.latency().p99, Duration::ZERO);
    }
}
