//! Why a stream that arrived by a tunnel goes nowhere.

use std::fmt;

use rustix::io::Errno;

/// Why a stream that arrived by a tunnel goes nowhere: the closed set behind `plexus_tunnel_refused_total`, and what the sender is
/// told, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// What it began with is no header.
    Malformed = 1,
    /// Its header has a version or a field that is not known here.
    Unsupported = 2,
    /// There is no such endpoint of this service on this node.
    NotHere = 3,
    /// A rule forbids it.
    Denied = 4,
    /// Nobody listens at the endpoint.
    NobodyListens = 5,
    /// The endpoint does not answer in time.
    TimedOut = 6,
    /// There is no way to the endpoint, or connecting fails for another reason.
    Unreachable = 7,
    /// This node is out of descriptors, ports or memory, or serves as many as it may.
    Exhausted = 8,
    /// A reason that is not known here: the other node is newer.
    Unknown = 255,
}

impl Refusal {
    /// Every reason there is.
    pub const ALL: [Self; 9] = [
        Self::Malformed,
        Self::Unsupported,
        Self::NotHere,
        Self::Denied,
        Self::NobodyListens,
        Self::TimedOut,
        Self::Unreachable,
        Self::Exhausted,
        Self::Unknown,
    ];

    /// The word for it, as in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::NotHere => "not_here",
            Self::Denied => "denied",
            Self::NobodyListens => "nobody_listens",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Exhausted => "exhausted",
            Self::Unknown => "unknown",
        }
    }

    /// The reason with this number.
    pub(super) fn of(number: u8) -> Self {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number).unwrap_or(Self::Unknown)
    }

    /// Why an endpoint could not be connected to.
    pub(super) fn because(error: Errno) -> Self {
        match error {
            Errno::CONNREFUSED | Errno::NOENT => Self::NobodyListens,
            Errno::TIMEDOUT | Errno::AGAIN => Self::TimedOut,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::ADDRNOTAVAIL => {
                Self::Exhausted
            }
            _ => Self::Unreachable,
        }
    }

    /// What connecting there oneself would have said, or what comes next to it.
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::NobodyListens => Errno::CONNREFUSED,
            Self::TimedOut => Errno::TIMEDOUT,
            Self::Unreachable => Errno::HOSTUNREACH,
            // Not this node's lack: the connection is to be tried elsewhere, and counts against that endpoint.
            Self::Exhausted => Errno::CONNRESET,
            Self::NotHere | Self::Denied => Errno::ACCESS,
            Self::Malformed | Self::Unsupported | Self::Unknown => Errno::PROTO,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_its_way_as_a_number() {
        for reason in Refusal::ALL {
            assert_eq!(Refusal::of(reason as u8), reason);
        }
        assert_eq!(Refusal::of(0), Refusal::Unknown);
        assert_eq!(Refusal::of(200), Refusal::Unknown);
    }
}
