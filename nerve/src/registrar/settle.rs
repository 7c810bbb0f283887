//! One record against the store: makes what stands there what should, and never takes what is another's.
//!
//! Every write is a compare-and-swap. What is found instead of what was expected is looked at: a record of our own
//! earlier life is taken over, one that cannot be read is replaced, another node's is left alone.

use std::net::IpAddr;

use serde::Deserialize;

use super::status::Refusal;
use crate::model::{Health, Instance, Node, NodeName};
use crate::source::InstanceKey;
use crate::store::{Entry, Error, ErrorKind, Expect, Path, Revision, Session, Store, Swap};

/// Someone else may write between our looking and our writing; so many times it is worth looking again at once.
const ROUNDS: usize = 5;

/// What a record should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Node(Node),
    Instance(Box<Instance>),
    /// There should be none of this instance.
    NoInstance(InstanceKey),
    /// There should be none of this node at this address.
    NoNode(IpAddr),
}

/// What the store has confirmed to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Confirmed {
    pub(super) value: Vec<u8>,
    pub(super) revision: Revision,
}

/// One record to be settled.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) path: Path,
    pub(super) record: Record,
    /// This node: whose records are ours.
    pub(super) node: NodeName,
    /// What stands there under the present session, as far as is known.
    pub(super) known: Option<Confirmed>,
    /// Look, even if nothing seems to be amiss.
    pub(super) verify: bool,
    /// It has not been written in this life: what an earlier one found out about its health holds on.
    pub(super) first: bool,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// It stands there as it should.
    Stands {
        confirmed: Confirmed,
        /// It did not, although it was confirmed before.
        repaired: bool,
        /// Registered as passing, as its record was, though its checks have not decided yet.
        adopted: bool,
    },
    /// Nothing of ours stands there.
    Gone,
    /// It is another's.
    Refused(Refusal),
}

/// Brings one record to the store under `session`.
pub(super) async fn settle(
    store: &dyn Store,
    session: Option<&Session>,
    mut job: Job,
) -> Result<Settled, Error> {
    let mut expect = job.known.as_ref().map_or(Expect::Absent, |known| Expect::Unchanged(known.revision));
    let mut repaired = false;
    let mut adopted = false;
    let removal = matches!(job.record, Record::NoInstance(_) | Record::NoNode(_));
    if let (false, Some(known)) = (job.verify, &job.known)
        && Some(&known.value) == job.value(store)?.as_ref()
    {
        return Ok(Settled::Stands { confirmed: known.clone(), repaired: false, adopted: false });
    }
    if job.verify || (removal && job.known.is_none()) {
        let found = store.get(&job.path).await?;
        if let (Some(entry), Some(known)) = (&found, &job.known)
            && entry.revision == known.revision
            && Some(&known.value) == job.value(store)?.as_ref()
        {
            return Ok(Settled::Stands { confirmed: known.clone(), repaired: false, adopted: false });
        }
        repaired = job
            .known
            .as_ref()
            .is_some_and(|known| found.as_ref().is_none_or(|entry| entry.revision != known.revision));
        match job.weigh(found, &mut adopted) {
            Ok(found) => expect = found,
            Err(settled) => return Ok(settled),
        }
    }
    for _ in 0..ROUNDS {
        if removal && expect == Expect::Absent {
            return Ok(Settled::Gone);
        }
        let value = job.value(store)?;
        let session = session.filter(|_| !removal);
        match store.compare_and_swap(&job.path, expect, value.clone(), session).await? {
            Swap::Done(revision) => {
                return Ok(match value {
                    Some(value) => {
                        Settled::Stands { confirmed: Confirmed { value, revision }, repaired, adopted }
                    }
                    None => Settled::Gone,
                });
            }
            Swap::Conflict(found) => match job.weigh(found, &mut adopted) {
                Ok(found) => expect = found,
                Err(settled) => return Ok(settled),
            },
        }
    }
    Err(job.error(store, ErrorKind::Unavailable, format!("someone else wrote it {ROUNDS} times meanwhile")))
}

#[derive(Deserialize)]
struct Owner {
    node: NodeName,
}

impl Job {
    fn value(&self, store: &dyn Store) -> Result<Option<Vec<u8>>, Error> {
        let json = match &self.record {
            Record::Node(node) => serde_json::to_vec(node),
            Record::Instance(instance) => serde_json::to_vec(instance),
            Record::NoInstance(_) | Record::NoNode(_) => return Ok(None),
        };
        json.map(Some).map_err(|error| {
            self.error(store, ErrorKind::Invalid, format!("the record cannot be written as JSON: {error}"))
        })
    }

    fn error(&self, store: &dyn Store, kind: ErrorKind, reason: String) -> Error {
        Error {
            operation: "register",
            target: self.path.to_string(),
            store: store.url().to_owned(),
            kind,
            may_have_applied: false,
            reason,
            source: None,
        }
    }

    /// What was found: may it be overwritten, and as what?
    fn weigh(&mut self, found: Option<Entry>, adopted: &mut bool) -> Result<Expect, Settled> {
        let Some(entry) = found else { return Ok(Expect::Absent) };
        let theirs = match &mut self.record {
            Record::Node(node) => match serde_json::from_slice::<Node>(&entry.value) {
                Ok(found) if found.address != node.address => Some(Refusal::DuplicateNode {
                    name: node.name.clone(),
                    holder: found.address,
                    address: node.address,
                }),
                _ => None,
            },
            Record::Instance(instance) => {
                let key = InstanceKey { service: instance.service.clone(), id: instance.id.clone() };
                let theirs = other_owner(&entry, &self.node, key);
                if theirs.is_none() && self.first {
                    *adopted |= adopt(instance, &entry);
                }
                theirs
            }
            Record::NoInstance(key) => match other_owner(&entry, &self.node, key.clone()) {
                // Not ours to delete.
                Some(_) => return Err(Settled::Gone),
                None => None,
            },
            Record::NoNode(address) => match serde_json::from_slice::<Node>(&entry.value) {
                Ok(found) if found.address != *address => return Err(Settled::Gone),
                _ => None,
            },
        };
        theirs.map_or(Ok(Expect::Unchanged(entry.revision)), |refusal| Err(Settled::Refused(refusal)))
    }
}

/// The refusal, if the record is another node's. One that names no node is nobody's.
fn other_owner(entry: &Entry, node: &NodeName, key: InstanceKey) -> Option<Refusal> {
    let owner = serde_json::from_slice::<Owner>(&entry.value).ok()?.node;
    (owner != *node).then_some(Refusal::DuplicateInstance { key, holder: owner })
}

/// An agent that was restarted must not withdraw what is well: as long as the checks have not decided, the same
/// instance at the same place is as it was.
fn adopt(instance: &mut Instance, entry: &Entry) -> bool {
    let Ok(earlier) = serde_json::from_slice::<Instance>(&entry.value) else { return false };
    let same_place = earlier.listens_on() == instance.listens_on();
    let adopted = same_place && instance.health == Health::Starting && earlier.health == Health::Passing;
    if adopted {
        instance.health = Health::Passing;
        instance.health_reason = String::new();
    }
    adopted
}
