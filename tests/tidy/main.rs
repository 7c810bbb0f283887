//! The shape of the code and of the documents, as tests: who imports whom, where external crates live, how long files
//! and functions are, and whether what the documents say exists.
//!
//! `rules` has everything that a change may have to touch; the other files only apply it. A failure names the place,
//! the rule and its reason.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod dependencies;
mod documents;
mod imports;
mod rules;
mod shape;
mod source;

/// Fails with a list of everything that is wrong.
#[track_caller]
fn none_of(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n  {}", problems.len(), problems.join("\n  "));
}
