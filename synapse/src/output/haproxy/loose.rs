//! Values as Ruby takes them, where a configuration of Synapse's may have them: a number as a text, one line as a list of one.
//!
//! What is to become a line of HAProxy's configuration is one: nothing that is read here holds a line break.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use nerve::document::{FromValue, Mismatch, Value};
use serde::{Serialize, Serializer};

/// The longest time that is read, in seconds: a year.
const LONGEST: f64 = 365.0 * 24.0 * 60.0 * 60.0;

/// A number of seconds, not negative.
pub(super) struct Seconds(pub(super) Duration);

/// One line.
pub(super) struct Line(pub(super) String);

/// Lines: a list of them, or one text.
pub(super) struct Lines(pub(super) Vec<String>);

/// The first line of a section: `listen stats :3212`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Title(String);

/// A share of something, in thousandths of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share(u32);

/// What HAProxy takes as the name of a proxy or of a server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ProxyName(String);

/// A number that is not negative, be it written as a text.
fn number(value: &Value, most: f64, expected: &str) -> Result<f64, Vec<Mismatch>> {
    let number = match value.as_text() {
        Some(text) => text.trim().parse().ok(),
        None => value.as_number(),
    };
    match number {
        Some(number) if (0.0..=most).contains(&number) => Ok(number),
        Some(_) => Err(value.mismatch("it is out of range", expected)),
        None => Err(value.wrong_kind(expected)),
    }
}

impl FromValue for Seconds {
    fn expected() -> String {
        "a number of seconds".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        number(value, LONGEST, &Self::expected()).map(|seconds| Self(Duration::from_secs_f64(seconds)))
    }
}

impl FromValue for Share {
    fn expected() -> String {
        "a number from 0 to 100, such as 0.1".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let share = number(value, 100.0, &Self::expected())?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 100 000")]
        Ok(Self((share * 1000.0).round() as u32))
    }
}

impl Share {
    /// So much of `whole`.
    pub(super) fn of(self, whole: Duration) -> Duration {
        whole * self.0 / 1000
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 1000.0)
    }
}

/// Is it one line? Tabs are blanks.
pub(super) fn is_one_line(text: &str) -> bool {
    !text.chars().any(|c| c != '\t' && (c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')))
}

const ONE_LINE: &str = "one line without control characters";

impl FromValue for Line {
    fn expected() -> String {
        "a text of one line".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let text = value.as_text().ok_or_else(|| value.wrong_kind(Self::expected()))?;
        if !is_one_line(text) {
            return Err(value.mismatch("it has control characters", ONE_LINE));
        }
        Ok(Self(text.trim().to_owned()))
    }
}

impl FromValue for Lines {
    fn expected() -> String {
        "a list of lines".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let (mut lines, mut wrong) = (Vec::new(), Vec::new());
        for element in value.as_list().unwrap_or(std::slice::from_ref(value)) {
            let text = element.as_text().ok_or_else(|| value.wrong_kind(Self::expected()))?;
            for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
                if is_one_line(line) {
                    lines.push(line.to_owned());
                } else {
                    wrong.extend(element.mismatch("a line of it has control characters", ONE_LINE));
                }
            }
        }
        if wrong.is_empty() { Ok(Self(lines)) } else { Err(wrong) }
    }
}

impl FromStr for Title {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() || !is_one_line(text) {
            return Err(format!(
                "{text:?} is no title of a section: write one line such as \"listen stats\""
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Title {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The characters that HAProxy takes in names.
fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.:".contains(c)
}

impl ProxyName {
    /// `text`, with `_` in the place of characters that HAProxy refuses in names.
    #[must_use]
    pub fn sanitised(text: &str) -> Self {
        let name: String = text.trim().chars().map(|c| if is_name(c) { c } else { '_' }).collect();
        if name.is_empty() { Self("_".to_owned()) } else { Self(name) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProxyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ProxyName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || !text.chars().all(is_name) {
            return Err(format!("{text:?} is no name that HAProxy takes"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromValue for ProxyName {
    fn expected() -> String {
        "letters, digits, \"-\", \"_\", \".\" and \":\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.parse_text(&Self::expected())
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;

    fn read<T: FromValue>(text: &str) -> Result<T, String> {
        let document = Document::parse_yaml("x", &format!("x: {text}")).unwrap();
        document.decode(|root| root.required::<T>("x")).map_err(|errors| errors.to_string())
    }

    #[test]
    fn numbers_may_be_texts_and_lists_single_lines() {
        assert_eq!(read::<Seconds>("\"1.5\"").unwrap().0, Duration::from_millis(1500));
        assert!(read::<Seconds>("-1").is_err() && read::<Seconds>("soon").is_err());
        assert_eq!(read::<Share>("0.25").unwrap().of(Duration::from_secs(10)), Duration::from_millis(2500));
        assert_eq!(read::<Lines>("mode tcp").unwrap().0, ["mode tcp"]);
        assert_eq!(read::<Lines>("[\" a b \", \"c\\nd\", \"\"]").unwrap().0, ["a b", "c", "d"]);
    }

    #[test]
    fn nothing_that_breaks_a_line_is_read() {
        for text in ["\"a\\rb\"", "\"a\\u0000b\"", "\"a\\u2028b\"", "\"a\\u0085b\""] {
            assert!(read::<Line>(text).is_err(), "{text}");
            assert!(read::<Lines>(text).is_err(), "{text}");
        }
        assert!(read::<Line>("\"a\\nb\"").is_err());
        assert!("a\nb".parse::<Title>().is_err() && "a b".parse::<ProxyName>().is_err());
        assert_eq!(ProxyName::sanitised("a b\n/é").as_str(), "a_b___");
    }
}
