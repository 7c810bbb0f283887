//! The next agent's part: takes what the one that runs offers, and tells it when it may leave.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use nerve::registrar;
use synapse::memory;
use synapse::watch::Recalled;

use super::door::knock_at;
use super::memfd;
use super::message::{Hello, Message, PROTOCOL, Prepared};
use super::wire::Wire;
use super::{ANSWER_WITHIN, Error, store_of};
use crate::api::TookOver;
use crate::config::Config;
use crate::inherited::Inherited;

/// A change of process that has begun.
#[derive(Debug)]
pub(in crate::agent) struct Taking {
    wire: Wire,
    before: Hello,
}

/// What the agent before left for the rooms that write.
#[derive(Debug, Default)]
pub(in crate::agent) struct Left {
    pub(in crate::agent) registrar: Option<registrar::Carried>,
    pub(in crate::agent) store: Option<Vec<u8>>,
}

impl Taking {
    /// Begins to take over from the agent that runs with this configuration's state directory: its sockets are added to
    /// `inherited`, and its catalog is recalled. `None` where no agent runs.
    ///
    /// # Errors
    /// It refuses or fails, and goes on as if nothing had happened.
    pub(in crate::agent) async fn begin(
        config: &Config,
        inherited: &Inherited,
    ) -> anyhow::Result<Option<(Self, Option<Recalled>)>> {
        let knocked = knock_at(&config.state_dir).await;
        let wire = knocked.with_context(|| {
            format!(
                "take over from the agent of the state directory {}: it cannot be reached; run this as the same user or as \
                 root, or stop that agent first",
                config.state_dir.display()
            )
        })?;
        let Some(mut wire) = wire else {
            tracing::info!(state_dir = %config.state_dir.display(), "there is no agent to take over from");
            return Ok(None);
        };
        let begun = async {
            wire.check_peer()?;
            let before = introduce(&mut wire, config).await?;
            let recalled = offered(&mut wire, inherited).await?;
            Ok::<_, Error>((before, recalled))
        };
        let (before, recalled) = begun.await.with_context(goes_on)?;
        tracing::info!(pid = before.pid, version = before.version, "taking over");
        Ok(Some((Self { wire, before }, recalled)))
    }

    /// Asks the agent before to write no more, and for what is needed to write instead of it.
    ///
    /// # Errors
    /// It could not stop, and goes on.
    pub(in crate::agent) async fn prepare(&mut self) -> anyhow::Result<Left> {
        self.prepared().await.with_context(goes_on)
    }

    async fn prepared(&mut self) -> Result<Left, Error> {
        self.wire.send(&Message::Prepare, &[], ANSWER_WITHIN).await?;
        let (message, descriptors) = self.wire.receive("that it writes no more", 2 * ANSWER_WITHIN).await?;
        let Message::Prepared(Prepared { documents }) = message else { return Err(unexpected(&message)) };
        let mut left = Left::default();
        for (document, descriptor) in documents.iter().zip(descriptors) {
            let text = memfd::read(descriptor).await?;
            match document.as_str() {
                "registrar" => {
                    let carried = serde_json::from_slice(&text)
                        .map_err(|error| Error::NotUnderstood(format!("its registrar: {error}")))?;
                    left.registrar = Some(carried);
                }
                "store" => left.store = Some(text),
                later => tracing::debug!(document = later, "what a later version hands over is left out"),
            }
        }
        Ok(left)
    }

    /// Tells the agent before that this one serves: it leaves.
    ///
    /// # Errors
    /// It has changed its mind meanwhile, and goes on.
    pub(in crate::agent) async fn serving(mut self) -> anyhow::Result<TookOver> {
        let said = async {
            self.wire.send(&Message::Serving, &[], ANSWER_WITHIN).await?;
            self.wire.receive("that it leaves", ANSWER_WITHIN).await
        };
        match said.await {
            Ok((Message::Leaving, _)) => {}
            Err(error @ Error::Refused(_)) => return Err(error).with_context(goes_on),
            // It is gone, or hangs: the node needs an agent, and this one serves.
            other => {
                tracing::warn!(pid = self.before.pid, ?other, "the agent before does not say that it leaves")
            }
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(TookOver { pid: self.before.pid, version: self.before.version, at_unix_seconds: at })
    }
}

/// Refuses to run beside another agent of the same state directory. One that was killed while it started a program is still there for a
/// moment, in the child that has not become that program yet.
///
/// # Errors
/// There is one.
pub(in crate::agent) async fn be_alone(state_dir: &Path) -> anyhow::Result<()> {
    /// What is a child's end alone is gone within this.
    const GONE_WITHIN: Duration = Duration::from_secs(1);
    const PAUSE: Duration = Duration::from_millis(50);
    let begun = Instant::now();
    while let Ok(Some(_)) = knock_at(state_dir).await {
        if begun.elapsed() < GONE_WITHIN {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        anyhow::bail!(
            "another agent runs with the state directory {}; `plexus agent --config FILE --take-over` replaces it without \
             dropping a connection; a second agent on this host needs another `state_dir`",
            state_dir.display()
        );
    }
    Ok(())
}

async fn introduce(wire: &mut Wire, config: &Config) -> Result<Hello, Error> {
    let hello = Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        node: config.node.name.to_string(),
        store: store_of(config),
    };
    wire.send(&Message::Hello(hello), &[], ANSWER_WITHIN).await?;
    match wire.receive("its name and version", ANSWER_WITHIN).await? {
        (Message::Hello(before), _) if before.protocol == PROTOCOL => Ok(before),
        (Message::Hello(before), _) => Err(Error::NotUnderstood(format!(
            "it is version {} and speaks protocol {}, this one {PROTOCOL}",
            before.version, before.protocol
        ))),
        (other, _) => Err(unexpected(&other)),
    }
}

async fn offered(wire: &mut Wire, inherited: &Inherited) -> Result<Option<Recalled>, Error> {
    let (mut recalled, mut sockets) = (None, 0);
    loop {
        match wire.receive("its sockets", ANSWER_WITHIN).await? {
            (Message::Sockets(described), descriptors) => {
                let lent = described.sockets.iter().map(|socket| socket.lent).chain(std::iter::repeat(false));
                for (descriptor, is_lent) in descriptors.into_iter().zip(lent) {
                    match inherited.add(descriptor) {
                        Ok(key) => {
                            sockets += 1;
                            if is_lent {
                                inherited.lend(key);
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a descriptor of the agent before is not of use")
                        }
                    }
                }
            }
            (Message::Catalog, mut descriptors) => recalled = recall(descriptors.pop()).await,
            (Message::Offered, _) => break,
            (other, _) => return Err(unexpected(&other)),
        }
    }
    tracing::info!(sockets, catalog = recalled.is_some(), "the agent before offers");
    Ok(recalled)
}

/// A catalog that cannot be read is no reason not to take over: the one on disk is as good, and the store corrects both.
async fn recall(descriptor: Option<OwnedFd>) -> Option<Recalled> {
    let mut file = File::from(descriptor?);
    let recalled = memfd::in_background(move || memory::recall_from(&mut file)).await;
    recalled
        .inspect_err(|error| tracing::warn!(%error, "the catalog of the agent before cannot be read; that of the disk is used"))
        .ok()
}

pub(super) fn unexpected(message: &Message) -> Error {
    Error::NotUnderstood(format!("it says {message:?} where something else was to be said"))
}

fn goes_on() -> String {
    "take over from the agent that runs: it goes on as if nothing had happened".to_owned()
}
