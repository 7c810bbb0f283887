//! How far the mesh's authority is replaced by another one: what all signing nodes go by, and what nodes say of themselves.
//!
//! First every node learns to believe both, then every certificate is made by the new one, then the old one is dropped; or it is all
//! taken back. None of this has a key or a certificate in it, and nobody believes an authority for what stands here: who can write to
//! the store can hasten, halt or take back a rotation, and no more.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Admitted, Error, seconds};
use crate::model::{Fingerprint, NodeName};
use crate::store::{EnrolmentKey, Expect, Key, Store, Swap};

/// More is nobody's report.
const LONGEST_REPORT: usize = 4096;

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nodes learn to believe the new authority beside the old one, which still certifies.
    Trust,
    /// The new one certifies; both are believed.
    Renew,
    /// The old one is believed no more.
    Done,
    /// It is taken back: the old one certifies again; both are believed.
    Revert,
    /// It was taken back: the new one is believed no more.
    Aborted,
}

impl Phase {
    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::Renew => "renew",
            Self::Done => "done",
            Self::Revert => "revert",
            Self::Aborted => "aborted",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One authority takes another one's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// The old one.
    pub from: Fingerprint,
    /// The new one.
    pub to: Fingerprint,
    /// How far it is.
    pub phase: Phase,
}

impl Rotation {
    /// Who certifies now.
    #[must_use]
    pub fn issuer(&self) -> Fingerprint {
        match self.phase {
            Phase::Trust | Phase::Revert | Phase::Aborted => self.from,
            Phase::Renew | Phase::Done => self.to,
        }
    }

    /// Who is believed besides.
    #[must_use]
    pub fn other(&self) -> Option<Fingerprint> {
        match self.phase {
            Phase::Trust | Phase::Revert => Some(self.to),
            Phase::Renew => Some(self.from),
            Phase::Done | Phase::Aborted => None,
        }
    }

    /// Who is never to be believed again.
    #[must_use]
    pub fn dropped(&self) -> Option<Fingerprint> {
        match self.phase {
            Phase::Done => Some(self.from),
            Phase::Aborted => Some(self.to),
            Phase::Trust | Phase::Renew | Phase::Revert => None,
        }
    }

    /// Nothing follows.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.dropped().is_some()
    }

    /// Has this node, by what it says, what it is to have in this phase? One whose certificate comes from elsewhere is to have nothing.
    #[must_use]
    pub fn is_met_by(&self, report: &Report) -> bool {
        let believes = |root| report.roots.contains(&root);
        report.issuer.is_none_or(|issuer| !self.is_about(issuer))
            || report.issuer == Some(self.issuer())
                && believes(self.issuer())
                && self.other().is_none_or(believes)
                && !self.dropped().is_some_and(believes)
    }

    fn is_about(&self, root: Fingerprint) -> bool {
        [self.from, self.to].contains(&root)
    }

    /// What comes once nobody is waited for.
    #[must_use]
    pub fn next(&self) -> Option<Phase> {
        match self.phase {
            Phase::Trust => Some(Phase::Renew),
            Phase::Renew => Some(Phase::Done),
            Phase::Revert => Some(Phase::Aborted),
            Phase::Done | Phase::Aborted => None,
        }
    }

    /// What this node still lacks for the next phase.
    #[must_use]
    pub fn lacks(&self, member: &Member) -> Option<Lack> {
        match (&member.report, self.phase) {
            (_, Phase::Done | Phase::Aborted) => None,
            // Its certificate comes from elsewhere.
            (Some(Report { issuer: Some(issuer), .. }), _)
                if member.admitted.is_none() && !self.is_about(*issuer) =>
            {
                None
            }
            // Who is away will verify others by what one authority says of the other, and learns the rest from them.
            _ if self.phase == Phase::Trust && !member.is_live => None,
            (None, _) if member.is_live => Some(Lack::Report),
            (Some(report), Phase::Trust) => (!report.roots.contains(&self.to)).then_some(Lack::Trust),
            (report, Phase::Renew | Phase::Revert) => {
                let issuer = Some(self.issuer());
                let shows = |report: &Report| !member.is_live || report.issuer == issuer;
                let was_given = member.admitted.is_none_or(|admitted| admitted == issuer);
                (!was_given || !report.as_ref().is_none_or(shows)).then_some(Lack::Certificate)
            }
            (None, Phase::Trust) => None,
        }
    }
}

/// Why a rotation waits for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// It says nothing of itself.
    Report,
    /// It does not believe the new authority yet.
    Trust,
    /// Its certificate is another authority's than it is to be.
    Certificate,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Who made its certificate, where that is one of those that it believes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Fingerprint>,
    /// The authorities that it believes.
    pub roots: Vec<Fingerprint>,
    /// Does it certify others?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub signs: bool,
    /// When its certificate ends, in seconds since 1970.
    pub until: u64,
}

/// A node that has a certificate which holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub node: NodeName,
    /// Does its agent run?
    pub is_live: bool,
    /// Who made the last certificate that signing nodes know of (in it nothing: they did not say); none: they know of none.
    pub admitted: Option<Option<Fingerprint>>,
    /// What it says of itself.
    pub report: Option<Report>,
}

/// Notes what a node says of itself.
///
/// # Errors
/// The store does not take it.
pub async fn report(store: &dyn Store, node: &NodeName, report: &Report) -> Result<(), Error> {
    let path = EnrolmentKey::Trust(node.clone()).path();
    let value =
        serde_json::to_vec(report).map_err(|error| Error::Unreadable { path: path.clone(), error })?;
    store.put(&path, value, None).await?;
    Ok(())
}

/// Every node that is to be thought of, as the store has it now.
///
/// # Errors
/// The store does not tell.
pub async fn members(store: &dyn Store) -> Result<Vec<Member>, Error> {
    let now = seconds(SystemTime::now());
    let mut members = BTreeMap::new();
    let empty = |node: &NodeName| Member { node: node.clone(), is_live: false, admitted: None, report: None };
    for entry in store.list(&EnrolmentKey::nodes()).await?.entries {
        let Some(EnrolmentKey::Node(node)) = EnrolmentKey::parse(&entry.path) else { continue };
        let unreadable = |error| Error::Unreadable { path: entry.path.clone(), error };
        let admitted: Admitted = serde_json::from_slice(&entry.value).map_err(unreadable)?;
        if admitted.until > now {
            members.entry(node).or_insert_with_key(empty).admitted = Some(admitted.root);
        }
    }
    let live = store.list(&Key::nodes()).await?.entries;
    let live: Vec<_> = live
        .iter()
        .filter_map(|entry| match Key::parse(&entry.path) {
            Some(Key::Node(node)) => Some(node),
            _ => None,
        })
        .collect();
    let revoked = store.list(&EnrolmentKey::revoked()).await?.entries;
    let is_revoked = |node: &NodeName| {
        let path = EnrolmentKey::Revoked(node.clone()).path();
        revoked.iter().any(|entry| entry.path == path)
    };
    for entry in store.list(&EnrolmentKey::trust()).await?.entries {
        let Some(EnrolmentKey::Trust(node)) = EnrolmentKey::parse(&entry.path) else { continue };
        let Some(report) = read_report(&entry.value).filter(|report| report.until > now) else { continue };
        // The store may have lost that it was certified; who is revoked can say what it wants.
        let is_one = || report.issuer.is_some() && live.contains(&node) && !is_revoked(&node);
        if members.contains_key(&node) || is_one() {
            members.entry(node).or_insert_with_key(empty).report = Some(report);
        }
    }
    for node in live {
        members.entry(node).and_modify(|member| member.is_live = true);
    }
    Ok(members.into_values().collect())
}

fn read_report(value: &[u8]) -> Option<Report> {
    (value.len() <= LONGEST_REPORT).then(|| serde_json::from_slice(value).ok()).flatten()
}

/// What the store says of the last rotation; `None`: there was none.
///
/// # Errors
/// It does not tell, or what it says cannot be read.
pub async fn rotation(store: &dyn Store) -> Result<Option<Rotation>, Error> {
    let path = EnrolmentKey::Rotation.path();
    let Some(entry) = store.get(&path).await? else { return Ok(None) };
    serde_json::from_slice(&entry.value).map(Some).map_err(|error| Error::Unreadable { path, error })
}

/// Puts one in the place of what stood there. Tells whether that was still so.
///
/// # Errors
/// The store does not take it.
pub async fn rotate(store: &dyn Store, before: Option<&Rotation>, now: &Rotation) -> Result<bool, Error> {
    let path = EnrolmentKey::Rotation.path();
    let entry = store.get(&path).await?;
    let stands = entry.as_ref().map(|entry| serde_json::from_slice::<Rotation>(&entry.value).ok());
    let expect = match (&entry, stands) {
        (None, _) if before.is_none() => Expect::Absent,
        // What cannot be read is nobody's rotation.
        (Some(entry), Some(stands)) if stands.as_ref() == before || stands.is_none() => {
            Expect::Unchanged(entry.revision)
        }
        _ => return Ok(false),
    };
    let value = serde_json::to_vec(now).map_err(|error| Error::Unreadable { path: path.clone(), error })?;
    Ok(matches!(store.compare_and_swap(&path, expect, Some(value), None).await?, Swap::Done(_)))
}

/// Takes a rotation back that is under way.
///
/// # Errors
/// None is, or the old authority is dropped already; or the store does not take it.
pub async fn abort(store: &dyn Store) -> Result<Rotation, Error> {
    let mut reverted = Err(Error::NothingToAbort);
    for _ in 0..super::ATTEMPTS {
        let Some(known) = rotation(store).await? else { return reverted };
        match known.phase {
            Phase::Trust | Phase::Renew => {
                let now = Rotation { phase: Phase::Revert, ..known };
                if rotate(store, Some(&known), &now).await? {
                    return Ok(now);
                }
                reverted = Err(Error::Contended { path: EnrolmentKey::Rotation.path() });
            }
            Phase::Revert => return Ok(known),
            Phase::Done | Phase::Aborted => return Err(Error::NothingToAbort),
        }
    }
    reverted
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::{Claim, Holding, admit, revoke};
    use super::*;
    use crate::store::{EmbeddedStore, Metrics};

    const OLD: Fingerprint = Fingerprint([1; 32]);
    const NEW: Fingerprint = Fingerprint([2; 32]);

    fn node(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    fn store() -> EmbeddedStore {
        EmbeddedStore::open(None, Duration::from_secs(5), Metrics::default()).unwrap()
    }

    fn said(issuer: Fingerprint, roots: &[Fingerprint]) -> Report {
        Report { issuer: Some(issuer), roots: roots.to_vec(), signs: false, until: u64::MAX }
    }

    fn at(phase: Phase) -> Rotation {
        Rotation { from: OLD, to: NEW, phase }
    }

    #[test]
    fn a_phase_waits_for_what_it_is_to_bring() {
        let member = |is_live, admitted, report| Member { node: node("a"), is_live, admitted, report };
        let (only_old, both, moved) = (said(OLD, &[OLD]), said(OLD, &[OLD, NEW]), said(NEW, &[NEW, OLD]));
        for (phase, is_live, admitted, report, lack) in [
            (Phase::Trust, true, Some(Some(OLD)), None, Some(Lack::Report)),
            (Phase::Trust, true, Some(Some(OLD)), Some(&only_old), Some(Lack::Trust)),
            (Phase::Trust, true, Some(Some(OLD)), Some(&both), None),
            (Phase::Trust, true, None, Some(&only_old), Some(Lack::Trust)),
            // Who is away is not waited for before anything is certified …
            (Phase::Trust, false, Some(Some(OLD)), Some(&only_old), None),
            (Phase::Trust, false, Some(Some(OLD)), None, None),
            // … and is before anything is dropped.
            (Phase::Renew, false, Some(Some(OLD)), Some(&only_old), Some(Lack::Certificate)),
            (Phase::Renew, false, Some(None), None, Some(Lack::Certificate)),
            (Phase::Renew, false, Some(Some(NEW)), None, None),
            (Phase::Renew, true, Some(Some(NEW)), None, Some(Lack::Report)),
            // It was certified, and has not taken it.
            (Phase::Renew, true, Some(Some(NEW)), Some(&both), Some(Lack::Certificate)),
            (Phase::Renew, true, Some(Some(OLD)), Some(&moved), Some(Lack::Certificate)),
            (Phase::Renew, true, Some(Some(NEW)), Some(&moved), None),
            (Phase::Renew, true, None, Some(&moved), None),
            (Phase::Revert, true, Some(Some(NEW)), Some(&moved), Some(Lack::Certificate)),
            (Phase::Revert, true, Some(Some(OLD)), Some(&both), None),
            (Phase::Renew, true, None, Some(&said(Fingerprint([3; 32]), &[OLD])), None),
            (Phase::Done, true, Some(Some(OLD)), None, None),
        ] {
            let member = member(is_live, admitted, report.cloned());
            assert_eq!(at(phase).lacks(&member), lack, "{phase} {member:?}");
        }
    }

    #[test]
    fn what_a_node_is_to_have_is_what_the_phase_says_and_no_more() {
        for (phase, issuer, roots, met) in [
            (Phase::Trust, OLD, &[OLD][..], false),
            (Phase::Trust, OLD, &[OLD, NEW], true),
            (Phase::Renew, OLD, &[OLD, NEW], false),
            (Phase::Renew, NEW, &[NEW, OLD], true),
            (Phase::Done, NEW, &[NEW, OLD], false),
            (Phase::Done, NEW, &[NEW], true),
            (Phase::Revert, NEW, &[NEW, OLD], false),
            (Phase::Aborted, OLD, &[OLD, NEW], false),
            (Phase::Aborted, OLD, &[OLD], true),
            (Phase::Renew, Fingerprint([3; 32]), &[OLD], true),
        ] {
            assert_eq!(at(phase).is_met_by(&said(issuer, roots)), met, "{phase} {roots:?}");
        }
    }

    #[tokio::test]
    async fn members_are_those_whose_certificates_hold_and_who_says_so_and_runs() {
        let store = store();
        let in_an_hour = SystemTime::now() + Duration::from_secs(3600);
        for (name, until) in [("a", in_an_hour), ("gone", UNIX_EPOCH), ("away", in_an_hour)] {
            let holding = Holding { key: "k", until, root: OLD };
            admit(&store, &node(name), &holding, Claim::Free).await.unwrap();
        }
        for name in ["a", "b", "old"] {
            store.put(&Key::Node(node(name)).path(), b"{}".to_vec(), None).await.unwrap();
        }
        for name in ["a", "b", "dead"] {
            report(&store, &node(name), &said(NEW, &[NEW])).await.unwrap();
        }
        let known = members(&store).await.unwrap();
        let told: Vec<_> = known
            .iter()
            .map(|member| (member.node.as_str(), member.is_live, member.admitted, member.report.is_some()))
            .collect();
        let expected = [
            ("a", true, Some(Some(OLD)), true),
            ("away", false, Some(Some(OLD)), false),
            ("b", true, None, true),
        ];
        assert_eq!(told, expected);
        for name in ["away", "b"] {
            revoke(&store, &node(name), Duration::from_secs(60)).await.unwrap();
        }
        report(&store, &node("b"), &said(NEW, &[NEW])).await.unwrap();
        assert_eq!(members(&store).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_rotation_goes_on_from_what_stands_and_is_taken_back_until_it_is_done() {
        let store = store();
        assert!(matches!(abort(&store).await, Err(Error::NothingToAbort)));
        assert!(!rotate(&store, Some(&at(Phase::Trust)), &at(Phase::Renew)).await.unwrap());
        assert!(rotate(&store, None, &at(Phase::Trust)).await.unwrap());
        assert!(!rotate(&store, None, &at(Phase::Trust)).await.unwrap(), "another one has begun it");
        assert_eq!(abort(&store).await.unwrap(), at(Phase::Revert));
        assert_eq!(abort(&store).await.unwrap(), at(Phase::Revert));
        assert!(!rotate(&store, Some(&at(Phase::Trust)), &at(Phase::Renew)).await.unwrap());
        assert!(rotate(&store, Some(&at(Phase::Revert)), &at(Phase::Done)).await.unwrap());
        assert!(matches!(abort(&store).await, Err(Error::NothingToAbort)));
        assert_eq!(rotation(&store).await.unwrap(), Some(at(Phase::Done)));
    }
}
