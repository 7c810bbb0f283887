//! Whom a rule is about: a service by its name, everyone, or what has certain labels.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::{NameError, ServiceName};

/// The longest text of a selector, in bytes.
const LONGEST: usize = 256;
/// What stands for everyone.
const EVERYONE: &str = "*";

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// It has no form of a label selector, and is no service's name.
    #[error("{0}; write a service's name, `*` for everyone, or labels as `env=prod,tier!=db`")]
    Name(#[from] NameError),
    /// It is too long.
    #[error("it is longer than {LONGEST} bytes")]
    TooLong,
    /// A part of it is neither.
    #[error("{part:?} is neither LABEL=VALUE nor LABEL!=VALUE")]
    Part {
        /// The part.
        part: String,
    },
    /// Nothing can have all of these.
    #[error("{text:?} wants two values of label {label:?} at once, which nothing has")]
    Contradiction {
        /// As it was written.
        text: String,
        /// The label.
        label: String,
    },
}

/// The clients, or the services, that a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ServiceSelector {
    /// Everyone; as clients also those of whom nothing is known.
    Everyone,
    /// One service.
    Service(ServiceName),
    /// What has these labels.
    Labels(LabelSelector),
}

/// Labels that an instance has to have, or must not have with a value. In the order of their names, each once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSelector(BTreeSet<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Requirement {
    label: String,
    value: String,
    /// It must not be this. One without the label is well.
    negated: bool,
}

impl LabelSelector {
    /// Does an instance with these labels meet every requirement?
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|wanted| {
            let is_it = labels.get(&wanted.label).is_some_and(|value| *value == wanted.value);
            is_it != wanted.negated
        })
    }
}

impl Requirement {
    fn parse(part: &str) -> Option<Self> {
        let (label, value) = part.split_once('=')?;
        let (label, negated) = match label.strip_suffix('!') {
            Some(label) => (label, true),
            None => (label, false),
        };
        let (label, value) = (label.trim(), value.trim());
        let is_plain = |text: &str| {
            !text.is_empty() && !text.contains(['=', '!', '*']) && !text.chars().any(char::is_control)
        };
        (is_plain(label) && is_plain(value)).then(|| Self {
            label: label.to_owned(),
            value: value.to_owned(),
            negated,
        })
    }
}

impl FromStr for LabelSelector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.len() > LONGEST {
            return Err(SelectorError::TooLong);
        }
        let parts = text.split(',').map(|part| {
            Requirement::parse(part).ok_or_else(|| SelectorError::Part { part: part.trim().to_owned() })
        });
        let wanted = parts.collect::<Result<BTreeSet<_>, _>>()?;
        let fixed: Vec<&Requirement> = wanted.iter().filter(|one| !one.negated).collect();
        // They stand in the order of their labels.
        if let Some(two) = fixed.windows(2).find(|two| two[0].label == two[1].label) {
            return Err(SelectorError::Contradiction { text: text.to_owned(), label: two[0].label.clone() });
        }
        Ok(Self(wanted))
    }
}

impl FromStr for ServiceSelector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let text = text.trim();
        match text {
            EVERYONE => Ok(Self::Everyone),
            text if text.contains(['=', ',']) => text.parse().map(Self::Labels),
            name => Ok(Self::Service(ServiceName::new(name)?)),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Requirement { label, value, negated }) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let not = if *negated { "!" } else { "" };
            write!(f, "{comma}{label}{not}={value}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ServiceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everyone => f.pad(EVERYONE),
            Self::Service(name) => name.fmt(f),
            Self::Labels(labels) => f.pad(&labels.to_string()),
        }
    }
}

impl TryFrom<String> for ServiceSelector {
    type Error = SelectorError;
    fn try_from(text: String) -> Result<Self, SelectorError> {
        text.parse()
    }
}

impl From<ServiceSelector> for String {
    fn from(selector: ServiceSelector) -> Self {
        selector.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(label, value)| (label.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn labels_that_are_wanted_must_be_there_and_others_must_not() {
        for (selector, of, matches) in [
            ("env=prod", "env=prod,tier=web", true),
            ("env=prod", "env=dev", false),
            ("env=prod", "", false),
            ("tier!=db", "tier=web", true),
            ("tier!=db", "", true),
            ("tier!=db", "tier=db", false),
            (" env = prod , tier!=db ", "env=prod", true),
            ("env=prod,tier!=db", "env=prod,tier=db", false),
            ("tier!=db,tier!=cache", "tier=cache", false),
        ] {
            let parsed: LabelSelector = selector.parse().unwrap();
            assert_eq!(parsed.matches(&labels(of)), matches, "{selector:?} of {of:?}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused_and_said_why() {
        for (text, why) in [
            ("", "it is empty"),
            ("Web", "is no service name"),
            ("web,api", "\"web\" is neither LABEL=VALUE"),
            ("env=", "neither"),
            ("=prod", "neither"),
            ("!=prod", "neither"),
            ("env=a=b", "neither"),
            ("env=*", "neither"),
            ("env=a,", "\"\" is neither"),
            ("env=a,env=b", "two values of label \"env\""),
            (&format!("env={}", "x".repeat(300)), "longer than 256"),
        ] {
            let error = text.parse::<ServiceSelector>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_order_of_labels_means_nothing() {
        let [one, other]: [ServiceSelector; 2] =
            ["b=1,a!=2", "a!=2, b=1,b=1"].map(|text| text.parse().unwrap());
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "a!=2,b=1");
        assert_eq!(" * ".parse::<ServiceSelector>().unwrap(), ServiceSelector::Everyone);
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "(\\*|[a-z]{1,3}|([a-c]!?=[x-z],?){1,4}|.{0,20})") {
            if let Ok(selector) = text.parse::<ServiceSelector>() {
                prop_assert_eq!(selector.to_string().parse::<ServiceSelector>().unwrap(), selector);
            }
        }
    }
}
