//! What agents and containers that end without a word leave behind, put in order.
//!
//! An agent that is killed leaves what it had begun: the next one undoes it before it does anything else. A container that is
//! gone took its link with it: its addresses are given back. A link that is nobody's is removed. All of that needs the right to
//! the directory, which an agent that takes over waits for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::attach::{Attachments, Details, Right};
use super::ledger::{Ledger, LedgerError, Owned, Record};
use super::netlink::{Netlink, with_netlink};

/// How often it is looked whether containers are gone.
const TICK: Duration = Duration::from_secs(5);
/// How often it is asked whether the agent before has let go.
const ASK: Duration = Duration::from_millis(20);
/// After a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// When it is dropped, this agent changes nothing more.
struct GivesUp(Arc<watch::Sender<Right>>);

impl Drop for GivesUp {
    fn drop(&mut self) {
        self.0.send_replace(Right::GivenUp);
    }
}

impl Attachments {
    pub(super) async fn look_after(self) {
        let _gives_up = GivesUp(Arc::clone(&self.right));
        let owned = Arc::new(self.take_over().await);
        self.undo_unfinished().await;
        self.right.send_replace(Right::Ours(owned));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ready = self.ready.clone();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Ok(()) = ready.changed() => {}
            }
            if let Err(error) = self.compare().await {
                tracing::debug!(%error, "containers are looked at again later");
            }
        }
    }

    /// Waits for the right to the directory, and reads what is true from then on.
    async fn take_over(&self) -> Owned {
        let mut is_told = false;
        loop {
            let pause = match self.try_take_over() {
                Ok(Some(owned)) => return owned,
                Ok(None) => ASK,
                Err(error) => {
                    if !is_told {
                        tracing::error!(%error, "nothing can be attached or detached");
                    }
                    is_told = true;
                    PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn try_take_over(&self) -> Result<Option<Owned>, LedgerError> {
        let Some(owned) = Owned::take(&self.directory)? else { return Ok(None) };
        // What cannot be read was told when the agent started.
        let (ledger, _) = Ledger::open(self.directory.to_path_buf())?;
        ledger.remove_unfinished()?;
        *self.ledger() = ledger;
        self.note_changed();
        Ok(Some(owned))
    }

    /// Undoes what an agent that was killed had begun.
    async fn undo_unfinished(&self) {
        for (id, record) in self.records() {
            if record.details.unfinished {
                let _turn = self.turns.wait(&record.details.link).await;
                self.undo(&id, Some(&record.details.link)).await;
                tracing::info!(id, network = %record.network, "undid what an agent that was killed had begun to attach");
            }
        }
    }

    fn records(&self) -> Vec<(String, Record<Details>)> {
        self.ledger().all().map(|(id, record)| (id.clone(), record.clone())).collect()
    }

    /// Gives back what vanished containers had, removes links that are nobody's, and puts the others on their bridges.
    ///
    /// Meanwhile others attach and detach. So whatever is taken away is looked at again when it is its turn.
    async fn compare(&self) -> io::Result<()> {
        with_netlink(async |netlink| {
            let mut links = netlink.container_links().await?;
            for (id, record) in self.records() {
                let Some(link) = links.remove(&record.details.link) else {
                    if record.details.docker.is_some() {
                        continue;
                    }
                    self.forget_if_gone(netlink, &id, &record).await?;
                    continue;
                };
                let bridge = self.ready.borrow().get(&record.network).map(|place| place.bridge);
                if let Some(bridge) = bridge.filter(|bridge| link.bridge != Some(*bridge)) {
                    netlink.enslave(link.index, bridge).await?;
                }
            }
            for name in links.into_keys() {
                let _turn = self.turns.wait(&name).await;
                let is_somebodys = self.ledger().all().any(|(_, record)| record.details.link == name);
                if !is_somebodys {
                    netlink.remove_veth(&name).await?;
                    tracing::info!(link = name, "removed a link of a container that was never attached");
                }
            }
            Ok(())
        })
        .await
    }

    async fn forget_if_gone(&self, netlink: &Netlink, id: &str, record: &Record<Details>) -> io::Result<()> {
        let link = &record.details.link;
        let _turn = self.turns.wait(link).await;
        if self.record(id).as_ref() != Some(record) || netlink.container_link(link).await?.is_some() {
            return Ok(());
        }
        self.ledger().take_back(id).map_err(io::Error::other)?;
        self.note_changed();
        tracing::info!(id, network = %record.network, "a container is gone; its addresses are free");
        Ok(())
    }
}
