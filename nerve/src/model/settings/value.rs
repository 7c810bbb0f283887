//! Values that a setting can have: what an operator types, what stands in JSON, and the words for what is expected.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::period::Period;

/// A value that an operator can type.
pub(super) trait Value: FromStr<Err: fmt::Display> + fmt::Display {
    /// What is expected, for the message about what is not: `a duration such as 30s`.
    fn expects() -> String;
}

/// A share from 0 to 100 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Percent(u8);

impl Percent {
    /// Validates `percent`.
    ///
    /// # Errors
    /// It is more than 100.
    pub fn new(percent: u8) -> Result<Self, String> {
        if percent <= 100 { Ok(Self(percent)) } else { Err(format!("{percent} is no percentage: 0 to 100")) }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Percent {
    type Error = String;
    fn try_from(percent: u8) -> Result<Self, String> {
        Self::new(percent)
    }
}

impl From<Percent> for u8 {
    fn from(percent: Percent) -> Self {
        percent.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FromStr for Percent {
    type Err = String;

    /// Reads `5` and `5%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').unwrap_or(text);
        let percent = number.parse().ok().and_then(|percent| Self::new(percent).ok());
        percent.ok_or_else(|| format!("{text:?} is no percentage: write a whole number from 0 to 100"))
    }
}

/// A number of things: connections, endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Count(u32);

impl Count {
    /// The largest: half of what the counters behind it can hold.
    pub const MAX: u32 = 1_000_000_000;

    /// Validates `count`.
    ///
    /// # Errors
    /// It is larger than [`Count::MAX`].
    pub fn new(count: u32) -> Result<Self, String> {
        if count <= Self::MAX { Ok(Self(count)) } else { Err(format!("{count} is more than {}", Self::MAX)) }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Count {
    type Error = String;
    fn try_from(count: u32) -> Result<Self, String> {
        Self::new(count)
    }
}

impl From<Count> for u32 {
    fn from(count: Count) -> Self {
        count.0
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Count {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let count = text.parse().ok().and_then(|count| Self::new(count).ok());
        count.ok_or_else(|| format!("{text:?} is no number from 0 to {}", Self::MAX))
    }
}

/// How many times as much: 0 for never, or from 2 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Factor(u16);

impl Factor {
    /// Validates `factor`.
    ///
    /// # Errors
    /// It is 1, which everything is of itself, or more than 1000.
    pub fn new(factor: u16) -> Result<Self, String> {
        if factor == 1 || factor > 1000 {
            return Err(format!("{factor} is no factor: 0 for never, or 2 to 1000"));
        }
        Ok(Self(factor))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Factor {
    type Error = String;
    fn try_from(factor: u16) -> Result<Self, String> {
        Self::new(factor)
    }
}

impl From<Factor> for u16 {
    fn from(factor: Factor) -> Self {
        factor.0
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Factor {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let factor = text.parse().ok().and_then(|factor| Self::new(factor).ok());
        factor.ok_or_else(|| {
            format!("{text:?} is no factor: write 0 for never, or a whole number from 2 to 1000")
        })
    }
}

impl Value for Percent {
    fn expects() -> String {
        "a percentage from 0 to 100".to_owned()
    }
}

impl Value for Count {
    fn expects() -> String {
        format!("a whole number from 0 to {}", Self::MAX)
    }
}

impl Value for Factor {
    fn expects() -> String {
        "0, or a whole number from 2 to 1000".to_owned()
    }
}

impl Value for Period {
    fn expects() -> String {
        "a duration from 1ms to 1day, such as 500ms, 30s or 10m".to_owned()
    }
}

impl Value for bool {
    fn expects() -> String {
        "true or false".to_owned()
    }
}

/// An enum that reads and prints as words of a closed list.
macro_rules! word_list {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        #[derive(serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word for it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let found = Self::ALL.iter().find(|one| one.as_str() == text);
                found.copied().ok_or_else(|| {
                    format!("{text:?} is none of {}", Self::ALL.iter().map(|one| one.as_str()).collect::<Vec<_>>().join(", "))
                })
            }
        }

        impl super::value::Value for $name {
            fn expects() -> String {
                format!("one of {}", Self::ALL.iter().map(|one| one.as_str()).collect::<Vec<_>>().join(", "))
            }
        }
    };
}
pub(super) use word_list;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused_as_text_and_as_json() {
        assert_eq!("5%".parse(), Percent::new(5));
        assert!("101".parse::<Percent>().is_err() && serde_json::from_str::<Percent>("101").is_err());
        assert!(
            "1000000001".parse::<Count>().is_err() && serde_json::from_str::<Count>("1000000001").is_err()
        );
        assert!("1".parse::<Factor>().is_err() && serde_json::from_str::<Factor>("1").is_err());
        assert_eq!("0".parse(), Factor::new(0));
        assert!("-1".parse::<Count>().is_err() && "".parse::<Percent>().is_err());
    }
}
