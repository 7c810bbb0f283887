//! The record as it stands in the store: read leniently, changed without a loss of what another version wrote.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Effect, MAX_RULES, Rule, RuleSet};
use crate::model::{MtlsMode, RuleName};

/// Why a record says nothing.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It is no JSON, or of another form.
    #[error(transparent)]
    Form(#[from] serde_json::Error),
    /// Nobody writes so many.
    #[error("it has {0} rules, and there may be {MAX_RULES}")]
    TooMany(usize),
}

/// Rules as they were written, those too that this version does not understand.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RuleRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default: Option<Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    rules: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtls: Option<Value>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

impl RuleRecord {
    /// Reads a record.
    ///
    /// # Errors
    /// It is no object of this form, or has more rules than there may be.
    pub fn read(record: &[u8]) -> Result<Self, RulesError> {
        let record: Self = serde_json::from_slice(record)?;
        if record.rules.len() > MAX_RULES {
            return Err(RulesError::TooMany(record.rules.len()));
        }
        Ok(record)
    }

    /// What is understood of it, and the names of what is not. A default of another word is taken for `deny`: whoever wrote it did
    /// not mean that everything is allowed.
    #[must_use]
    pub fn understood(&self) -> (RuleSet, Vec<String>) {
        let mut left_out = Vec::new();
        let default = match &self.default {
            None => Effect::default(),
            Some(value) => Effect::deserialize(value).unwrap_or_else(|_| {
                left_out.push(format!("default {value}, which is taken for deny"));
                Effect::Deny
            }),
        };
        let mut rules = BTreeMap::new();
        for (name, value) in &self.rules {
            match (RuleName::new(name), Rule::deserialize(value)) {
                (Ok(name), Ok(rule)) => drop(rules.insert(name, rule)),
                (Err(_), _) | (_, Err(_)) => left_out.push(format!("rules.{name}")),
            }
        }
        let mtls = match &self.mtls {
            None => MtlsMode::default(),
            Some(value) => MtlsMode::deserialize(value).unwrap_or_else(|_| {
                left_out.push(format!("mtls {value}, which is taken for strict"));
                MtlsMode::Strict
            }),
        };
        (RuleSet { default, rules, mtls }, left_out)
    }

    /// How many rules it has, understood or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Is there nothing in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What has this name, in words.
    #[must_use]
    pub fn described(&self, name: &RuleName) -> Option<String> {
        let value = self.rules.get(name.as_str())?;
        Some(Rule::deserialize(value).map_or_else(|_| value.to_string(), |rule| rule.to_string()))
    }

    /// Writes a rule.
    ///
    /// # Errors
    /// It has no form in JSON, which every rule has.
    pub fn put(&mut self, name: &RuleName, rule: &Rule) -> serde_json::Result<()> {
        self.rules.insert(name.as_str().to_owned(), serde_json::to_value(rule)?);
        Ok(())
    }

    /// Takes a rule out; whether there was one.
    pub fn remove(&mut self, name: &RuleName) -> bool {
        self.rules.remove(name.as_str()).is_some()
    }

    /// Writes how nodes reach each other's instances. What holds without a word is not written.
    pub fn set_mtls(&mut self, mode: MtlsMode) {
        self.mtls = (mode != MtlsMode::default()).then(|| Value::from(mode.as_str()));
    }

    /// Writes the default. What holds without one is not written.
    pub fn set_default(&mut self, default: Effect) {
        self.default = (default != Effect::default()).then(|| Value::from(default.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_another_version_wrote_costs_that_rule_alone_and_is_kept() {
        let text = br#"{"default":"deny","colour":"red","rules":{
            "a":{"effect":"allow","from":"web","to":"api","since":7},
            "b":{"effect":"log","from":"web","to":"api"},
            "c":{"effect":"deny","from":"zone:eu","to":"*"}}}"#;
        let mut record = RuleRecord::read(text).unwrap();
        let (set, left_out) = record.understood();
        assert_eq!((set.default, set.rules.len()), (Effect::Deny, 1));
        assert_eq!(left_out, ["rules.b", "rules.c"]);
        assert!(record.remove(&"a".parse().unwrap()) && !record.remove(&"a".parse().unwrap()));
        record.set_default(Effect::Allow);
        let written = serde_json::to_string(&record).unwrap();
        assert!(["red", "zone:eu", "log"].iter().all(|word| written.contains(word)), "{written}");
        assert!(!written.contains("default"), "{written}");
    }

    #[test]
    fn a_default_that_is_not_understood_is_the_strict_one() {
        let (set, left_out) = RuleRecord::read(br#"{"default":"ask"}"#).unwrap().understood();
        assert_eq!((set.default, left_out.len()), (Effect::Deny, 1));
        assert!(set.forbid_anything());
    }

    #[test]
    fn a_record_of_more_rules_than_there_may_be_is_refused() {
        let mut record = RuleRecord::default();
        let rule = Rule { effect: Effect::Deny, from: "*".parse().unwrap(), to: "api".parse().unwrap() };
        for number in 0..=MAX_RULES {
            record.put(&format!("r{number}").parse().unwrap(), &rule).unwrap();
        }
        let text = serde_json::to_vec(&record).unwrap();
        assert!(matches!(RuleRecord::read(&text), Err(RulesError::TooMany(1001))));
    }

    proptest! {
        #[test]
        fn no_record_crashes_the_reader(text in "(\\{\"rules\":\\{\"a\":.{0,30}\\}\\}|.{0,60})") {
            if let Ok(record) = RuleRecord::read(text.as_bytes()) {
                let _ = record.understood();
            }
        }
    }
}
