//! The path of a unix socket, validated: what can be put into a socket address, a record and a message as it is.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What fits into a `sockaddr_un` with the NUL behind it (unix(7)).
const LONGEST: usize = 107;

/// Where a unix stream socket stands in the file system: absolute, at most 107 bytes, in its one spelling.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnixPath(Arc<str>);

/// Why a text is no path of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no path of a unix socket: {rule}")]
pub struct UnixPathError {
    /// The text as it was given (shortened when overlong).
    pub value: String,
    /// The broken rule, in words a user can act on.
    pub rule: &'static str,
}

impl UnixPath {
    /// Validates `text`.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn new(text: &str) -> Result<Self, UnixPathError> {
        match broken_rule(text) {
            None => Ok(Self(text.into())),
            Some(rule) => Err(UnixPathError { value: text.chars().take(120).collect(), rule }),
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As a path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&*self.0)
    }

    /// The name of the file.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

fn broken_rule(text: &str) -> Option<&'static str> {
    let Some(names) = text.strip_prefix('/') else {
        return Some("write it absolute, such as \"/run/app.sock\"");
    };
    if text.len() > LONGEST {
        return Some("the kernel takes at most 107 bytes (unix(7)); take a shorter directory");
    }
    if text.chars().any(char::is_control) {
        return Some("it has control characters");
    }
    // Of two spellings of one path, each would be another socket.
    let has_other_spelling = names.split('/').any(|name| matches!(name, "" | "." | ".."));
    has_other_spelling
        .then_some("write it without \"//\", \".\" and \"..\", and with the file's name at the end")
}

impl fmt::Display for UnixPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for UnixPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for UnixPath {
    type Err = UnixPathError;

    fn from_str(text: &str) -> Result<Self, UnixPathError> {
        Self::new(text)
    }
}

impl TryFrom<String> for UnixPath {
    type Error = UnixPathError;

    fn try_from(text: String) -> Result<Self, UnixPathError> {
        Self::new(&text)
    }
}

impl From<UnixPath> for String {
    fn from(path: UnixPath) -> Self {
        path.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_is_absolute_short_and_in_one_spelling() {
        let longest = format!("/{}", "x".repeat(106));
        for good in ["/run/app.sock", "/x", "/run/ä b.sock", &longest] {
            assert!(UnixPath::new(good).is_ok(), "{good}");
        }
        let too_long = format!("/{}", "x".repeat(107));
        for bad in [
            "",
            "app.sock",
            "/",
            "/run/",
            "/run//x",
            "/run/./x",
            "/run/../x",
            "/a\0b",
            "/a\nb",
            "@x",
            &too_long,
        ] {
            assert!(UnixPath::new(bad).is_err(), "{bad}");
        }
        assert_eq!(UnixPath::new("/run/app.sock").unwrap().file_name(), "app.sock");
        let error = UnixPath::new("app.sock").unwrap_err().to_string();
        assert!(error.starts_with("\"app.sock\" is no path of a unix socket: write it absolute"), "{error}");
    }

    proptest! {
        #[test]
        fn what_is_accepted_fits_a_socket_address(text in "(/[^\\p{C}]{0,20}){0,8}") {
            if let Ok(path) = UnixPath::new(&text) {
                prop_assert!(std::os::unix::net::SocketAddr::from_pathname(path.as_path()).is_ok());
                prop_assert_eq!(path.to_string(), text);
            }
        }
    }
}
