//! Values as Ruby takes them: a number may be a text, one value a list of one, and a length of time is a number of seconds.

use std::str::FromStr;
use std::time::Duration;

use crate::document::{FromValue, Mismatch, Value};

/// A number, or a text that is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Number<T>(pub T);

/// A text, or a number that is meant as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Word(pub String);

/// A number of seconds, not negative and at most a day.
#[derive(Debug, Clone, PartialEq)]
pub struct Seconds(pub Duration);

/// A number that is not negative.
#[derive(Debug, Clone, PartialEq)]
pub struct Rate(pub f64);

/// A list, or one value alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Several<T>(pub Vec<T>);

impl<T: FromStr + FromValue> FromValue for Number<T> {
    fn expected() -> String {
        T::expected()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_text().map(|text| text.trim().parse()) {
            Some(Ok(number)) => Ok(Self(number)),
            _ => T::from_value(value).map(Self),
        }
    }
}

impl FromValue for Word {
    fn expected() -> String {
        "a text".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match (value.as_text(), value.as_integer()) {
            (Some(text), _) => Ok(Self(text.to_owned())),
            (None, Some(number)) => Ok(Self(number.to_string())),
            (None, None) => Err(value.wrong_kind(Self::expected())),
        }
    }
}

impl<T: FromValue> FromValue for Several<T> {
    fn expected() -> String {
        format!("{}, or a list", T::expected())
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_list() {
            Some(elements) => elements.iter().map(T::from_value).collect::<Result<_, _>>().map(Self),
            None => T::from_value(value).map(|one| Self(vec![one])),
        }
    }
}

impl FromValue for Rate {
    fn expected() -> String {
        "a number, not negative".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let number = match value.as_text() {
            Some(text) => text.trim().parse().ok(),
            None => value.as_number(),
        };
        match number {
            Some(number) if f64::is_finite(number) && number >= 0.0 => Ok(Self(number)),
            Some(_) => Err(value.mismatch("it is out of range", Self::expected())),
            None => Err(value.wrong_kind(Self::expected())),
        }
    }
}

impl FromValue for Seconds {
    fn expected() -> String {
        "a number of seconds, at most a day's".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let Rate(seconds) = Rate::from_value(value)?;
        match Duration::try_from_secs_f64(seconds) {
            Ok(duration) if duration <= crate::period::Period::MAX => Ok(Self(duration)),
            _ => Err(value.mismatch("it is out of range", Self::expected())),
        }
    }
}
