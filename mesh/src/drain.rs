//! Draining: telling a room to finish what it has and take nothing new, and knowing when it has.
//!
//! One [`DrainTrigger`], any number of [`DrainWatcher`]s. A watcher that is held means: still busy. The room that holds
//! one stops taking new work when it is signalled, finishes what it has, and drops it; the trigger's owner waits for
//! that, at most until its deadline, and then forces.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// The one that asks for the drain.
#[derive(Debug)]
pub struct DrainTrigger {
    begin: watch::Sender<bool>,
    // Watchers hold senders of a channel in which nothing is ever sent: it closes when the last of them is dropped.
    busy: mpsc::Receiver<std::convert::Infallible>,
}

/// Held for as long as there is something to finish. Clones count on their own.
#[derive(Debug, Clone)]
pub struct DrainWatcher {
    begin: watch::Receiver<bool>,
    _busy: mpsc::Sender<std::convert::Infallible>,
}

/// Did everyone finish in time?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every watcher was dropped.
    Completely,
    /// The deadline passed with watchers still held.
    DeadlinePassed,
}

/// A trigger and its first watcher.
#[must_use]
pub fn channel() -> (DrainTrigger, DrainWatcher) {
    let (begin, begun) = watch::channel(false);
    let (busy, idle) = mpsc::channel(1);
    (DrainTrigger { begin, busy: idle }, DrainWatcher { begin: begun, _busy: busy })
}

impl DrainTrigger {
    /// Begins the drain and waits until every watcher is dropped, at most for `deadline`.
    pub async fn drain(mut self, deadline: Duration) -> Drained {
        self.begin.send_replace(true);
        match tokio::time::timeout(deadline, self.busy.recv()).await {
            Ok(_) => Drained::Completely,
            Err(_) => Drained::DeadlinePassed,
        }
    }
}

impl DrainWatcher {
    /// Completes when the drain begins, or its trigger is gone. Cancel-safe.
    pub async fn signaled(&mut self) {
        // An error means that the trigger was dropped without a drain: nobody waits for us, so leave as well.
        let _ = self.begin.wait_for(|begun| *begun).await;
    }

    /// Has the drain begun?
    #[must_use]
    pub fn is_signaled(&self) -> bool {
        *self.begin.borrow() || self.begin.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_when_the_last_watcher_is_dropped() {
        let (trigger, mut first) = channel();
        let second = first.clone();
        assert!(!second.is_signaled());
        let drain = trigger.drain(Duration::from_secs(10));
        let work = async move {
            first.signaled().await;
            drop(first);
            assert!(second.is_signaled());
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(second);
        };
        assert_eq!(tokio::join!(drain, work).0, Drained::Completely);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_gives_up_at_its_deadline() {
        let (trigger, _held) = channel();
        assert_eq!(trigger.drain(Duration::from_secs(1)).await, Drained::DeadlinePassed);
    }
}
