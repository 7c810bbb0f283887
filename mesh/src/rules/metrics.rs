//! What is counted of rules.

use nerve::model::RuleSet;
use prometheus::core::Collector;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

use super::By;

/// What refuses and is no rule. No rule is called so: these are no DNS labels.
const OTHERS: [&str; 2] = ["(default)", "(start)"];

/// How many rules there are, and what each has refused on this node.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) rules: IntGauge,
    denied: IntCounterVec,
}

impl Metrics {
    /// Counters at zero, not registered yet.
    pub fn new() -> prometheus::Result<Self> {
        Ok(Self {
            rules: IntGauge::new("plexus_rules", "Rules about who may talk to whom.")?,
            denied: IntCounterVec::new(
                Opts::new(
                    "plexus_rules_denied_total",
                    "Connections, sessions of UDP and streams of other nodes that were refused here, by what refused them.",
                ),
                &["rule"],
            )?,
        })
    }

    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.rules.clone()))?;
        registry.register(Box::new(self.denied.clone()))
    }

    pub(super) fn denied(&self, by: &By) {
        let rule = match by {
            By::Rule(name) => name.as_str(),
            By::Default => OTHERS[0],
            By::NotYet => OTHERS[1],
        };
        self.denied.with_label_values(&[rule]).inc();
    }

    /// The rules are these: those that are no more have no counter.
    pub(super) fn note_rules(&self, set: &RuleSet) {
        self.rules.set(i64::try_from(set.rules.len()).unwrap_or(i64::MAX));
        for family in self.denied.collect() {
            let counters = family.get_metric().iter().flat_map(|counter| counter.get_label());
            let is_gone = |rule: &&str| !OTHERS.contains(rule) && !set.rules.contains_key(*rule);
            for rule in counters.map(|label| label.value()).filter(is_gone) {
                // Whoever else has removed it has done the same.
                let _ = self.denied.remove_label_values(&[rule]);
            }
        }
    }
}
