//! What an error of etcd or of its client means for us: what kind, was it applied, ask another member, what to do.
//!
//! gRPC's codes are too coarse for that (`Unavailable` is a refused connection as well as a cut one), so the connector's
//! own error and etcd's messages (etcd: api/v3rpc/rpctypes/error.go) are looked at too.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::Error as EtcdError;
use tonic::{Code, ConnectError, Status};

use crate::store::ErrorKind;

/// A failed attempt on one member.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    /// The request may have reached a member that carried it out.
    pub(super) may_have_applied: bool,
    pub(super) next: Next,
    pub(super) reason: String,
    pub(super) source: Option<Arc<EtcdError>>,
}

/// What may help against a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing that we can do.
    GiveUp,
    /// Another member, or a new connection.
    AskAnother,
    /// A moment, and another member: this one is silent, or the cluster has no leader.
    Wait,
    /// A listing must start anew: its revision is compacted.
    StartAnew,
    /// A smaller page.
    AskForLess,
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, next: Next, reason: impl Into<String>) -> Self {
        Self { kind, may_have_applied: false, next, reason: reason.into(), source: None }
    }

    /// No answer in time.
    pub(super) fn timeout(after: Duration) -> Self {
        // To a hundredth of a second: what is left of a deadline is never a round number.
        let after = u64::try_from(after.as_millis().div_ceil(10) * 10).unwrap_or(u64::MAX);
        let after = humantime::format_duration(Duration::from_millis(after));
        let reason = format!("no answer within {after}; check that etcd runs there and is reachable");
        Self { may_have_applied: true, ..Self::new(ErrorKind::Unavailable, Next::Wait, reason) }
    }

    /// An error of a call, or of a stream.
    pub(super) fn of(error: EtcdError) -> Self {
        let failure = match &error {
            EtcdError::GRpcStatus(status) => Self::of_status(status),
            EtcdError::LeaseKeepAliveError(reason) if reason == "lease not found" => lease_gone(),
            EtcdError::TransportError(transport) => {
                let cause = root_cause(transport);
                let reason =
                    format!("cannot set up the connection: {cause}; check ca_file, cert_file and key_file");
                Self::new(ErrorKind::Denied, Next::AskAnother, reason)
            }
            EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) | EtcdError::InvalidMetadataValue(_) => {
                Self::new(ErrorKind::Invalid, Next::GiveUp, error.to_string())
            }
            _ => Self {
                may_have_applied: true,
                ..Self::new(ErrorKind::Unavailable, Next::AskAnother, error.to_string())
            },
        };
        Self { source: Some(Arc::new(error)), ..failure }
    }

    /// An error of a client that is being set up: nothing was asked of it yet.
    pub(super) fn of_connecting(error: EtcdError) -> Self {
        Self { may_have_applied: false, ..Self::of(error) }
    }

    fn of_status(status: &Status) -> Self {
        use ErrorKind::{Corrupt, Denied, Invalid, Unavailable};
        if let Some(connect) = connect_error(status) {
            return Self::of_connect_error(connect);
        }
        let message = status.message();
        let has = |text: &str| message.contains(text);
        let reason = |what: &str| format!("{message}; {what}");
        match status.code() {
            _ if has("no leader") || has("raft proposal dropped") || has("not primary lessor") => Self::new(
                Unavailable,
                Next::Wait,
                reason("most members of the etcd cluster cannot be reached, or it is just electing"),
            ),
            _ if has("too many requests") => Self::new(Unavailable, Next::Wait, reason("etcd is overloaded")),
            _ if has("database space exceeded") => Self::new(
                Unavailable,
                Next::GiveUp,
                reason("compact and defragment etcd, then run `etcdctl alarm disarm`"),
            ),
            _ if has("requested lease not found") => lease_gone(),
            _ if has("has been compacted") => Self::new(Unavailable, Next::StartAnew, message),
            Code::OutOfRange if has("message length too large") => {
                Self::new(Invalid, Next::AskForLess, message)
            }
            _ if has("auth token") || has("revision of auth store is old") => {
                Self::new(Unavailable, Next::AskAnother, reason("the user is authenticated anew"))
            }
            _ if has("authentication failed") => {
                Self::new(Denied, Next::GiveUp, reason("check `username` and `password` of the store"))
            }
            _ if has("user name is empty") => {
                Self::new(Denied, Next::GiveUp, reason("etcd asks for a user: set `username` and `password`"))
            }
            _ if has("authentication is not enabled") => Self::new(
                Denied,
                Next::GiveUp,
                reason("remove `username` and `password`, or run `etcdctl auth enable`"),
            ),
            Code::PermissionDenied | Code::Unauthenticated => Self::new(
                Denied,
                Next::GiveUp,
                reason("grant the user a role that may read and write below the store's prefix"),
            ),
            Code::InvalidArgument | Code::OutOfRange => Self::new(Invalid, Next::GiveUp, message),
            Code::DataLoss => Self::new(Corrupt, Next::AskAnother, reason("check the etcd member's disk")),
            _ => {
                let cause = root_cause(status);
                if let Some(refused) = Self::of_tls(&cause) {
                    return refused;
                }
                let reason = format!("the connection or the request failed: {cause}; check etcd's log");
                Self { may_have_applied: true, ..Self::new(Unavailable, Next::AskAnother, reason) }
            }
        }
    }

    /// It never came to a request.
    fn of_connect_error(error: &ConnectError) -> Self {
        let cause = root_cause(error);
        if let Some(refused) = Self::of_tls(&cause) {
            return refused;
        }
        let reason =
            format!("cannot connect: {cause}; check that etcd listens there and that no firewall is between");
        Self::new(ErrorKind::Unavailable, Next::AskAnother, reason)
    }

    /// TLS was refused by either side; no request passed. With TLS 1.3 we learn only after the handshake, on the open
    /// connection, that etcd does not like our certificate (RFC 8446 section 4.4.2.4).
    fn of_tls(cause: &str) -> Option<Self> {
        let words = ["ertificate", "invalid peer", "handshake", "corrupt message", "fatal alert"];
        words.iter().any(|word| cause.contains(word)).then(|| {
            let reason = format!(
                "TLS failed: {cause}; check ca_file, cert_file, key_file and that etcd serves TLS there"
            );
            Self::new(ErrorKind::Denied, Next::AskAnother, reason)
        })
    }
}

fn lease_gone() -> Failure {
    Failure::new(
        ErrorKind::SessionLost,
        Next::GiveUp,
        "etcd says that the session does not exist; open another",
    )
}

/// The connector's error below `status`, if that is what failed.
fn connect_error(status: &Status) -> Option<&ConnectError> {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(connect) = error.downcast_ref() {
            return Some(connect);
        }
        source = error.source();
    }
    None
}

/// The innermost error, which is the one that an operator can do something about.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    // A status that came from etcd, and not from the connection, has its text in its message.
    error.downcast_ref::<Status>().map_or_else(|| error.to_string(), |status| status.message().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, message: &str) -> Failure {
        Failure::of(EtcdError::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn only_what_etcd_did_not_begin_counts_as_not_applied() {
        for (code, message) in [
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::Unknown, "raft proposal dropped"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
        ] {
            let failure = of(code, message);
            assert!(!failure.may_have_applied && failure.next != Next::GiveUp, "{message}");
        }
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "error trying to connect"),
            (Code::Unknown, "h2 protocol error: error reading a body from connection"),
            (Code::Cancelled, "Timeout expired"),
        ] {
            let failure = of(code, message);
            assert!(failure.may_have_applied, "{message}");
            assert_eq!((failure.kind, failure.next), (ErrorKind::Unavailable, Next::AskAnother), "{message}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_change() {
        for (code, message, kind, says) in [
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                ErrorKind::Denied,
                "`password`",
            ),
            (Code::InvalidArgument, "etcdserver: user name is empty", ErrorKind::Denied, "`username`"),
            (Code::PermissionDenied, "etcdserver: permission denied", ErrorKind::Denied, "role"),
            (Code::NotFound, "etcdserver: requested lease not found", ErrorKind::SessionLost, "another"),
            (Code::InvalidArgument, "etcdserver: request is too large", ErrorKind::Invalid, "too large"),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                ErrorKind::Unavailable,
                "defragment",
            ),
        ] {
            let failure = of(code, message);
            assert_eq!(failure.kind, kind, "{message}");
            assert!(failure.reason.contains(says), "{}", failure.reason);
        }
    }
}
