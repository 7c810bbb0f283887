//! Rules about who may talk to whom: what requests about them are told and answer.

use nerve::model::{Effect, RuleName, ServiceName, ServiceSelector};
use serde::{Deserialize, Serialize};

/// Add a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleRequest {
    /// What it is called; made of what it says unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<RuleName>,
    /// What it does.
    pub effect: Effect,
    /// With connections of these clients.
    pub from: ServiceSelector,
    /// To these services.
    pub to: ServiceSelector,
}

/// Say what holds where no rule applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefaultRequest {
    /// `allow` or `deny`.
    pub default: Effect,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleInfo {
    /// What it is called.
    pub name: RuleName,
    /// What it does.
    pub effect: Effect,
    /// With connections of these clients.
    pub from: ServiceSelector,
    /// To these services.
    pub to: ServiceSelector,
}

/// What rules say of connections to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyRules {
    /// How many rules are about connections to it.
    pub about: usize,
    /// What holds where none applies.
    pub default: Effect,
    /// What holds for the client that was asked about.
    pub verdict: WhyVerdict,
}

/// What rules say of one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyVerdict {
    /// The client's service; none for clients of whom nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ServiceName>,
    /// May it be connected?
    pub effect: Effect,
    /// The rule that says so; the default, where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleInfo>,
}
