//! What signing nodes have in common by way of the store: how often a join token was used, whose a node's name is,
//! whom nobody believes any more, and how far the authority is replaced by another one ([`rotation`]).
//!
//! Whoever can write to the store can keep nodes out by it, and let nobody in: what lets one in is proved by keys that the
//! store does not have.

pub mod rotation;

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{Fingerprint, NodeName, TokenId};
use crate::store::{self, EnrolmentKey, Expect, Path, Store, Swap};

/// How often a change is tried anew where other signing nodes come in between.
const ATTEMPTS: usize = 16;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token has let in as many as it may.
    #[error("the join token was used {uses} times, and may be no more: make another one")]
    UsedUp {
        /// How often it may be used.
        uses: NonZeroU32,
    },
    /// Another key has the name.
    #[error(
        "another node has the name {node}, with another key, until {}: give this node another name; if it takes that \
         one's place, use a token that is made for it (`plexus join-token create --node {node}`)",
        humantime::format_rfc3339_seconds(*until)
    )]
    NameTaken {
        /// The name.
        node: NodeName,
        /// When the certificate of who has it ends.
        until: SystemTime,
    },
    /// Its certificates were taken back, so a token that lets anyone in does not do.
    #[error(
        "the certificates of {node} were revoked: it comes back by a token that is made for it (`plexus join-token create \
         --node {node}`) alone"
    )]
    NodeRevoked {
        /// The name.
        node: NodeName,
    },
    /// Nothing is under way.
    #[error(
        "no rotation of the authority is under way; one that is done is not taken back: begin another one"
    )]
    NothingToAbort,
    /// What stands in the store cannot be read.
    #[error("what stands at {path} in the store cannot be read, and nothing was changed: {error}")]
    Unreadable {
        /// Where.
        path: Path,
        /// Why.
        error: serde_json::Error,
    },
    /// Others changed it again and again.
    #[error("others change {path} in the store all the time: try again")]
    Contended {
        /// Where.
        path: Path,
    },
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TokenUses {
    used: u32,
    /// In seconds since 1970; from then on it is not needed.
    expires: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Admitted {
    /// What its key is known by.
    key: String,
    /// What the one before is known by, which it may still have: an answer may have been lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    /// In seconds since 1970.
    until: u64,
    /// Who certified it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root: Option<Fingerprint>,
}

/// A certificate that a node is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding<'a> {
    /// What its key is known by.
    pub key: &'a str,
    /// Until when it holds.
    pub until: SystemTime,
    /// Which authority has made it.
    pub root: Fingerprint,
}

/// By what somebody claims a node's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim<'a> {
    /// It is free.
    Free,
    /// An operator says so, whoever has it now.
    Operator,
    /// It has the name already, with a key that is known by this.
    Holder(&'a str),
}

/// Since when the certificates of a node are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// Those that were made until then, in seconds since 1970.
    pub at: u64,
    /// When the last of those has ended by itself, in seconds since 1970.
    pub until: u64,
}

/// Counts a use of a token that may be used so often, until it expires.
///
/// # Errors
/// It was used as often, or the store does not tell.
pub async fn use_token(
    store: &dyn Store,
    id: TokenId,
    uses: Option<NonZeroU32>,
    expires: SystemTime,
) -> Result<(), Error> {
    update(store, &EnrolmentKey::Token(id).path(), |known: Option<TokenUses>| {
        let used = known.map_or(0, |known| known.used);
        match uses.filter(|uses| used >= uses.get()) {
            Some(uses) => Err(Error::UsedUp { uses }),
            None => Ok(TokenUses { used: used.saturating_add(1), expires: seconds(expires) }),
        }
    })
    .await
}

/// Notes that a node has a certificate.
///
/// # Errors
/// The name is another one's, or the store does not tell.
pub async fn admit(
    store: &dyn Store,
    node: &NodeName,
    holding: &Holding<'_>,
    claim: Claim<'_>,
) -> Result<(), Error> {
    let Holding { key, until, root } = *holding;
    update(store, &EnrolmentKey::Node(node.clone()).path(), |known: Option<Admitted>| {
        is_good(node, known.as_ref(), key, claim)?;
        let before = match claim {
            Claim::Holder(held) => Some(held.to_owned()),
            Claim::Free | Claim::Operator => None,
        };
        Ok(Admitted { key: key.to_owned(), before, until: seconds(until), root: Some(root) })
    })
    .await
}

/// Would [`admit`] be refused now?
///
/// # Errors
/// As there; or the node was revoked, and only an operator lets it in again.
pub async fn may_admit(store: &dyn Store, node: &NodeName, key: &str, claim: Claim<'_>) -> Result<(), Error> {
    if claim == Claim::Free && store.get(&EnrolmentKey::Revoked(node.clone()).path()).await?.is_some() {
        return Err(Error::NodeRevoked { node: node.clone() });
    }
    let path = EnrolmentKey::Node(node.clone()).path();
    let Some(entry) = store.get(&path).await? else { return Ok(()) };
    let known = serde_json::from_slice(&entry.value).map_err(|error| Error::Unreadable { path, error })?;
    is_good(node, Some(&known), key, claim)
}

fn is_good(node: &NodeName, known: Option<&Admitted>, key: &str, claim: Claim<'_>) -> Result<(), Error> {
    let now = seconds(SystemTime::now());
    let Some(known) = known.filter(|known| known.until > now && known.key != key) else { return Ok(()) };
    let has = |held: &str| known.key == held || known.before.as_deref() == Some(held);
    match claim {
        Claim::Operator => Ok(()),
        Claim::Holder(held) if has(held) => Ok(()),
        Claim::Holder(_) | Claim::Free => {
            let until = UNIX_EPOCH + Duration::from_secs(known.until);
            Err(Error::NameTaken { node: node.clone(), until })
        }
    }
}

/// Has every certificate refused that the node was given until now. `life`: how long any of them holds at most. Its name is free.
///
/// # Errors
/// The store does not do it.
pub async fn revoke(store: &dyn Store, node: &NodeName, life: Duration) -> Result<Revocation, Error> {
    let now = SystemTime::now();
    let revocation = Revocation { at: seconds(now), until: seconds(now + life) };
    let said = revocation.clone();
    update(store, &EnrolmentKey::Revoked(node.clone()).path(), move |_: Option<Revocation>| Ok(said.clone()))
        .await?;
    store.delete(&EnrolmentKey::Node(node.clone()).path()).await?;
    store.delete(&EnrolmentKey::Trust(node.clone()).path()).await?;
    Ok(revocation)
}

/// Removes what is over. Tells how much that was.
///
/// # Errors
/// The store does not do it.
pub async fn tidy(store: &dyn Store) -> Result<usize, Error> {
    #[derive(Deserialize)]
    struct Ends {
        #[serde(alias = "expires", alias = "until")]
        ends: u64,
    }
    let (now, mut removed) = (seconds(SystemTime::now()), 0);
    for entry in store.list(&EnrolmentKey::all()).await?.entries {
        let is_over = serde_json::from_slice(&entry.value).is_ok_and(|Ends { ends }| ends < now);
        if is_over && EnrolmentKey::parse(&entry.path).is_some() {
            let expect = Expect::Unchanged(entry.revision);
            let swap = store.compare_and_swap(&entry.path, expect, None, None).await?;
            removed += usize::from(matches!(swap, Swap::Done(_)));
        }
    }
    Ok(removed)
}

async fn update<R: Serialize + DeserializeOwned + Send>(
    store: &dyn Store,
    path: &Path,
    mut change: impl FnMut(Option<R>) -> Result<R, Error> + Send,
) -> Result<(), Error> {
    let unreadable = |error| Error::Unreadable { path: path.clone(), error };
    let mut entry = store.get(path).await?;
    for _ in 0..ATTEMPTS {
        let (expect, known) = match &entry {
            None => (Expect::Absent, None),
            Some(entry) => {
                let known = serde_json::from_slice(&entry.value).map_err(unreadable)?;
                (Expect::Unchanged(entry.revision), Some(known))
            }
        };
        let value = serde_json::to_vec(&change(known)?).map_err(unreadable)?;
        match store.compare_and_swap(path, expect, Some(value), None).await? {
            Swap::Done(_) => return Ok(()),
            Swap::Conflict(current) => entry = current,
        }
    }
    Err(Error::Contended { path: path.clone() })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{EmbeddedStore, Metrics};

    fn node(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    fn store() -> EmbeddedStore {
        EmbeddedStore::open(None, Duration::from_secs(5), Metrics::default()).unwrap()
    }

    fn in_an_hour() -> SystemTime {
        SystemTime::now() + Duration::from_secs(3600)
    }

    #[tokio::test]
    async fn a_token_lets_in_as_many_as_it_may_whoever_asks_at_once() {
        let store = store();
        let uses = NonZeroU32::new(3);
        let ask = || use_token(&store, TokenId([1; 16]), uses, in_an_hour());
        let answers = futures_util::future::join_all((0..8).map(|_| ask())).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 3, "{answers:?}");
        assert!(matches!(ask().await, Err(Error::UsedUp { .. })));
        use_token(&store, TokenId([2; 16]), uses, in_an_hour()).await.unwrap();
    }

    fn holding(key: &str, until: SystemTime) -> Holding<'_> {
        Holding { key, until, root: Fingerprint([1; 32]) }
    }

    async fn admitted(store: &EmbeddedStore, name: &str, key: &str, claim: Claim<'_>) -> bool {
        match admit(store, &node(name), &holding(key, in_an_hour()), claim).await {
            Ok(()) => true,
            Err(Error::NameTaken { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn a_name_is_of_one_key_until_its_certificate_ends() {
        let store = store();
        assert!(admitted(&store, "a", "one", Claim::Free).await);
        assert!(admitted(&store, "a", "one", Claim::Free).await);
        assert!(!admitted(&store, "a", "another", Claim::Free).await);
        admit(&store, &node("b"), &holding("another", UNIX_EPOCH), Claim::Free).await.unwrap();
        assert!(admitted(&store, "b", "one", Claim::Free).await);
        assert!(admitted(&store, "a", "another", Claim::Operator).await);
        // Whose place was taken does not get it back.
        assert!(!admitted(&store, "a", "two", Claim::Holder("one")).await);
    }

    #[tokio::test]
    async fn a_holder_renews_also_where_the_last_answer_was_lost() {
        let store = store();
        assert!(admitted(&store, "a", "one", Claim::Free).await);
        assert!(admitted(&store, "a", "two", Claim::Holder("one")).await);
        assert!(admitted(&store, "a", "three", Claim::Holder("one")).await);
        assert!(admitted(&store, "a", "four", Claim::Holder("three")).await);
        assert!(!admitted(&store, "a", "five", Claim::Holder("one")).await);
    }

    #[tokio::test]
    async fn a_revoked_node_is_let_in_by_an_operator_alone() {
        let store = store();
        assert!(admitted(&store, "a", "one", Claim::Free).await);
        revoke(&store, &node("a"), Duration::from_secs(60)).await.unwrap();
        let by_any_token = may_admit(&store, &node("a"), "third", Claim::Free).await;
        assert!(matches!(by_any_token, Err(Error::NodeRevoked { .. })), "{by_any_token:?}");
        may_admit(&store, &node("a"), "third", Claim::Operator).await.unwrap();
        assert!(admitted(&store, "a", "third", Claim::Operator).await);
    }

    #[tokio::test]
    async fn what_is_over_is_removed_and_nothing_else() {
        let store = store();
        use_token(&store, TokenId([1; 16]), None, UNIX_EPOCH).await.unwrap();
        use_token(&store, TokenId([2; 16]), None, in_an_hour()).await.unwrap();
        admit(&store, &node("old"), &holding("one", UNIX_EPOCH), Claim::Free).await.unwrap();
        admit(&store, &node("new"), &holding("one", in_an_hour()), Claim::Free).await.unwrap();
        revoke(&store, &node("gone"), Duration::from_secs(3600)).await.unwrap();
        store.put(&Path::new("enrolment/later/x").unwrap(), b"{\"until\":1}".to_vec(), None).await.unwrap();
        assert_eq!(tidy(&store).await.unwrap(), 2);
        assert_eq!(store.list(&EnrolmentKey::all()).await.unwrap().entries.len(), 4);
    }
}
