//! A set of HTTP statuses, as checks expect them: `200-299,304`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::document::{FromValue, Mismatch, Value};

/// Statuses from 100 to 599, as ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusSet(Vec<RangeInclusive<u16>>);

impl StatusSet {
    /// Is this status expected?
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

/// Every status that means success: 200 to 299 (RFC 9110 section 15.3).
impl Default for StatusSet {
    fn default() -> Self {
        Self(vec![200..=299])
    }
}

impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (one, other) if one == other => write!(f, "{comma}{one}")?,
                (from, to) => write!(f, "{comma}{from}-{to}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for StatusSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let status = |text: &str| match text.trim().parse::<u16>() {
            Ok(status @ 100..=599) => Ok(status),
            _ => Err(format!("{text:?} is no status from 100 to 599")),
        };
        let range = |part: &str| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = (status(from)?, status(to)?);
            if from <= to {
                Ok(from..=to)
            } else {
                Err(format!("{part:?} is no range: {from} is above {to}"))
            }
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Self)
    }
}

impl FromValue for StatusSet {
    fn expected() -> String {
        "statuses such as 200, \"200-299\" or [200, \"300-399\"]".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        if let Some(elements) = value.as_list() {
            if elements.is_empty() {
                return Err(value.mismatch("it is empty: nothing would ever be expected", Self::expected()));
            }
            let sets = elements.iter().map(Self::from_value).collect::<Result<Vec<_>, _>>()?;
            return Ok(Self(sets.into_iter().flat_map(|set| set.0).collect()));
        }
        let text = match (value.as_integer(), value.as_text()) {
            (Some(number), _) => number.to_string(),
            (_, Some(text)) => text.to_owned(),
            _ => return Err(value.wrong_kind(Self::expected())),
        };
        text.parse().map_err(|error| value.mismatch(error, Self::expected()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_read_as_they_print() {
        for text in ["200", "200-299", "200-204,404"] {
            assert_eq!(text.parse::<StatusSet>().unwrap().to_string(), text);
        }
        for bad in ["", "99", "600", "299-200", "2xx", "200,", "-200"] {
            assert!(bad.parse::<StatusSet>().is_err(), "{bad}");
        }
        let set: StatusSet = "200-204, 404".parse().unwrap();
        assert!(set.contains(204) && set.contains(404) && !set.contains(205));
    }
}
