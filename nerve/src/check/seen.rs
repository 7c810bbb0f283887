//! What one probe says: how bad it is, in words, and what it advises.

use super::{Advice, Level};

/// What one probe saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) level: Level,
    /// A line for people.
    pub(super) text: String,
    /// What a program printed.
    pub(super) output: String,
    /// What it says of its weight.
    pub(super) advice: Option<Advice>,
}

impl Seen {
    pub(super) fn new(level: Level, text: impl Into<String>) -> Self {
        Self { level, text: text.into(), output: String::new(), advice: None }
    }

    pub(super) fn passing(text: impl Into<String>) -> Self {
        Self::new(Level::Passing, text)
    }

    pub(super) fn critical(text: impl Into<String>) -> Self {
        Self::new(Level::Critical, text)
    }
}

impl From<Result<String, String>> for Seen {
    fn from(result: Result<String, String>) -> Self {
        match result {
            Ok(text) => Self::passing(text),
            Err(text) => Self::critical(text),
        }
    }
}
