//! How far the authority is rotated, as the store has it: every node follows it.
//!
//! It says when to do what, and never whom to believe: that is told by nodes that sign, to those that believe them already. What was
//! dropped stays so for a node that signs, whatever the store says, also over a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nerve::enrolment::rotation::Rotation;
use nerve::model::Fingerprint;
use nerve::store::{Change, EnrolmentKey, Entry, Store, WatchEvent};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::private_file;

/// What a node that signs must not forget.
const FILE: &str = "rotation.json";
/// So many of the authorities that were dropped.
const MOST_DROPPED: usize = 64;

/// The rotation that is gone by, and whom it has dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    rotation: Option<Rotation>,
    #[serde(default)]
    dropped: Vec<Fingerprint>,
}

impl Memory {
    /// What an earlier life has left; nothing where it cannot be read, which is said.
    pub(super) fn recall(directory: &Path) -> Self {
        let read = || -> std::io::Result<Self> {
            match private_file::read(directory, FILE)? {
                Some(text) => Ok(serde_json::from_str(&text)?),
                None => Ok(Self::default()),
            }
        };
        read().unwrap_or_else(|error| {
            let directory = directory.display();
            tracing::error!(%directory, %error, "how far the authority was rotated is not known before the store says it");
            Self::default()
        })
    }

    pub(super) fn rotation(&self) -> Option<Rotation> {
        self.rotation
    }

    /// Was it replaced, or its taking of another one's place taken back?
    pub(super) fn has_dropped(&self, root: Fingerprint) -> bool {
        self.dropped.contains(&root)
    }

    /// Goes by another one. Tells whether that is one that may be gone by, and news.
    pub(super) fn take(&mut self, rotation: Rotation) -> bool {
        if self.rotation == Some(rotation) || !self.may_take(&rotation) {
            return false;
        }
        self.rotation = Some(rotation);
        self.dropped.extend(rotation.dropped());
        let more = self.dropped.len().saturating_sub(MOST_DROPPED);
        self.dropped.drain(..more);
        true
    }

    /// Nobody who was dropped is to be believed again, nor to be dropped once more in another one's favour.
    pub(super) fn may_take(&self, rotation: &Rotation) -> bool {
        let is_known = self.rotation.as_ref() == Some(rotation);
        is_known || !self.has_dropped(rotation.from) && !self.has_dropped(rotation.to)
    }
}

/// Follows the store's word. `directory`: where a node that signs keeps it. Ends with the store.
pub(super) async fn follow(store: Arc<dyn Store>, directory: Option<PathBuf>, course: watch::Sender<Memory>) {
    let mut watch = store.watch(&EnrolmentKey::rotation());
    while let Some(event) = watch.next().await {
        let said = match event {
            WatchEvent::Snapshot { entries, .. } => entries.iter().filter_map(read).next_back(),
            WatchEvent::Changes(changes) => changes
                .iter()
                .filter_map(|change| match change {
                    Change::Put(entry) => read(entry),
                    // What was said holds.
                    Change::Delete(_) => None,
                })
                .next_back(),
            WatchEvent::Disconnected(_)
            | WatchEvent::Resumed
            | WatchEvent::Silent
            | WatchEvent::Stalled(_) => None,
        };
        let Some(rotation) = said else { continue };
        let mut known = course.borrow().clone();
        match &directory {
            Some(directory) => {
                if !known.may_take(&rotation) {
                    tracing::warn!(
                        ?rotation,
                        "the store says to believe an authority again that was dropped: it is not"
                    );
                }
                if !known.take(rotation) {
                    continue;
                }
                if let Err(error) = keep(directory.clone(), known.clone()).await {
                    let directory = directory.display();
                    tracing::error!(%directory, %error, "how far the authority is rotated cannot be kept for the next start");
                }
            }
            // Who signs nothing only asks anew by it.
            None if known.rotation == Some(rotation) => continue,
            None => known = Memory { rotation: Some(rotation), dropped: Vec::new() },
        }
        tracing::info!(from = %rotation.from, to = %rotation.to, phase = %rotation.phase, "rotation of the authority");
        course.send_replace(known);
    }
}

fn read(entry: &Entry) -> Option<Rotation> {
    if EnrolmentKey::parse(&entry.path) != Some(EnrolmentKey::Rotation) {
        return None;
    }
    serde_json::from_slice(&entry.value)
        .inspect_err(|error| tracing::error!(%error, "what the store says of a rotation cannot be read"))
        .ok()
}

async fn keep(directory: PathBuf, known: Memory) -> std::io::Result<()> {
    let text = serde_json::to_string(&known)?;
    let written = tokio::task::spawn_blocking(move || private_file::write(&directory, FILE, &text));
    written.await.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use nerve::enrolment::rotation::Phase;

    use super::*;

    fn root(number: u8) -> Fingerprint {
        Fingerprint([number; 32])
    }

    fn at(from: u8, to: u8, phase: Phase) -> Rotation {
        Rotation { from: root(from), to: root(to), phase }
    }

    #[test]
    fn who_was_dropped_does_not_come_back() {
        let mut memory = Memory::default();
        assert!(memory.take(at(1, 2, Phase::Trust)) && memory.take(at(1, 2, Phase::Renew)));
        assert!(memory.take(at(1, 2, Phase::Done)) && !memory.take(at(1, 2, Phase::Done)));
        for phase in [Phase::Trust, Phase::Renew, Phase::Revert, Phase::Aborted] {
            assert!(!memory.take(at(1, 2, phase)) && !memory.take(at(2, 1, phase)), "{phase}");
        }
        assert!(memory.take(at(2, 3, Phase::Trust)) && memory.take(at(2, 3, Phase::Revert)));
        assert!(memory.take(at(2, 3, Phase::Aborted)) && !memory.take(at(2, 3, Phase::Renew)));
        assert!(memory.take(at(2, 4, Phase::Trust)));
        for number in 10..200 {
            memory.take(at(number, number + 1, Phase::Done));
        }
        assert!(memory.dropped.len() <= MOST_DROPPED);
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Memory>(&text).unwrap(), memory);
    }
}
