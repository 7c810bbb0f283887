//! What rules say of connections to a service, as `plexus why` tells it.

use nerve::model::{Rule, RuleName, ServiceName};

use super::Handles;
use crate::api::{RuleInfo, WhyRules, WhyVerdict};
use crate::rules::By;

/// What rules say of connections to a service, and of those of one client; nothing where nobody has said anything and nobody asks.
pub(super) fn why(handles: &Handles, from: Option<ServiceName>, to: &ServiceName) -> Option<WhyRules> {
    let set = handles.catalog.rules();
    if set.is_empty() && from.is_none() {
        return None;
    }
    let (verdict, about) = handles.who_may.explain(from.as_ref(), to);
    let by = |by: &By| match by {
        By::Rule(name) => set.rules.get(name).map(|rule| info(name, rule)),
        By::Default | By::NotYet => None,
    };
    let verdict = WhyVerdict { from, effect: verdict.effect, rule: by(&verdict.by) };
    Some(WhyRules { about, default: set.default, verdict })
}

/// A rule as it is shown.
pub(super) fn info(name: &RuleName, rule: &Rule) -> RuleInfo {
    let Rule { effect, from, to } = rule.clone();
    RuleInfo { name: name.clone(), effect, from, to }
}
