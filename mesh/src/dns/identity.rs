//! What the server says of itself to those who ask who answers (RFC 4892, RFC 5001). Nothing, unless it is told what.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// To `id.server`, `hostname.bind` and NSID. Default: nothing, they are refused.
    pub server: Option<ShownText>,
    /// To `version.server` and `version.bind`. Default: nothing, they are refused.
    pub version: Option<ShownText>,
}

/// A text of 1 to 64 visible characters of ASCII: it has to fit into an answer beside everything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownText(String);

/// Why a text is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not have 1 to 64 characters of ASCII between space and ~")]
pub struct ShownTextError;

impl Identity {
    /// What a name of class CH asks; in lower case, without the final dot.
    pub(super) fn of(&self, name: &str) -> Option<&ShownText> {
        match name {
            "id.server" | "hostname.bind" => self.server.as_ref(),
            "version.server" | "version.bind" => self.version.as_ref(),
            _ => None,
        }
    }
}

impl ShownText {
    const LONGEST: usize = 64;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShownText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ShownText {
    type Err = ShownTextError;

    fn from_str(text: &str) -> Result<Self, ShownTextError> {
        let is_shown = text.bytes().all(|octet| (b' '..=b'~').contains(&octet));
        let is_one = (1..=Self::LONGEST).contains(&text.len()) && is_shown;
        if is_one { Ok(Self(text.to_owned())) } else { Err(ShownTextError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_tells_what_was_told_and_no_other_does() {
        let text = |text: &str| text.parse::<ShownText>().ok();
        let identity = Identity { server: text("a-1"), version: None };
        assert_eq!(
            ["id.server", "hostname.bind"].map(|name| identity.of(name).cloned()),
            [text("a-1"), text("a-1")]
        );
        assert_eq!(
            ["version.server", "version.bind", "authors.bind"].map(|name| identity.of(name)),
            [None; 3]
        );
    }

    #[test]
    fn a_shown_text_is_short_and_visible() {
        assert_eq!("Plexus 1 ~".parse::<ShownText>().unwrap().as_str(), "Plexus 1 ~");
        for bad in ["", "ä", "a\nb", &"x".repeat(65)] {
            assert!(bad.parse::<ShownText>().is_err(), "{bad}");
        }
    }
}
