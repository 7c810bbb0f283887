//! How a container runtime is told that something was not done: a code of the specification, and words.

use std::fmt;

use serde_json::{Value, json};

use super::version::Version;
use crate::cli::error::{Error, Fault};

/// "Error codes 0-99 are reserved for well-known errors. Values of 100+ can be freely used for plugin specific errors."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// "Incompatible CNI version."
    IncompatibleVersion,
    /// "Container unknown or does not exist. This error implies the runtime does not need to perform any container network
    /// cleanup".
    UnknownContainer,
    /// "Invalid necessary environment variables".
    Environment,
    /// "I/O failure."
    Io,
    /// "Failed to decode content."
    Decoding,
    /// "Invalid network config."
    Configuration,
    /// The namespace is the runtime's own.
    Namespace,
    /// "Try again later. If the plugin detects some transient condition that should clear up, it can use this code to notify the
    /// runtime it should re-try the operation later."
    TryAgain,
    /// "The plugin is not available (i.e. cannot service ADD requests)".
    Unavailable,
    /// The agent refuses.
    Refused,
    /// Something is not as it was made.
    Changed,
    /// A plugin that this one runs says so.
    Delegate(u64),
}

impl Code {
    fn number(self) -> u64 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnknownContainer => 3,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::Configuration => 7,
            Self::Namespace => 8,
            Self::TryAgain => 11,
            Self::Unavailable => 50,
            Self::Refused => 100,
            Self::Changed => 101,
            Self::Delegate(code) => code,
        }
    }
}

/// What a container runtime asked for was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    version: Version,
    code: Code,
    message: String,
    details: String,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl ToString) -> Self {
        Self { version: Version::LATEST, code, message: message.to_string(), details: String::new() }
    }

    #[must_use]
    pub(super) fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// In the version that the runtime speaks.
    #[must_use]
    pub(super) fn of(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// What the agent was asked for and did not do.
    pub(super) fn agent(error: Error) -> Self {
        match error {
            Error::Failed { what, why, hint, fault } => {
                let code = match fault {
                    Fault::Absent => Code::TryAgain,
                    Fault::Unknown | Fault::Other => Code::Refused,
                };
                Self::new(code, format!("{what}: {why}")).details(hint.unwrap_or_default())
            }
            other => Self::new(Code::Io, other),
        }
    }

    /// The same failure as an answer to `STATUS`: whatever it is, nothing can be attached.
    #[must_use]
    pub(super) fn into_unavailable(self) -> Self {
        Self { code: Code::Unavailable, ..self }
    }

    pub(super) fn json(&self) -> Value {
        let Self { version, code, message, details } = self;
        let mut json = json!({"cniVersion": version.as_str(), "code": code.number(), "msg": message});
        if !details.is_empty() {
            json["details"] = json!(details);
        }
        json
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_what_the_specification_says() {
        let failure = Failure::new(Code::Environment, "CNI_NETNS is not set").of(Version::V0_4_0);
        let expected = json!({"cniVersion": "0.4.0", "code": 4, "msg": "CNI_NETNS is not set"});
        assert_eq!(failure.json(), expected);
        assert_eq!(failure.details("set it").json()["details"], "set it");
    }

    #[test]
    fn an_agent_that_is_not_there_may_be_there_later() {
        let absent = Error::failed("attaching c1", "no agent answers").hint("is it running?");
        let code = |fault| Failure::agent(absent_with(fault)).json()["code"].clone();
        let absent_with_hint = Failure::agent(absent.fault(Fault::Absent)).json();
        assert_eq!(absent_with_hint["msg"], "attaching c1: no agent answers");
        assert_eq!(absent_with_hint["details"], "is it running?");
        assert_eq!([code(Fault::Absent), code(Fault::Other)], [json!(11), json!(100)]);
    }

    fn absent_with(fault: Fault) -> Error {
        Error::failed("attaching c1", "it says no").fault(fault)
    }
}
