//! Whom nobody believes any more: nodes whose certificates were taken back, until those end by themselves.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nerve::enrolment::Revocation;
use nerve::model::NodeName;
use serde::{Deserialize, Serialize};

use super::certificate::Certified;
use super::spiffe::Subject;

/// By node, since when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Revoked(HashMap<NodeName, Revocation>);

impl Revoked {
    /// Tells whether that is new.
    pub(super) fn put(&mut self, node: NodeName, revocation: Revocation) -> bool {
        self.0.insert(node, revocation.clone()).is_none_or(|before| before != revocation)
    }

    pub(super) fn remove(&mut self, node: &NodeName) {
        self.0.remove(node);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&NodeName) -> bool) {
        self.0.retain(|node, _| keep(node));
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (&NodeName, &Revocation)> {
        self.0.iter()
    }

    /// Was this certificate taken back? What the node got since then was not.
    pub(super) fn refuses(&self, certified: &Certified) -> bool {
        let (Subject::Node(node) | Subject::Signer(node)) = &certified.id.subject else { return false };
        self.0.get(node).is_some_and(|revocation| {
            let at = UNIX_EPOCH.checked_add(Duration::from_secs(revocation.at));
            // Whoever makes them: none of before holds from later than it was made.
            at.is_none_or(|at| certified.not_before <= at)
        })
    }

    /// From when on certificates of this one hold that are not refused, if it was revoked.
    pub(super) fn since(&self, subject: &Subject) -> Option<SystemTime> {
        let (Subject::Node(node) | Subject::Signer(node)) = subject else { return None };
        UNIX_EPOCH.checked_add(Duration::from_secs(self.0.get(node)?.at.checked_add(1)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_until_then_is_refused_and_what_comes_later_is_not() {
        let made = |id: &str, ago: u64| {
            let not_before = UNIX_EPOCH + Duration::from_secs(1_000_000 - ago);
            let id = format!("spiffe://mesh.internal/{id}").parse().unwrap();
            Certified { id, not_before, not_after: SystemTime::now() }
        };
        let mut revoked = Revoked::default();
        let a = NodeName::new("a").unwrap();
        revoked.put(a.clone(), Revocation { at: 1_000_000, until: 2_000_000 });
        let refused = |id, ago| revoked.refuses(&made(id, ago));
        assert!(refused("node/a", 0) && refused("signer/a", 60) && refused("node/a", 86_400));
        assert!(!refused("node/b", 0) && !refused("service/a", 0));
        let since = revoked.since(&made("node/a", 0).id.subject).unwrap();
        assert_eq!(since, UNIX_EPOCH + Duration::from_secs(1_000_001));
        assert!(!revoked.refuses(&Certified { not_before: since, ..made("node/a", 0) }));
        assert_eq!(revoked.since(&made("node/b", 0).id.subject), None);
        revoked.remove(&a);
        assert!(!revoked.refuses(&made("node/a", 0)));
    }
}
