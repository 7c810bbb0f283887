//! Keeping in the kernel what [`ruleset`] says. An agent that is gone leaves it there: what is strict does not open up with it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::metrics::Metrics;
use super::ruleset::{COUNTER, TABLE, ruleset};
use super::{Handle, Problem};
use crate::nft::{self, Changed, Events, Kept};

/// How often what is counted is read, and what failed is tried again.
const TICK: Duration = Duration::from_secs(10);

/// What is to be refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    /// Strict addresses of this node.
    pub(super) addresses: BTreeSet<SocketAddr>,
    /// Links that lead to what is on this host.
    pub(super) local_links: Arc<[String]>,
}

pub(super) struct Wall {
    pub(super) handle: Handle,
    /// `None` until it is known.
    pub(super) wanted: watch::Receiver<Option<Wanted>>,
    pub(super) metrics: Metrics,
    pub(super) kept: Kept<1>,
    /// What the kernel has counted since the table was made, and was added to the metric.
    pub(super) counted: u64,
    /// It is in the log that somebody came in the clear.
    pub(super) is_said: bool,
}

impl Wall {
    /// Does not end.
    pub(super) async fn run(mut self) {
        let mut events = Events::open()
            .inspect_err(|error| tracing::debug!(%error, "changes of packet filter rules are not told"))
            .ok();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            if let Some(wanted) = wanted {
                let result = self.apply(&wanted, &mut events).await;
                self.handle.note(Problem::Wall, result.err().map(|error| format!("strict: {error}")));
            }
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                changed = told(&mut events) => if self.kept.is_changed(&changed) { self.kept.doubt() },
                _ = tick.tick() => {
                    self.count().await;
                    if events.is_none() {
                        self.kept.doubt();
                    }
                }
            }
        }
    }

    async fn apply(&mut self, wanted: &Wanted, events: &mut Option<Events>) -> Result<(), nft::Error> {
        self.metrics.walled.set(i64::try_from(wanted.addresses.len()).unwrap_or(i64::MAX));
        if wanted.addresses.is_empty() {
            return self.remove().await;
        }
        self.count().await;
        let is_new = !self.kept.is_set();
        let text = ruleset(&wanted.addresses, &wanted.local_links);
        if self.kept.ensure(text, events).await? {
            tracing::warn!(table = %TABLE, "somebody changed what keeps strict instances from being reached in the clear; it is as it was");
        } else if is_new {
            tracing::info!(table = %TABLE, addresses = wanted.addresses.len(), "strict instances are reached by tunnels alone");
        }
        // The counter is the table's, which is new, or as it was.
        self.counted = counted().await.unwrap_or_default().min(self.counted);
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), nft::Error> {
        match TABLE.remove().await {
            Ok(()) => {}
            // Where it never was installed, there never were rules.
            Err(nft::Error::Missing) if !self.kept.is_set() => {}
            // Nor where nobody may look.
            Err(error) if !self.kept.is_set() => {
                tracing::debug!(%error, "cannot look for what an agent before may have left");
            }
            Err(error) => return Err(error),
        }
        if self.kept.is_set() {
            tracing::info!("no instance here is strict any more: all are reached directly as well");
            self.kept = Kept::new([TABLE]);
        }
        Ok(())
    }

    /// Adds up what the kernel has refused since.
    async fn count(&mut self) {
        if !self.kept.is_set() {
            return;
        }
        let Some(counted) = counted().await else { return };
        self.metrics.refused.inc_by(counted.saturating_sub(self.counted));
        if counted > self.counted && !self.is_said {
            self.is_said = true;
            tracing::warn!(
                "other hosts try to reach strict instances in the clear, and are refused: this is said once, and counted in \
                 plexus_mtls_plain_refused_total"
            );
        }
        self.counted = counted;
    }
}

async fn counted() -> Option<u64> {
    nft::counted(TABLE, COUNTER)
        .await
        .inspect_err(|error| tracing::debug!(%error, "what was refused is not known"))
        .ok()?
}

/// The next word of changed rules; never where they are not told.
async fn told(events: &mut Option<Events>) -> Changed {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}
