//! Who a node is, what lets others in, and whom nobody believes any more.

use std::num::NonZeroU32;

use nerve::model::NodeName;
use serde::{Deserialize, Serialize};

/// How the identity of the node that answers stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityInfo {
    /// Who it is, as a SPIFFE id; none: it has no certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// When its certificate ends (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// The authorities that it believes: the SHA-256 digests of their certificates.
    pub authorities: Vec<String>,
    /// Does it certify others?
    pub signs: bool,
    /// Nodes whose certificates are refused.
    pub revoked: Vec<RevokedNode>,
    /// What is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How a rotation of the authority stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotations {
    /// The one that is under way, or the last one; none: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationInfo>,
}

/// One authority takes another one's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationInfo {
    /// The old one: the SHA-256 digest of its certificate.
    pub from: String,
    /// The new one.
    pub to: String,
    /// How far it is.
    pub phase: RotationPhase,
    /// How many nodes have a certificate that holds.
    pub nodes: usize,
    /// Those that the next phase waits for.
    pub waits_for: Vec<AwaitedNode>,
}

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotationPhase {
    /// Nodes learn to believe the new authority.
    Trust,
    /// Nodes get certificates of the new authority.
    Renew,
    /// The old one is believed no more.
    Done,
    /// It is taken back: nodes get certificates of the old authority.
    Revert,
    /// It was taken back.
    Aborted,
}

/// A node that a rotation waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitedNode {
    /// Its name.
    pub node: NodeName,
    /// What for.
    pub why: String,
}

/// Take a rotation back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AbortRequest {}

/// A node whose certificates are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedNode {
    /// Its name.
    pub node: NodeName,
    /// Those that were made until then (RFC 3339).
    pub at: String,
}

/// Make a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRequest {
    /// How long it is to be good, in seconds.
    pub ttl_seconds: u64,
    /// How often; none: as often as anyone wants until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<NonZeroU32>,
    /// For this node alone, which may take the place of one of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// What is given to the node that is to join.
    pub token: String,
    /// What the log calls it.
    pub id: String,
    /// Until when (RFC 3339).
    pub expires: String,
    /// The authority that the node knows the mesh by.
    pub authority: String,
}

/// Have nobody believe a node any more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {}
