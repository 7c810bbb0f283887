//! How a command fails: what was tried, why it failed, what to do; and the exit code that tells scripts so.

use std::fmt;
use std::io;

/// A command that was not done.
#[derive(Debug)]
pub enum Error {
    /// The arguments are wrong, or help was asked for: clap's own message.
    Usage(clap::Error),
    /// It was tried and failed.
    Failed {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        why: String,
        /// What to do next.
        hint: Option<String>,
        /// Whose fault it is, as far as that matters to a program.
        fault: Fault,
    },
    /// What a container runtime asked for: what it is told, in its own form.
    Plugin(serde_json::Value),
    /// The agent or the demo ended with an error.
    Program(anyhow::Error),
    /// The output could not be written.
    Output(io::Error),
}

/// What stood in the way of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No agent answers, or it cannot at the moment: what is asked for may be done later.
    Absent,
    /// There is no such thing.
    Unknown,
    /// Anything else.
    Other,
}

/// The result of a command.
pub type Result<T = ()> = std::result::Result<T, Error>;

impl Error {
    /// A failure without advice.
    pub(super) fn failed(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::Failed { what: what.into(), why: why.to_string(), hint: None, fault: Fault::Other }
    }

    /// The same failure with advice.
    pub(super) fn hint(self, advice: impl Into<String>) -> Self {
        match self {
            Self::Failed { what, why, fault, .. } => {
                Self::Failed { what, why, hint: Some(advice.into()), fault }
            }
            other => other,
        }
    }

    /// The same failure, whose fault it is.
    pub(super) fn fault(self, fault: Fault) -> Self {
        match self {
            Self::Failed { what, why, hint, .. } => Self::Failed { what, why, hint, fault },
            other => other,
        }
    }

    /// 0: done (help was asked for, or the reader of our output had enough), 1: failed, 2: usage.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(error) if !error.use_stderr() => 0,
            Self::Usage(_) => 2,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Failed { .. } | Self::Plugin(_) | Self::Program(_) | Self::Output(_) => 1,
        }
    }

    /// Tells the user, on standard error; help, and what a container runtime is told, goes to standard output.
    pub fn report(&self) {
        use io::Write;
        match self {
            Self::Usage(error) => drop(error.print()),
            Self::Plugin(failure) => drop(writeln!(io::stdout(), "{failure}")),
            _ if self.exit_code() == 0 => {}
            _ => drop(writeln!(io::stderr(), "plexus: {self}")),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(error) => error.fmt(f),
            Self::Failed { what, why, hint, .. } => {
                write!(f, "{what}: {why}")?;
                hint.as_ref().map_or(Ok(()), |hint| write!(f, "; {hint}"))
            }
            Self::Plugin(failure) => failure.fmt(f),
            Self::Program(error) => write!(f, "{error:#}"),
            Self::Output(error) => write!(f, "writing the output: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<clap::Error> for Error {
    fn from(error: clap::Error) -> Self {
        Self::Usage(error)
    }
}
