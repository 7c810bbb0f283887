//! Is an instance well? Probes on a schedule, and a verdict over several of them.
//!
//! A [`CheckSpec`] says what to probe and how often; the [`Runner`] probes it in a task of its own, so that a target that
//! hangs delays nobody else; [`hysteresis`] turns results into a verdict. An instance is as well as its worst check.
//!
//! To add a kind: one file with a type that implements [`Check`], `Serialize` and `read`, and one line in `kinds!`.
//! What a check never does: touch the store, or change anything at its target.

mod carried;
mod connect;
mod http;
mod hysteresis;
mod metrics;
mod runner;
mod schedule;
mod spec;
mod status;
mod tcp;

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::document::{Reported, Section};
use crate::model::ListensOn;

pub use carried::{Beginning, Carried, CarriedCheck, Progress};
pub use http::Http;
pub use hysteresis::Hysteresis;
pub use metrics::Metrics;
pub use runner::{CheckStatus, Monitor, Report, Runner, Subject};
pub use schedule::START_PAUSE;
pub use spec::{CheckSpec, Timing, TimingError};
pub use status::StatusSet;
pub use tcp::Tcp;

/// So much of a probe's text is kept, in bytes: it comes from the target and goes into the store.
const MAX_TEXT: usize = 256;

/// A way to probe an instance. The runner sets the timeout, measures the latency and bounds the text.
#[async_trait]
pub trait Check: fmt::Debug + Send + Sync + 'static {
    /// What it does, for people: `http GET /healthz`.
    fn describe(&self) -> String;

    /// Probes once. Dropped when its time is over.
    ///
    /// # Errors
    /// The instance is not well; the text says why (`status 503`).
    async fn probe(&self, instance: &ListensOn) -> Result<String, String>;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $key:literal => $variant:ident),* $(,)?) => {
        /// What a check probes: one variant a kind.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        #[allow(clippy::large_enum_variant, reason = "there are a few an instance, and none is moved around")]
        pub enum Probe {
            $($(#[$doc])* $variant($variant),)*
        }

        impl Probe {
            /// The key that names each kind.
            pub const KINDS: &[&str] = &[$($key),*];

            /// The key that names this kind: a metric label.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $key),* }
            }

            fn check(&self) -> &dyn Check {
                match self { $(Self::$variant(check) => check),* }
            }

            fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
                let named: Vec<&str> = Self::KINDS.iter().copied().filter(|kind| section.has(kind)).collect();
                match *named.as_slice() {
                    $([$key] => $variant::read(section).map(Self::$variant),)*
                    _ => {
                        for kind in Self::KINDS {
                            section.allow(kind);
                        }
                        let kinds = Self::KINDS.join("`, `");
                        Err(section.refuse(
                            if named.is_empty() { "it names no kind of check" } else { "it names two kinds of check" },
                            format!("one key of `{kinds}`"),
                        ))
                    }
                }
            }
        }
    };
}

kinds! {
    /// Something accepts a connection.
    "tcp" => Tcp,
    /// A request is answered as expected.
    "http" => Http,
}

/// How one probe ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Was it well?
    pub healthy: bool,
    /// What was seen: `status 200`, `connect to 127.0.0.1:80: refused`; at most 256 bytes, one line.
    pub text: String,
    /// From the beginning of the probe to its end.
    pub latency: Duration,
    /// When it ended.
    pub at: SystemTime,
}

/// A text of the target on one line and within bounds.
fn bounded(text: &str) -> String {
    let mut bounded = String::with_capacity(text.len().min(MAX_TEXT));
    for character in text.chars() {
        let character = if character.is_control() { ' ' } else { character };
        if bounded.len() + character.len_utf8() > MAX_TEXT {
            break;
        }
        bounded.push(character);
    }
    bounded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_target_says_is_kept_to_one_line_and_256_bytes() {
        assert_eq!(bounded("a\r\nb\u{1b}[31m"), "a  b [31m");
        let long = bounded(&"ä".repeat(1000));
        assert!(long.len() <= MAX_TEXT && long.chars().all(|c| c == 'ä'));
    }
}
