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
