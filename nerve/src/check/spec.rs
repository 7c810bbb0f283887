//! What a check is told: what to probe, how often, and how many results make a verdict.
//!
//! In a document it is one flat table: `{ http = "/healthz", interval = "1s", rise = 2, fall = 3 }`. The key that names
//! the kind comes with the kind's own keys; those of the timing are the same for all.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::Probe;
use crate::document::{Reported, Section};
use crate::period::Period;

/// So many probes in a row make a verdict at most.
const MAX_COUNT: u32 = 1000;

/// How often to probe, how long to wait, and when to change the verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Timing {
    interval: Period,
    timeout: Period,
    rise: NonZeroU32,
    fall: NonZeroU32,
    #[serde(serialize_with = "as_text")]
    start_period: Duration,
}

/// The timeout is longer than the interval: probes would overlap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a timeout of {timeout} with an interval of {interval}: probes would overlap; make it at most the interval"
)]
pub struct TimingError {
    timeout: Period,
    interval: Period,
}

impl Timing {
    /// An interval, with the defaults for the rest: a timeout of 1 s (or the interval, if that is shorter), rise 2,
    /// fall 3, no start period.
    #[must_use]
    pub fn every(interval: Period) -> Self {
        const TWO: NonZeroU32 = NonZeroU32::new(2).unwrap();
        const THREE: NonZeroU32 = NonZeroU32::new(3).unwrap();
        let timeout = Period::seconds(1).min(interval);
        Self { interval, timeout, rise: TWO, fall: THREE, start_period: Duration::ZERO }
    }

    /// With this timeout for a whole probe, from connecting to the last byte.
    ///
    /// # Errors
    /// It is longer than the interval.
    pub fn timeout_of(self, timeout: Period) -> Result<Self, TimingError> {
        if timeout > self.interval {
            return Err(TimingError { timeout, interval: self.interval });
        }
        Ok(Self { timeout, ..self })
    }

    /// With these numbers of successes and failures in a row.
    #[must_use]
    pub fn rise_and_fall(self, rise: NonZeroU32, fall: NonZeroU32) -> Self {
        Self { rise, fall, ..self }
    }

    /// With this grace for an instance that is starting: until then failures do not count.
    #[must_use]
    pub fn starting_for(self, start_period: Duration) -> Self {
        Self { start_period, ..self }
    }

    /// From the beginning of a probe to that of the next.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval.get()
    }

    /// How long a probe may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout.get()
    }

    /// Successes in a row that make it passing.
    #[must_use]
    pub fn rise(&self) -> NonZeroU32 {
        self.rise
    }

    /// Failures in a row that make it critical.
    #[must_use]
    pub fn fall(&self) -> NonZeroU32 {
        self.fall
    }

    /// How long failures do not count, from the definition of the instance, until it has passed once.
    #[must_use]
    pub fn start_period(&self) -> Duration {
        self.start_period
    }

    fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let defaults = Self::default();
        let interval = section.or("interval", defaults.interval);
        let timeout = section.optional::<Period>("timeout");
        let expected = format!("an integer from 1 to {MAX_COUNT}");
        let count = |n: &NonZeroU32| n.get() <= MAX_COUNT;
        let rise = section.or_where("rise", defaults.rise, &expected, count);
        let fall = section.or_where("fall", defaults.fall, &expected, count);
        let start_period = section.or_where(
            "start_period",
            defaults.start_period,
            "a duration of at most a day",
            |period| *period <= Period::MAX,
        );
        let timing = Self::every(interval).rise_and_fall(rise, fall).starting_for(start_period);
        match timeout {
            None => Ok(timing),
            Some(timeout) => timing
                .timeout_of(timeout)
                .map_err(|error| section.invalid("timeout", error, format!("at most {interval}"))),
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::every(Period::seconds(2))
    }
}

/// One check of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckSpec {
    /// What is probed.
    #[serde(flatten)]
    pub probe: Probe,
    /// How often, and what it takes to change the verdict.
    #[serde(flatten)]
    pub timing: Timing,
}

impl CheckSpec {
    /// Reads one table of `check = […]`.
    ///
    /// # Errors
    /// What is wrong was reported.
    pub fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let timing = Timing::read(section);
        let probe = Probe::read(section);
        Ok(Self { probe: probe?, timing: timing? })
    }
}

fn as_text<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn read(text: &str) -> Result<CheckSpec, String> {
        let document = Document::parse("x", text).unwrap();
        document.decode(CheckSpec::read).map_err(|errors| errors.to_string())
    }

    #[test]
    fn a_check_has_defaults_for_everything_but_its_kind() {
        let spec = read("tcp = true").unwrap();
        assert_eq!(spec.timing, Timing::default());
        assert_eq!((spec.timing.interval().as_secs(), spec.timing.timeout().as_secs()), (2, 1));
        assert_eq!(read("tcp = true\ninterval = \"100ms\"").unwrap().timing.timeout().as_millis(), 100);
    }

    #[test]
    fn mistakes_name_the_key() {
        for (text, expected) in [
            ("interval = \"1s\"", "names no kind of check"),
            ("tcp = true\nhttp = \"/\"", "two kinds of check"),
            ("tcp = true\ninterval = \"0s\"", "interval"),
            ("tcp = true\ninterval = \"1s\"\ntimeout = \"2s\"", "probes would overlap"),
            ("tcp = true\nrise = 0", "rise"),
            ("tcp = true\nfall = 5000", "an integer from 1 to 1000"),
            ("tcp = true\nintreval = \"1s\"", "did you mean `interval`?"),
            ("tcp = true\nstatus = 200", "unknown key"),
            ("tcp = 81\nunix = \"/x\"", "`tcp` names a port"),
            ("tcp = true\nunix = \"x\"", "write it absolute"),
            ("htttp = \"/\"", "did you mean `http`?"),
        ] {
            let shown = read(text).unwrap_err();
            assert!(shown.contains(expected), "{text}: {shown}");
        }
    }

    #[test]
    fn a_check_written_as_json_reads_back_the_same() {
        for text in [
            "tcp = true",
            "tcp = 8081\nrise = 1",
            "tcp = true\nunix = \"/run/app.sock\"",
            "http = \"/x\"\nunix = \"/run/app.sock\"",
            "http = \"/x\"\nmethod = \"POST\"\nstatus = [\"200-204\", 404]\nbody = \"ok\"\nhost = \"a.b\"\nport = 81\n\
             headers = { X-A = \"1\" }\ninterval = \"1s\"\ntimeout = \"500ms\"\nstart_period = \"1m\"",
        ] {
            let spec = read(text).unwrap();
            let json = serde_json::to_string(&spec).unwrap();
            let again = Document::parse_json("x", &json).unwrap().decode(CheckSpec::read).unwrap();
            assert_eq!(again, spec, "{json}");
        }
    }
}
