//! What another process needs to go on with this store: everything in memory, as JSON.
//!
//! With a file only the leased entries count, the durable ones are in it. Unknown fields are ignored and another format is
//! refused, since the two processes may be of different versions.

use serde::{Deserialize, Serialize};

use crate::store::{Entry, Path, Revision};

const FORMAT: u32 = 1;

/// The state of a store at the moment it was handed over.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Image {
    format: u32,
    pub(super) revision: u64,
    pub(super) last_lease: u64,
    /// Every lease, also those under which nothing stands.
    pub(super) leases: Vec<u64>,
    pub(super) entries: Vec<Imaged>,
}

/// One entry.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Imaged {
    pub(super) path: String,
    pub(super) value: Vec<u8>,
    pub(super) revision: u64,
    #[serde(default)]
    pub(super) lease: Option<u64>,
}

impl Image {
    pub(super) fn new(revision: Revision, last_lease: u64, leases: Vec<u64>, entries: Vec<Imaged>) -> Self {
        Self { format: FORMAT, revision: revision.0, last_lease, leases, entries }
    }

    /// The image in `text`, or why it cannot be used.
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        let image: Self = serde_json::from_slice(text).map_err(|error| {
            format!("what the process before this one handed over cannot be read: {error}")
        })?;
        match image.format {
            FORMAT => Ok(image),
            format => Err(format!(
                "the process before this one handed it over in format {format}, this version reads {FORMAT}"
            )),
        }
    }

    pub(super) fn written(&self) -> Vec<u8> {
        // Numbers and text only: there is nothing in it that JSON cannot say.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Imaged {
    pub(super) fn entry(self) -> Result<(Entry, Option<u64>), String> {
        let path = Path::new(&self.path)
            .map_err(|error| format!("what was handed over has a key that is none: {error}"))?;
        Ok((Entry { path, value: self.value, revision: Revision(self.revision) }, self.lease))
    }
}
