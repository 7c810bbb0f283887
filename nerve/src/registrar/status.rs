//! How things stand on this node: what the admin API and the command line show.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::check::Report;
use crate::model::NodeName;
use crate::source::{InstanceKey, Located};
use crate::store::Revision;

/// How a record of this node stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// Its newest state is not in the store yet.
    Pending {
        /// Since when.
        since: SystemTime,
        /// What it waits for.
        reason: String,
    },
    /// The store has confirmed it.
    Registered {
        /// At this revision.
        revision: Revision,
        /// Since when it has been registered without a break.
        since: SystemTime,
    },
    /// It will not be written while this lasts.
    Refused {
        /// Since when.
        since: SystemTime,
        /// Why.
        refusal: Refusal,
    },
    /// It was taken back because the agent leaves.
    Withdrawn,
}

/// Why a record is not written although the store is well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another agent has this node's name.
    #[error(
        "node name {name} is taken by an agent at {holder}, and this one is at {address}; give one of them another \
         name ([node] name). Nothing of this node is registered until then"
    )]
    DuplicateNode {
        /// The name.
        name: NodeName,
        /// The address of the agent that has it.
        holder: IpAddr,
        /// Ours.
        address: IpAddr,
    },
    /// Another node has registered an instance of this id.
    #[error("instance {key} is registered by node {holder} already; give one of them another id")]
    DuplicateInstance {
        /// The instance.
        key: InstanceKey,
        /// The node that has it.
        holder: NodeName,
    },
}

impl Refusal {
    /// The word for it, as in metric labels.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::DuplicateNode { .. } => "duplicate_node",
            Self::DuplicateInstance { .. } => "duplicate_instance",
        }
    }
}

impl fmt::Display for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending { reason, .. } => write!(f, "pending: {reason}"),
            Self::Registered { revision, .. } => write!(f, "registered at revision {}", revision.0),
            Self::Refused { refusal, .. } => write!(f, "refused: {refusal}"),
            Self::Withdrawn => f.write_str("withdrawn"),
        }
    }
}

/// An instance of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalInstance {
    /// What is defined, and where.
    pub located: Arc<Located>,
    /// How it is, as its checks see it.
    pub report: Report,
    /// It or the node is being drained, or what runs it is stopping it.
    pub draining: bool,
    /// How its record stands in the store.
    pub registration: Registration,
}

/// Something that people should see until it is mended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// A file, a service and instance, a node, the store.
    pub subject: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// Why nobody took what an application reported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// No check of this node is reported to by this id.
    #[error(
        "this node has no `ttl` check {0:?}; its id is what its definition says, or service:<instance> \
         (`plexus status --json` shows the instances)"
    )]
    Unknown(String),
    /// Several are.
    #[error("{check:?} is a check of several instances ({instances}); give the checks ids of their own")]
    Ambiguous {
        /// The id.
        check: String,
        /// Two of them.
        instances: String,
    },
}
