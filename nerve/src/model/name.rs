//! Validated names. A value of one of these types can be put into a store key, a DNS name and a metric label as it is.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not a name: what was read, what it was to be, the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no {kind}: {rule}")]
pub struct NameError {
    /// The text as it was given (shortened when overlong).
    pub value: String,
    /// What the text was to name: `service name`, `node name`, …
    pub kind: &'static str,
    /// The broken rule, in words a user can act on.
    pub rule: &'static str,
}

/// A DNS label as RFC 1123 section 2.1 has it, in lower case.
fn dns_label(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 63 {
        return Err("a DNS label has at most 63 characters (RFC 1035)");
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Err(
            "a DNS label has only a-z, 0-9 and '-' (RFC 1123); write it in lower case without '_' or '.'",
        );
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("a DNS label neither begins nor ends with '-' (RFC 1123)");
    }
    Ok(())
}

/// Text that is safe as one segment of a store key and as a metric label.
fn token(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 128 {
        return Err("it has more than 128 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:@".contains(&b)) {
        return Err("allowed are letters, digits and '-', '_', '.', ':', '@'");
    }
    if text == "." || text == ".." {
        return Err("it would change the path it stands in");
    }
    Ok(())
}

/// Text that a person chose, kept as it is: printable, one line, bounded.
fn tag(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 255 {
        return Err("it has more than 255 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("it has control characters");
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Validates `text`.
            pub fn new(text: &str) -> Result<Self, NameError> {
                match $rule(text) {
                    Ok(()) => Ok(Self(text.into())),
                    Err(rule) => Err(NameError { value: text.chars().take(80).collect(), kind: $kind, rule }),
                }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// What clients ask for: a DNS label, since it becomes one.
    ServiceName, "service name", dns_label
);
impl ServiceName {
    /// What a service of a Docker swarm is called: one of a stack, such as `shop_web`, has a name that nobody could ask for.
    ///
    /// # Errors
    /// It is no service name even so.
    pub fn of_swarm(service: &str) -> Result<Self, NameError> {
        Self::new(&service.replace('_', "-"))
    }
}

name!(
    /// One running copy of a service, unique in its service across the fleet.
    InstanceId, "instance id", token
);
name!(
    /// A machine that runs an agent: a DNS label, since it becomes one.
    NodeName, "node name", dns_label
);
name!(
    /// An overlay network: a DNS label, as the other names of the fleet are.
    NetworkName, "network name", dns_label
);
name!(
    /// A rule about who may talk to whom: a DNS label, as the other names of the fleet are.
    RuleName, "rule name", dns_label
);
name!(
    /// A named port of an instance (`http`, `metrics`), as RFC 6335 would have it: a DNS label.
    PortName, "port name", dns_label
);
name!(
    /// Where a node stands (`eu-1a`): free text within the limits of a metric label.
    Zone, "zone", token
);
name!(
    /// What a zone is part of (`eu-1`): zones of one region are nearer to each other than to others.
    Region, "region", token
);
name!(
    /// A mark on an instance, free text on one line.
    Tag, "tag", tag
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn service_names_are_dns_labels() {
        for good in ["web", "a", "web-2", "0", &"x".repeat(63)] {
            assert!(ServiceName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Web", "a_b", "a.b", "ä", &"x".repeat(64), "a b", "a/b"] {
            assert!(ServiceName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_error_shows_value_kind_and_rule() {
        let error = ServiceName::new("My_Web").unwrap_err().to_string();
        assert!(error.starts_with("\"My_Web\" is no service name: a DNS label has only"), "{error}");
    }

    proptest! {
        #[test]
        fn an_accepted_instance_id_is_one_key_segment(text in ".{0,140}") {
            if let Ok(id) = InstanceId::new(&text) {
                prop_assert!(!id.as_str().contains('/') && !id.as_str().is_empty());
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn json_never_brings_in_an_invalid_name(text in ".{0,80}") {
            let json = serde_json::to_string(&text).unwrap();
            let parsed = serde_json::from_str::<ServiceName>(&json);
            prop_assert_eq!(parsed.is_ok(), ServiceName::new(&text).is_ok());
        }
    }
}
