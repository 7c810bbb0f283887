//! What an error of ZooKeeper or of its client means for us: what kind, was it applied, what may help.

use std::sync::Arc;
use std::time::Duration;

use zookeeper_client::Error as ZkError;

use crate::store::ErrorKind;

/// A failed attempt.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    /// The request may have reached a server that carried it out.
    pub(super) may_have_applied: bool,
    pub(super) next: Next,
    pub(super) reason: String,
    pub(super) source: Option<Arc<ZkError>>,
}

/// What may help against a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing that we can do.
    GiveUp,
    /// Another server, or a new connection.
    AskAnother,
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, next: Next, reason: impl Into<String>) -> Self {
        Self { kind, may_have_applied: false, next, reason: reason.into(), source: None }
    }

    pub(super) fn unavailable(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, Next::AskAnother, reason)
    }

    /// No answer in time.
    pub(super) fn timeout(after: Duration) -> Self {
        // To a hundredth of a second: what is left of a deadline is never a round number.
        let after = u64::try_from(after.as_millis().div_ceil(10) * 10).unwrap_or(u64::MAX);
        let after = humantime::format_duration(Duration::from_millis(after));
        Self::unavailable(format!(
            "no answer within {after}; check that ZooKeeper runs there, is reachable and has a leader"
        ))
    }

    /// A session that is gone, or that this process does not hold.
    pub(super) fn session_lost(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::SessionLost, Next::GiveUp, reason)
    }

    /// An error of a request that only reads.
    pub(super) fn of(error: ZkError) -> Self {
        use ErrorKind::{Corrupt, Denied, Invalid, Unavailable};
        let (kind, next, reason) = match &error {
            ZkError::NoAuth => (
                Denied,
                Next::GiveUp,
                format!(
                    "{error}; set `username` and `password` to those of the access list of the store's prefix, or \
                     grant that user all permissions on it and on everything below"
                ),
            ),
            ZkError::AuthFailed => {
                (Denied, Next::GiveUp, format!("{error}; check `username` and `password` of the store"))
            }
            ZkError::Unimplemented => (
                Invalid,
                Next::GiveUp,
                format!(
                    "{error}: recursive watches and container nodes need ZooKeeper 3.6 or newer, on every server; \
                     upgrade the ensemble"
                ),
            ),
            ZkError::QuotaExceeded => {
                (Unavailable, Next::GiveUp, format!("{error}; raise the quota on the store's prefix"))
            }
            ZkError::Throttled => {
                (Unavailable, Next::AskAnother, format!("{error}; ZooKeeper is overloaded"))
            }
            ZkError::NotReadOnly => {
                (Unavailable, Next::AskAnother, format!("{error}; it is cut off from most of the ensemble"))
            }
            ZkError::BadArguments(_) | ZkError::InvalidAcl | ZkError::MarshallingError => {
                (Invalid, Next::GiveUp, error.to_string())
            }
            ZkError::UnmarshalError { .. } => {
                (Corrupt, Next::AskAnother, format!("{error}; is that a ZooKeeper server?"))
            }
            ZkError::SessionExpired
            | ZkError::ClientClosed
            | ZkError::ConnectionLoss
            | ZkError::SessionMoved => {
                (Unavailable, Next::AskAnother, format!("{error}; check ZooKeeper's log"))
            }
            _ => {
                (Unavailable, Next::AskAnother, format!("the request failed: {error}; check ZooKeeper's log"))
            }
        };
        Self { kind, may_have_applied: false, next, reason, source: Some(Arc::new(error)) }
    }

    /// An error of a request that writes: unless ZooKeeper itself refused it, it may have been applied.
    pub(super) fn of_write(error: ZkError) -> Self {
        let refused = matches!(
            &error,
            ZkError::NoNode
                | ZkError::NoAuth
                | ZkError::BadVersion
                | ZkError::NoChildrenForEphemerals
                | ZkError::NodeExists
                | ZkError::NotEmpty
                | ZkError::InvalidAcl
                | ZkError::AuthFailed
                | ZkError::NotReadOnly
                | ZkError::QuotaExceeded
                | ZkError::Throttled
                | ZkError::MarshallingError
                | ZkError::Unimplemented
                | ZkError::BadArguments(_)
                | ZkError::RuntimeInconsistent
        );
        Self { may_have_applied: !refused, ..Self::of(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_zookeeper_refused_counts_as_not_applied() {
        for error in [ZkError::NoAuth, ZkError::BadVersion, ZkError::Throttled, ZkError::QuotaExceeded] {
            assert!(!Failure::of_write(error).may_have_applied);
        }
        for error in
            [ZkError::ConnectionLoss, ZkError::SessionExpired, ZkError::ClientClosed, ZkError::Timeout]
        {
            let failure = Failure::of_write(error.clone());
            assert_eq!((failure.kind, failure.next), (ErrorKind::Unavailable, Next::AskAnother), "{error}");
            assert!(failure.may_have_applied && !Failure::of(error).may_have_applied);
        }
    }

    #[test]
    fn a_refusal_says_what_to_change() {
        for (error, kind, says) in [
            (ZkError::NoAuth, ErrorKind::Denied, "`username`"),
            (ZkError::AuthFailed, ErrorKind::Denied, "`password`"),
            (ZkError::Unimplemented, ErrorKind::Invalid, "3.6"),
            (ZkError::QuotaExceeded, ErrorKind::Unavailable, "quota"),
        ] {
            let failure = Failure::of(error);
            assert_eq!((failure.kind, failure.next), (kind, Next::GiveUp));
            assert!(failure.reason.contains(says), "{}", failure.reason);
        }
    }
}
