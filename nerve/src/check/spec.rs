//! What a check is told: what to probe, how often, and how many results make a verdict.
//!
//! In a document it is one flat table: `{ http = "/healthz", interval = "1s", rise = 2, fall = 3 }`. The key that names
//! the kind comes with the kind's own keys; those of the timing are the same for all.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{FailsOn, Probe};
use crate::document::{FromValue, Mismatch, Reported, Section, Value};
use crate::model::Health;
use crate::period::Period;

/// So many probes in a row make a verdict at most.
const MAX_COUNT: u32 = 1000;

/// How often to probe, how long to wait, and when to change the verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "Written")]
pub struct Timing {
    interval: Period,
    timeout: Period,
    rise: NonZeroU32,
    fall: NonZeroU32,
    start_period: Duration,
    on: FailsOn,
    /// Nothing is asked: there is no interval and no timeout.
    is_told: bool,
}

/// As it stands in a document.
#[derive(Serialize)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<Period>,
    rise: NonZeroU32,
    fall: NonZeroU32,
    #[serde(serialize_with = "as_text")]
    start_period: Duration,
    #[serde(skip_serializing_if = "FailsOn::is_default")]
    on: FailsOn,
}

impl From<Timing> for Written {
    fn from(timing: Timing) -> Self {
        let Timing { interval, timeout, rise, fall, start_period, on, is_told } = timing;
        let (interval, timeout) = ((!is_told).then_some(interval), (!is_told).then_some(timeout));
        Self { interval, timeout, rise, fall, start_period, on }
    }
}

/// What the checks of an instance have to say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckMode {
    /// It is as well as its worst check.
    #[default]
    All,
    /// It is as well as its best check.
    Any,
}

impl CheckMode {
    /// The verdict over these; without any it is well.
    #[must_use]
    pub fn over(self, healths: impl Iterator<Item = Health>) -> Health {
        match self {
            Self::All => healths.max(),
            Self::Any => healths.min(),
        }
        .unwrap_or_default()
    }

    /// Is it the default?
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl FromValue for CheckMode {
    fn expected() -> String {
        "\"all\" or \"any\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_text() {
            Some("all") => Ok(Self::All),
            Some("any") => Ok(Self::Any),
            Some(_) => Err(value.mismatch("it is neither of them", Self::expected())),
            None => Err(value.wrong_kind(Self::expected())),
        }
    }
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
        let (start_period, on) = (Duration::ZERO, FailsOn::default());
        Self { interval, timeout, rise: TWO, fall: THREE, start_period, on, is_told: false }
    }

    /// Of a check that is told: what it is told decides at once.
    fn told() -> Self {
        let every = Self::default().rise_and_fall(NonZeroU32::MIN, NonZeroU32::MIN);
        Self { is_told: true, ..every }
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

    /// Failing from this level on.
    #[must_use]
    pub fn failing_on(self, on: FailsOn) -> Self {
        Self { on, ..self }
    }

    /// From which level on a probe counts as failed.
    #[must_use]
    pub fn on(&self) -> FailsOn {
        self.on
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
        let defaults = if section.has("ttl") { Self::told() } else { Self::default() };
        let (interval, timeout) = if defaults.is_told {
            (defaults.interval, None)
        } else {
            (section.or("interval", defaults.interval), section.optional::<Period>("timeout"))
        };
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
        let on = section.or("on", defaults.on);
        let timing = Self { is_told: defaults.is_told, on, ..Self::every(interval) };
        let timing = timing.rise_and_fall(rise, fall).starting_for(start_period);
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

impl CheckSpec {
    /// By what an application reports to it, at this place of an instance with so many checks; `None`: it is not told.
    #[must_use]
    pub fn report_id(&self, instance: &str, place: usize, of: usize) -> Option<String> {
        match &self.probe {
            Probe::Ttl(ttl) => Some(ttl.id(instance, place, of)),
            _ => None,
        }
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
            ("tcp = true\non = \"passing\"", "\"warning\" or \"critical\""),
            ("ttl = \"10s\"\ninterval = \"1s\"", "unknown key"),
            ("ttl = \"10s\"\nid = \"a/b\"", "cannot stand in a path"),
            ("exec = \"true\"", "a program and its arguments"),
            ("exec = [\"bin/true\"]", "write it absolute"),
            ("exec = []", "it names no program"),
            ("exec = [\"true\"]\nshell = true", "exec"),
            ("systemd = \"a b\"", "no name of a unit"),
            ("docker = \"../x\"", "it is no container"),
            ("weight_from = 0", "weight_from"),
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
            "http = \"/x\"\nmethod = \"POST\"\nstatus = [\"200-204\", 404]\ncontains = \"ok\"\nhost = \"a.b\"\nport = 81\n\
             headers = { X-A = \"1\" }\ninterval = \"1s\"\ntimeout = \"500ms\"\nstart_period = \"1m\"",
            "exec = [\"/bin/true\", \"a b\"]\non = \"warning\"",
            "exec = \"true; false\"\nshell = true",
            "external = [\"/opt/check\"]\noptions = { queue = \"mail\" }",
            "ttl = \"10s\"",
            "ttl = \"10s\"\nid = \"alive\"\nfall = 2",
            "docker = \"web\"\nengine = \"/run/docker.sock\"",
            "systemd = \"nginx.service\"",
            "weight_from = 9999",
        ] {
            let spec = read(text).unwrap();
            let json = serde_json::to_string(&spec).unwrap();
            let again = Document::parse_json("x", &json).unwrap().decode(CheckSpec::read).unwrap();
            assert_eq!(again, spec, "{json}");
        }
    }
}
