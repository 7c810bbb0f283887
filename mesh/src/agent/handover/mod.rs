//! Replacing the program without anyone noticing: the next agent of a node takes over from the one that runs.
//!
//! They talk over a unix socket in the state directory, lines of JSON with descriptors beside them:
//!
//! | the next one says | the one that runs answers | from then on |
//! | --- | --- | --- |
//! | `hello` | `hello`, its listening `sockets`, its `catalog`, `offered` | it opens and closes no port |
//! | `prepare`, when all it can check is well | `prepared`: session, records, checks, the embedded store | it writes nothing to the store |
//! | `serving`, when it answers on every socket | `leaving` | it accepts nothing, finishes what it has, and ends |
//!
//! Both have the same sockets, not copies with queues of their own: while both accept, each client gets one of them, and what
//! waits in a queue when one stops is the other's. **Until `serving` everything can be taken back**: when the next one fails, or
//! is silent for too long, the one that runs goes on as if nothing had happened. Whoever is of another protocol, node or
//! store is refused at `hello`.

mod door;
mod give;
pub(super) mod memfd;
mod message;
mod take;
mod wire;

use std::io;
use std::time::Duration;

pub(super) use door::Door;
pub(super) use give::{Estate, Successor, give};
pub(super) use take::{Left, Taking, be_alone};
pub(super) use wire::Wire;

use crate::config::Config;

/// How long one answer of the other agent may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long the next agent may take from `prepared` to `serving`; beyond it, it gives up by itself.
pub(super) const SERVE_WITHIN: Duration = Duration::from_secs(20);
/// How long the one that runs waits for it: long enough that only one of them ever serves alone.
const TAKE_BACK_AFTER: Duration = Duration::from_secs(30);

/// Why a change of process did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It said so.
    #[error("the other agent refuses: {0}")]
    Refused(String),
    /// Nothing came in time.
    #[error("the other agent did not answer within {within:?} (awaited: {awaited})")]
    Late {
        /// What was awaited.
        awaited: &'static str,
        /// For how long.
        within: Duration,
    },
    /// It ended, or closed the connection.
    #[error("the other agent hung up (awaited: {0})")]
    HungUp(&'static str),
    /// What came is not what the protocol says.
    #[error("the other agent is not understood: {0}; if it is of another version, restart instead")]
    NotUnderstood(String),
    /// The socket.
    #[error("talking to the other agent failed: {0}")]
    Io(#[from] io::Error),
    /// Another user.
    #[error("a process of user {uid} wants to take over, and only root and user {own} may")]
    Stranger {
        /// Whose process.
        uid: u32,
        /// Who may.
        own: u32,
    },
    /// A room could not be handed over.
    #[error("{0}")]
    Room(String),
    /// The agent was asked to leave meanwhile.
    #[error("it was asked to leave meanwhile")]
    Leaving,
}

impl Error {
    /// Was it a decision, rather than a failure?
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Stranger { .. })
    }
}

/// How a change of process ended: a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This agent goes on for another one.
    TookOver,
    /// Another agent goes on for this one.
    HandedOver,
    /// Another agent was refused.
    Refused,
    /// It was begun and taken back.
    Failed,
}

impl Outcome {
    /// Every one.
    pub(super) const ALL: [Self; 4] = [Self::TookOver, Self::HandedOver, Self::Refused, Self::Failed];

    /// The word for it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::TookOver => "took_over",
            Self::HandedOver => "handed_over",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    /// Of one that did not come about.
    pub(super) fn of(error: &Error) -> Self {
        if error.is_refusal() { Self::Refused } else { Self::Failed }
    }
}

/// The store, as both agents must have it configured.
fn store_of(config: &Config) -> String {
    format!("{} below {}", config.store.url, config.store.prefix)
}
