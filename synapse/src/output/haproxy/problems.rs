//! What does not work, for `plexus status`: each kind once, logged when it begins, changes and ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// So much of one kind is told.
const MAX_TOLD: usize = 10;

/// The problems. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Problems(Arc<Mutex<BTreeMap<String, String>>>);

impl Problems {
    /// There is one of this kind. Is it news?
    pub(super) fn set(&self, kind: &str, message: String) -> bool {
        let mut problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.get(kind) == Some(&message) {
            return false;
        }
        tracing::warn!(problem = message, "HAProxy");
        problems.insert(kind.to_owned(), message);
        true
    }

    /// There is one of this kind yet: what was said of it first is told.
    pub(super) fn keep(&self, kind: &str, message: String) {
        let is_known = self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(kind);
        if !is_known {
            self.set(kind, message);
        }
    }

    /// There is none of this kind any more.
    pub(super) fn clear(&self, kind: &str) {
        let gone = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(kind);
        if let Some(problem) = gone {
            tracing::info!(problem, "HAProxy: that is over");
        }
    }

    /// There are none of these kinds any more.
    pub(super) fn clear_where(&self, is_over: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|kind, _| !is_over(kind));
    }

    /// All of them.
    pub(super) fn list(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Several of one kind, on one line.
pub(super) fn several(all: &[String]) -> String {
    let mut told = all.iter().take(MAX_TOLD).cloned().collect::<Vec<_>>().join("; ");
    if all.len() > MAX_TOLD {
        told.push_str(&format!("; and {} more", all.len() - MAX_TOLD));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_news_when_it_begins_and_when_it_changes() {
        let problems = Problems::default();
        assert!(problems.set("write", "a".to_owned()) && !problems.set("write", "a".to_owned()));
        assert!(problems.set("write", "b".to_owned()) && problems.set("reload", "c".to_owned()));
        problems.keep("write", "d".to_owned());
        assert_eq!(problems.list(), ["c", "b"]);
        problems.clear("write");
        problems.clear_where(|kind| kind == "reload");
        assert!(problems.list().is_empty());
        let all: Vec<_> = (0..12).map(|number| number.to_string()).collect();
        assert!(several(&all).ends_with("9; and 2 more") && several(&all[..1]) == "0");
    }
}
