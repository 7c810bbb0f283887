//! Rules about who may talk to whom: what an operator changes of them in the store.
//!
//! They are one record, which is read, modified and compare-and-swapped; what a newer agent wrote beside it is kept. A rule is
//! known by what it says: written twice it is one rule, under the name that it has.

use crate::hash;
use crate::model::{Effect, MAX_RULES, MtlsMode, Rule, RuleName, RuleRecord, RulesError, ServiceSelector};
use crate::store::{self, Expect, Key, Path, Store, Swap};

/// How often a compare-and-swap that met another writer is tried before giving up.
const ATTEMPTS: usize = 16;
/// The longest name, as a DNS label has it.
const LONGEST_NAME: usize = 63;

/// Why the rules could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another rule has this name.
    #[error(
        "rule {name} is there already: {held}; take another name, or run `plexus rules remove {name}` first"
    )]
    NameTaken {
        /// The name.
        name: RuleName,
        /// What that one says.
        held: String,
    },
    /// There are as many as may be.
    #[error("there are {MAX_RULES} rules already: remove some, or say more with one by labels or `*`")]
    TooMany,
    /// The record in the store is not what any version of this program writes.
    #[error(
        "the rules cannot be changed: what stands at {path} in the store is unreadable ({source}); repair or delete that key"
    )]
    Unreadable {
        /// The key in the store, below its prefix.
        path: Path,
        /// What is wrong with it.
        source: RulesError,
    },
    /// Other writers were always faster.
    #[error("the rules were changed by others {ATTEMPTS} times in a row; nothing was written, try again")]
    Contended,
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What adding a rule did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// The name that the rule has.
    pub name: RuleName,
    /// It was not there before.
    pub new: bool,
}

/// Adds a rule, by this name or one that is made of what it says. Idempotent: a rule that says the same is left as it is, whatever
/// it is called.
///
/// # Errors
/// Another rule has the name, there are too many, or the store did not do it.
pub async fn add(store: &dyn Store, name: Option<RuleName>, rule: &Rule) -> Result<Added, Error> {
    let mut done = None;
    change(store, |record| {
        let (set, _) = record.understood();
        if let Some((name, _)) = set.rules.iter().find(|(_, known)| *known == rule) {
            done = Some(Added { name: name.clone(), new: false });
            return Ok(false);
        }
        let name = match &name {
            Some(name) => name.clone(),
            None => free_name(record, rule)?,
        };
        if let Some(held) = record.described(&name) {
            return Err(Error::NameTaken { name, held });
        }
        if record.len() >= MAX_RULES {
            return Err(Error::TooMany);
        }
        record.put(&name, rule).map_err(unreadable)?;
        done = Some(Added { name, new: true });
        Ok(true)
    })
    .await?;
    // The change was looked at once at least, or there was an error.
    done.ok_or(Error::Contended)
}

/// Removes a rule, also one that is not understood here. Whether there was one.
///
/// # Errors
/// The store did not do it.
pub async fn remove(store: &dyn Store, name: &RuleName) -> Result<bool, Error> {
    change(store, |record| Ok(record.remove(name))).await
}

/// Says what holds where no rule applies. Whether that is different from before.
///
/// # Errors
/// The store did not do it.
pub async fn set_default(store: &dyn Store, default: Effect) -> Result<bool, Error> {
    change(store, |record| {
        let before = record.clone();
        record.set_default(default);
        Ok(*record != before)
    })
    .await
}

/// Says how nodes reach each other's instances. Whether that is different from before.
///
/// # Errors
/// The store did not do it.
pub async fn set_mtls(store: &dyn Store, mode: MtlsMode) -> Result<bool, Error> {
    change(store, |record| {
        let before = record.clone();
        record.set_mtls(mode);
        Ok(*record != before)
    })
    .await
}

/// Reads the record, lets `modify` change it, and writes it back unless that says that nothing changed; anew when another
/// writer came in between. An empty record is deleted. Whether anything was written.
async fn change(
    store: &dyn Store,
    mut modify: impl FnMut(&mut RuleRecord) -> Result<bool, Error> + Send,
) -> Result<bool, Error> {
    let path = Key::Rules.path();
    let mut entry = store.get(&path).await?;
    for _ in 0..ATTEMPTS {
        let (expect, mut record) = match &entry {
            None => (Expect::Absent, RuleRecord::default()),
            Some(entry) => {
                let record = RuleRecord::read(&entry.value).map_err(unreadable)?;
                (Expect::Unchanged(entry.revision), record)
            }
        };
        if !modify(&mut record)? {
            return Ok(false);
        }
        let text =
            (!record.is_empty()).then(|| serde_json::to_vec(&record).map_err(unreadable)).transpose()?;
        match store.compare_and_swap(&path, expect, text, None).await? {
            Swap::Done(_) => return Ok(true),
            Swap::Conflict(current) => entry = current,
        }
    }
    Err(Error::Contended)
}

fn unreadable(source: impl Into<RulesError>) -> Error {
    Error::Unreadable { path: Key::Rules.path(), source: source.into() }
}

/// A name that says what the rule does, and no other rule has.
fn free_name(record: &RuleRecord, rule: &Rule) -> Result<RuleName, Error> {
    let plain = name_of(rule);
    let names = plain.into_iter().chain((0..u64::from(u8::MAX)).map(|salt| hashed_name(rule, salt)));
    let mut free =
        names.filter_map(|name| RuleName::new(&name).ok()).filter(|name| record.described(name).is_none());
    free.next().ok_or(Error::TooMany)
}

/// `allow-web-to-api`, where both are names and it is not too long.
fn name_of(rule: &Rule) -> Option<String> {
    let word = |selector: &ServiceSelector| match selector {
        ServiceSelector::Everyone => Some("all".to_owned()),
        ServiceSelector::Service(name) => Some(name.to_string()),
        ServiceSelector::Labels(_) => None,
    };
    let name = format!("{}-{}-to-{}", rule.effect, word(&rule.from)?, word(&rule.to)?);
    (name.len() <= LONGEST_NAME).then_some(name)
}

/// `deny-3f9a0c12`.
fn hashed_name(rule: &Rule, salt: u64) -> String {
    let number = hash::of(&format!("{rule}/{salt}"));
    format!("{}-{:08x}", rule.effect, number >> 32)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{EmbeddedStore, Metrics};

    fn store() -> EmbeddedStore {
        EmbeddedStore::open(None, Duration::from_secs(5), Metrics::default()).unwrap()
    }

    fn rule(effect: Effect, from: &str, to: &str) -> Rule {
        Rule { effect, from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    fn name(text: &str) -> RuleName {
        text.parse().unwrap()
    }

    async fn text(store: &EmbeddedStore) -> Option<String> {
        let entry = store.get(&Key::Rules.path()).await.unwrap();
        entry.map(|entry| String::from_utf8(entry.value).unwrap())
    }

    #[tokio::test]
    async fn a_rule_is_added_once_and_its_removal_leaves_nothing() {
        let store = store();
        let web = rule(Effect::Allow, "web", "api");
        let added = add(&store, None, &web).await.unwrap();
        assert_eq!(added, Added { name: name("allow-web-to-api"), new: true });
        let again = add(&store, Some(name("other")), &web).await.unwrap();
        assert_eq!(again, Added { name: name("allow-web-to-api"), new: false });
        assert!(remove(&store, &added.name).await.unwrap() && !remove(&store, &added.name).await.unwrap());
        assert_eq!(text(&store).await, None);
    }

    #[tokio::test]
    async fn names_are_made_of_what_rules_say_and_never_taken_from_another() {
        let store = store();
        let names = [
            (rule(Effect::Deny, "*", "db"), "deny-all-to-db"),
            // A service may be called so.
            (rule(Effect::Deny, "all", "db"), "deny-"),
            (rule(Effect::Deny, "env=dev", "*"), "deny-"),
            (rule(Effect::Allow, &"w".repeat(63), "api"), "allow-"),
        ];
        let mut seen = std::collections::BTreeSet::new();
        for (rule, begins) in names {
            let added = add(&store, None, &rule).await.unwrap();
            assert!(added.name.as_str().starts_with(begins) && seen.insert(added.name.clone()), "{added:?}");
        }
        let error =
            add(&store, Some(name("deny-all-to-db")), &rule(Effect::Allow, "a", "b")).await.unwrap_err();
        assert!(error.to_string().contains("deny * -> db; take another name"), "{error}");
    }

    #[tokio::test]
    async fn the_default_is_written_with_the_rules_and_a_newer_agents_words_are_kept() {
        let store = store();
        assert!(!set_default(&store, Effect::Allow).await.unwrap());
        assert_eq!(text(&store).await, None);
        let newer = br#"{"default":"ask","rules":{"x":{"effect":"log"}}}"#;
        store.put(&Key::Rules.path(), newer.to_vec(), None).await.unwrap();
        assert!(set_default(&store, Effect::Deny).await.unwrap());
        assert!(!set_default(&store, Effect::Deny).await.unwrap());
        add(&store, None, &rule(Effect::Allow, "web", "api")).await.unwrap();
        let written = text(&store).await.unwrap();
        assert!(
            ["\"deny\"", "log", "allow-web-to-api"].iter().all(|word| written.contains(word)),
            "{written}"
        );
        assert!(remove(&store, &name("x")).await.unwrap());
    }

    #[tokio::test]
    async fn an_unreadable_record_is_refused_and_left_alone() {
        let store = store();
        store.put(&Key::Rules.path(), b"{".to_vec(), None).await.unwrap();
        let error = add(&store, None, &rule(Effect::Deny, "web", "api")).await.unwrap_err();
        assert!(error.to_string().contains("rules/mesh"), "{error}");
        assert_eq!(text(&store).await.unwrap(), "{");
    }

    #[tokio::test]
    async fn writers_at_the_same_time_all_get_through() {
        let store = store();
        let rules: Vec<Rule> = (0..8).map(|n| rule(Effect::Deny, &format!("s{n}"), "api")).collect();
        let writes = rules.iter().map(|rule| add(&store, None, rule));
        assert!(futures_util::future::join_all(writes).await.iter().all(Result::is_ok));
        assert_eq!(RuleRecord::read(text(&store).await.unwrap().as_bytes()).unwrap().len(), 8);
    }
}
