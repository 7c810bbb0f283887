//! Which member of the cluster to ask. Pure: no I/O, no clock of its own.
//!
//! Of etcd and ZooKeeper alike: one member at a time is asked until it fails; then the next one that has not failed lately. The libraries' own
//! balancing goes on picking dead members, which is why they are given one endpoint only.

use std::time::Duration;

use tokio::time::Instant;

/// For so long after a failure a member is asked only if all others failed too.
const PENALTY: Duration = Duration::from_secs(10);

/// For so long after an answer a member is taken to be well.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Members {
    failed_at: Vec<Option<Instant>>,
    answered_at: Vec<Option<Instant>>,
    current: usize,
}

impl Members {
    /// `first` spreads the agents of a fleet over the members.
    pub(super) fn new(count: usize, first: usize) -> Self {
        Self { failed_at: vec![None; count], answered_at: vec![None; count], current: first % count.max(1) }
    }

    pub(super) fn current(&self) -> usize {
        self.current
    }

    pub(super) fn succeeded(&mut self, member: usize, now: Instant) {
        self.set(member, None, Some(now));
    }

    /// Has it answered just now?
    pub(super) fn is_fresh(&self, member: usize, now: Instant) -> bool {
        let answered_at = self.answered_at.get(member).copied().flatten();
        answered_at.is_some_and(|answered_at| now.duration_since(answered_at) < FRESH)
    }

    fn set(&mut self, member: usize, failed_at: Option<Instant>, answered_at: Option<Instant>) {
        if let (Some(failed), Some(answered)) =
            (self.failed_at.get_mut(member), self.answered_at.get_mut(member))
        {
            (*failed, *answered) = (failed_at, answered_at);
        }
    }

    /// Notes a failure; tells whether another member is asked from now on.
    pub(super) fn failed(&mut self, member: usize, now: Instant) -> bool {
        self.set(member, Some(now), None);
        if member != self.current {
            return false;
        }
        let count = self.failed_at.len();
        let next = (1..count).map(|step| (member + step) % count).min_by_key(|candidate| {
            // `None` is least: the first in the ring that is not under penalty, else the one whose failure is oldest.
            self.failed_at[*candidate].filter(|failed_at| now.duration_since(*failed_at) < PENALTY)
        });
        self.current = next.unwrap_or(member);
        self.current != member
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_member_is_avoided_until_its_penalty_is_over_or_all_failed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut members = Members::new(3, 0);
        assert!(members.failed(0, at(0)));
        assert_eq!(members.current(), 1);
        assert!(members.failed(1, at(1)));
        assert_eq!(members.current(), 2, "0 failed lately");
        assert!(members.failed(2, at(2)));
        assert_eq!(members.current(), 0, "all failed, 0 is longest ago");
        members.succeeded(0, at(2));
        members.succeeded(1, at(2));
        assert!(members.is_fresh(0, at(2)) && !members.is_fresh(0, at(3)) && !members.is_fresh(2, at(2)));
        assert!(members.failed(0, at(3)));
        assert_eq!(members.current(), 1);
        assert!(members.failed(1, at(12)));
        assert_eq!(members.current(), 2, "2 has served its penalty");
    }

    #[test]
    fn the_failure_of_one_that_is_not_asked_moves_nothing() {
        let mut members = Members::new(3, 1);
        assert!(!members.failed(0, Instant::now()));
        assert_eq!(members.current(), 1);
        let mut single = Members::new(1, 7);
        assert!(!single.failed(0, Instant::now()));
        assert_eq!(single.current(), 0);
    }
}
