//! Readiness: what the agent still waits for before it may be called ready.
//!
//! Each room that has something to finish first holds a named [`Guard`]; the agent is ready when none is held. A list
//! of names instead of a flag, so that `/readyz` can say what is missing. A guard taken later makes the agent not
//! ready again, as a drain does. Never decides by itself that something took long enough.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// The guards that are held, by the order in which they were taken.
#[derive(Debug, Default, Clone)]
struct Held {
    next: u64,
    names: BTreeMap<u64, Cow<'static, str>>,
}

/// Whether the agent is ready. Clones share the answer.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<watch::Sender<Held>>);

/// Not ready for as long as this is held.
#[derive(Debug)]
#[must_use = "dropping the guard says that what it stands for is done"]
pub struct Guard {
    readiness: Readiness,
    id: u64,
}

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Held::default())))
    }
}

impl Readiness {
    /// Ready, until something blocks it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready until the guard is dropped; `what` is what is awaited, as `/readyz` prints it.
    pub fn block(&self, what: impl Into<Cow<'static, str>>) -> Guard {
        let mut id = 0;
        self.0.send_modify(|held| {
            id = held.next;
            held.next += 1;
            held.names.insert(id, what.into());
        });
        Guard { readiness: self.clone(), id }
    }

    /// What is awaited, the longest awaited first.
    #[must_use]
    pub fn awaited(&self) -> Vec<String> {
        self.0.borrow().names.values().map(ToString::to_string).collect()
    }

    /// Is nothing awaited?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.borrow().names.is_empty()
    }

    /// Completes when nothing is awaited. Cancel-safe.
    pub async fn ready(&self) {
        // The sender lives in `self`, so the channel cannot close while this waits.
        let _ = self.0.subscribe().wait_for(|held| held.names.is_empty()).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.readiness.0.send_modify(|held| drop(held.names.remove(&self.id)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_agent_is_ready_when_the_last_guard_is_dropped() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let catalog = readiness.block("catalog");
        let dns = readiness.block("dns");
        assert_eq!(readiness.awaited(), ["catalog", "dns"]);
        drop(catalog);
        assert_eq!(readiness.awaited(), ["dns"]);
        let (waited, ()) = tokio::join!(
            tokio::time::timeout(std::time::Duration::from_secs(20), readiness.ready()),
            async move { drop(dns) }
        );
        assert!(waited.is_ok() && readiness.is_ready());
    }

    #[test]
    fn two_guards_of_one_name_count_twice() {
        let readiness = Readiness::new();
        let first = readiness.block("listener");
        let _second = readiness.block("listener");
        drop(first);
        assert!(!readiness.is_ready());
    }
}
