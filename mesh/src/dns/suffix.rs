//! The end of names, as a route is written for: `corp.example`, `10.in-addr.arpa`.
//!
//! Kept as it stands in a message, lower case, so that a question's own octets find it: a label may be whatever DNS
//! allows and a text can say, underscores included (`_msdcs.corp.example`). Never the root: that is what upstreams without a route are for.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

/// Names that end so, and the name itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Suffix(Box<[u8]>);

/// Why a text is no suffix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no domain to route: {rule}")]
pub struct SuffixError {
    text: String,
    rule: &'static str,
}

impl Suffix {
    /// Does this one cover the other, or are they the same?
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        ends(&other.0).any(|end| end == &*self.0)
    }

    /// Its octets in a message.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A name's ends by whole labels, the longest first, the root left out. The name is uncompressed.
pub(super) fn ends(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = name;
    std::iter::from_fn(move || {
        let length = *rest.first().filter(|length| **length > 0)?;
        let end = rest;
        rest = rest.get(1 + usize::from(length)..).unwrap_or_default();
        Some(end)
    })
}

/// Are these lower-case labels of a host name?
pub(super) fn check_labels(name: &str) -> Result<(), &'static str> {
    for label in name.split('.') {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if label.is_empty() || label.len() > 63 || !label.bytes().all(good) {
            return Err("between its dots are 1 to 63 of a-z, 0-9 and '-' (RFC 1123)");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("a label neither begins nor ends with '-' (RFC 1123)");
        }
    }
    Ok(())
}

impl Borrow<[u8]> for Suffix {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, end) in ends(&self.0).enumerate() {
            let label = end.get(1..1 + usize::from(end[0])).unwrap_or_default();
            write!(f, "{}{}", if nth == 0 { "" } else { "." }, String::from_utf8_lossy(label))?;
        }
        Ok(())
    }
}

impl FromStr for Suffix {
    type Err = SuffixError;

    fn from_str(text: &str) -> Result<Self, SuffixError> {
        let refuse = |rule| SuffixError { text: text.chars().take(80).collect(), rule };
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(refuse("the root is what `upstreams` are asked for"));
        }
        let mut octets = Vec::with_capacity(name.len() + 2);
        for label in name.split('.') {
            let good = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'*');
            let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length));
            match length {
                Some(length) if label.bytes().all(good) => octets.push(length),
                _ => {
                    return Err(refuse(
                        "between its dots are 1 to 63 ASCII letters, digits and signs but *, \" and \\",
                    ));
                }
            }
            octets.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
        }
        octets.push(0);
        if octets.len() > 255 {
            return Err(refuse("a name has at most 255 octets (RFC 1035)"));
        }
        Ok(Self(octets.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn suffix(text: &str) -> Suffix {
        text.parse().unwrap()
    }

    #[test]
    fn a_suffix_is_labels_without_regard_to_case() {
        assert_eq!(suffix("Corp.Example.").as_bytes(), b"\x04corp\x07example\0");
        assert_eq!(suffix("10.in-addr.arpa").to_string(), "10.in-addr.arpa");
        assert_eq!(suffix("_msdcs.corp.example").to_string(), "_msdcs.corp.example");
        for bad in ["", ".", "a..b", "*.a", "a b", "ä.b", &"x".repeat(64), &"abc.".repeat(64)] {
            assert!(
                bad.parse::<Suffix>().unwrap_err().to_string().contains("is no domain to route"),
                "{bad}"
            );
        }
    }

    #[test]
    fn it_covers_whole_labels_alone() {
        assert!(suffix("example").covers(&suffix("corp.example")));
        assert!(suffix("corp.example").covers(&suffix("CORP.example")));
        for other in ["notcorp.example", "example", "corp.example.net"] {
            assert!(!suffix("corp.example").covers(&suffix(other)), "{other}");
        }
    }

    proptest! {
        #[test]
        fn it_covers_what_ends_so(above in "[a-z_]{1,8}(\\.[a-z0-9]{1,8}){0,3}", below in "[a-z]{1,8}") {
            let (above, whole) = (suffix(&above), suffix(&format!("{below}.{above}")));
            prop_assert!(above.covers(&whole) && !whole.covers(&above));
            prop_assert_eq!(suffix(&above.to_string()), above);
        }
    }
}
