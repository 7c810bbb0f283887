//! A duration that can be waited for again and again: never zero, never absurd.
//!
//! Intervals, timeouts and lease times are of this type, so that no timer can spin. A leaf: imports nothing of ours.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration from one millisecond to one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(Duration);

/// Why a duration is no period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{} is out of range; write a duration from 1ms to 1day", humantime::format_duration(*.0))]
pub struct PeriodError(Duration);

impl Period {
    /// The shortest.
    pub const MIN: Duration = Duration::from_millis(1);
    /// The longest.
    pub const MAX: Duration = Duration::from_secs(24 * 60 * 60);

    /// Validates `duration`.
    ///
    /// # Errors
    /// It is shorter than [`Period::MIN`] or longer than [`Period::MAX`].
    pub fn new(duration: Duration) -> Result<Self, PeriodError> {
        if (Self::MIN..=Self::MAX).contains(&duration) {
            Ok(Self(duration))
        } else {
            Err(PeriodError(duration))
        }
    }

    /// So many seconds, for constants: zero and more than a day do not compile in a `const`.
    #[must_use]
    pub const fn seconds(seconds: u32) -> Self {
        assert!(seconds > 0 && seconds <= 86_400, "a period is from 1ms to 1day");
        Self(Duration::from_secs(seconds as u64))
    }

    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Period {
    type Err = String;

    /// Reads `500ms`, `30s`, `1h 30m`.
    fn from_str(text: &str) -> Result<Self, String> {
        let duration =
            humantime::parse_duration(text).map_err(|wrong| format!("{text:?} is no duration ({wrong})"))?;
        Self::new(duration).map_err(|wrong| wrong.to_string())
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_more_than_a_day_are_no_periods() {
        assert!(Period::new(Duration::ZERO).is_err());
        assert!(Period::new(Period::MAX + Duration::from_millis(1)).is_err());
        assert_eq!(Period::new(Duration::from_millis(1500)).unwrap().to_string(), "1s 500ms");
        let read: Period = serde_json::from_str("\"1s 500ms\"").unwrap();
        assert_eq!(read.get(), Duration::from_millis(1500));
        assert!("0s".parse::<Period>().is_err() && "soon".parse::<Period>().is_err());
    }
}
