//! Rules: which services may talk to which, and how nodes reach each other's instances, as they stand under `rules/mesh`.
//!
//! All of them and the default are one record, so that a change is one write, and no reader ever sees a default without the
//! exceptions to it. Their order means nothing: what any rule denies is denied; else what any allows is allowed; else the
//! default holds.

mod record;
mod selector;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use record::{RuleRecord, RulesError};
pub use selector::{LabelSelector, SelectorError, ServiceSelector};

use super::{MtlsMode, RuleName};

/// So many rules there may be: the record is one value of the store.
pub const MAX_RULES: usize = 1000;

/// What a rule does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// It may be.
    #[default]
    Allow,
    /// It may not.
    Deny,
}

impl Effect {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Effect {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Allow, Self::Deny]
            .into_iter()
            .find(|effect| effect.as_str() == text)
            .ok_or_else(|| format!("{text:?} is neither `allow` nor `deny`"))
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// What it does.
    pub effect: Effect,
    /// With connections of these clients.
    pub from: ServiceSelector,
    /// To these services.
    pub to: ServiceSelector,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.effect, self.from, self.to)
    }
}

/// Every rule of the mesh, and what holds where none applies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleSet {
    /// What holds where no rule applies.
    pub default: Effect,
    /// By name.
    pub rules: BTreeMap<RuleName, Rule>,
    /// How nodes reach each other's instances at least; a node's own configuration and a service's settings may ask for more.
    pub mtls: MtlsMode,
}

impl RuleSet {
    /// Is there any connection that they forbid? While there is none, nobody needs to know who a client is.
    #[must_use]
    pub fn forbid_anything(&self) -> bool {
        self.default == Effect::Deny || self.rules.values().any(|rule| rule.effect == Effect::Deny)
    }

    /// Has nobody said anything?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
