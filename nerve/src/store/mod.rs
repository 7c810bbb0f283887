//! The key-value store that the fleet shares, behind one trait.
//!
//! Data model: a flat map from [`Path`] to bytes. Each entry is *leased* (it dies with the [`Session`] it was written
//! under) or *durable*, and carries the revision of its last change. Revisions grow over the whole store.
//!
//! A [`Watch`] yields a whole snapshot first, then changes in order; wherever it may have missed something it yields a
//! whole snapshot again. A consumer therefore never asks what it missed.
//!
//! What no backend does: hand out its client library's types, block a caller for longer than its request timeout, or
//! retry a write that may have been applied.
//!
//! Every backend passes the same battery, `contract.rs`, and each that is a server the one of `outages.rs`; a new one adds an instantiation of it and a scheme in `url.rs`.

mod backoff;
mod config;
mod embedded;
mod etcd;
mod key;
mod members;
mod metrics;
mod open;
#[cfg(test)]
mod outages;
mod session;
mod url;
mod zookeeper;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod gate;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use backoff::{Backoff, random_part};
pub use config::{DEFAULT_PREFIX, DEFAULT_REQUEST_TIMEOUT, OpenError, StoreConfig};
pub use embedded::EmbeddedStore;
pub use etcd::EtcdStore;
#[cfg(test)]
pub(crate) use etcd::TestCluster;
pub use key::{EnrolmentKey, Key, Path, PathError};
pub use metrics::Metrics;
pub use open::{open, open_inherited};
pub use session::{Session, SessionKeeper, SessionLost};
pub use url::{Endpoint, StoreUrl, UrlError};
pub use zookeeper::ZooKeeperStore;

/// The largest value that any backend takes, in bytes. etcd refuses requests of 1.5 MiB; ours are a few hundred bytes.
pub const MAX_VALUE_BYTES: usize = 512 * 1024;

/// How many events a watch holds back for a consumer that is slow; beyond it, the backend waits.
pub const WATCH_QUEUE: usize = 64;

/// A point in the history of the whole store. Later is larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// One key with its value, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands, below the store's prefix.
    pub path: Path,
    /// What stands there.
    pub value: Vec<u8>,
    /// When it was last changed: what a compare-and-swap compares.
    pub revision: Revision,
}

/// All entries below a directory at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// In ascending order of their paths.
    pub entries: Vec<Entry>,
    /// The revision of the store at which the listing was true.
    pub revision: Revision,
}

/// What a compare-and-swap expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Absent,
    /// An entry last changed at this revision.
    Unchanged(Revision),
}

/// How a compare-and-swap ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// It found what it expected and wrote at this revision.
    Done(Revision),
    /// It found something else and wrote nothing.
    Conflict(Option<Entry>),
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was created or overwritten.
    Put(Entry),
    /// It was deleted, or its lease ended.
    Delete(Path),
}

/// Why a watch yields a whole snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotCause {
    /// It is the first.
    First,
    /// The store was out of reach, or compacted what would have been needed to resume.
    Resync,
    /// The store went back in time or became another one: its data was wiped, or restored from a backup.
    /// What is missing from this snapshot was not deleted by anyone.
    Reset,
}

/// What a watch yields.
#[derive(Debug)]
pub enum WatchEvent {
    /// The whole truth below the watched directory.
    Snapshot {
        /// In ascending order of their paths.
        entries: Vec<Entry>,
        /// The revision at which it was true.
        revision: Revision,
        /// Why it comes.
        cause: SnapshotCause,
    },
    /// What changed since, in order; never empty.
    Changes(Vec<Change>),
    /// The store is out of reach. What was yielded is the last known good; `Resumed` or `Snapshot` follows.
    Disconnected(Error),
    /// Back within reach without having missed anything.
    Resumed,
    /// It was asked and has not answered for a moment. `Stalled` or `Disconnected` follows, or it goes on as if nothing had been.
    Silent,
    /// For so long nothing was heard of it; now it goes on, or `Disconnected` follows. Sessions may have ended because it did not hear
    /// those either who renew them.
    Stalled(std::time::Duration),
}

/// A stream of [`WatchEvent`]s that reconnects by itself and ends with its store only.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<WatchEvent>,
}

impl Watch {
    /// A watch fed by the other end of `events`; for backends.
    #[must_use]
    pub fn new(events: mpsc::Receiver<WatchEvent>) -> Self {
        Self { events }
    }

    /// The next event, or `None` when the store was shut down. Cancel-safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }
}

/// What went wrong, from the caller's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No answer: refused, timed out, no leader. Retry after a pause.
    Unavailable,
    /// The session that the write was to be under is gone. Open another.
    SessionLost,
    /// The store refuses this user. Retrying helps only after an operator's change.
    Denied,
    /// The request itself is wrong (too large, not representable). Never retry.
    Invalid,
    /// The store's own data cannot be read.
    Corrupt,
}

/// A failed call. It answers: was it perhaps applied, is the session gone, does retrying help.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} {target} at {store}: {reason}")]
pub struct Error {
    /// `get`, `put`, `watch`, …
    pub operation: &'static str,
    /// The path or session that it was about.
    pub target: String,
    /// The endpoint asked, as in the store's URL.
    pub store: String,
    /// What kind of failure.
    pub kind: ErrorKind,
    /// A write may have been applied although it failed (no answer came).
    pub may_have_applied: bool,
    /// Why, and what to do.
    pub reason: String,
    /// The library's error underneath.
    #[source]
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// May the same call succeed later without anyone changing anything?
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::SessionLost)
    }
}

/// The result of a store call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why such a write is refused without asking any server.
fn refused(value: Option<&[u8]>, session: Option<&Session>) -> Option<(ErrorKind, String)> {
    if let Some(bytes) = value.map(<[u8]>::len).filter(|bytes| *bytes > MAX_VALUE_BYTES) {
        let reason = format!("the value has {bytes} bytes and {MAX_VALUE_BYTES} are allowed; store less");
        return Some((ErrorKind::Invalid, reason));
    }
    let lost = session.filter(|session| !session.is_alive())?;
    Some((ErrorKind::SessionLost, format!("session {:x} is lost; open another", lost.id())))
}

/// The store. Every call returns within the backend's request timeout; a listing of many pages may take it per page.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The URL of the store, without credentials, for logs and messages.
    fn url(&self) -> &str;

    /// Reads one entry.
    async fn get(&self, path: &Path) -> Result<Option<Entry>>;

    /// Reads every entry below `directory`.
    async fn list(&self, directory: &Path) -> Result<Listing>;

    /// Writes one entry, whatever stood there; under `session`, or durable. An entry that was leased under another
    /// session belongs to the new one afterwards.
    async fn put(&self, path: &Path, value: Vec<u8>, session: Option<&Session>) -> Result<Revision>;

    /// Deletes one entry; tells whether there was one.
    async fn delete(&self, path: &Path) -> Result<bool>;

    /// Writes (`Some`) or deletes (`None`) one entry if it is as expected, in one step.
    async fn compare_and_swap(
        &self,
        path: &Path,
        expect: Expect,
        value: Option<Vec<u8>>,
        session: Option<&Session>,
    ) -> Result<Swap>;

    /// Opens a session that is kept alive until it is closed, dropped or lost. `ttl` is how long the store remembers
    /// a writer that has fallen silent; backends may round it up.
    async fn open_session(&self, ttl: std::time::Duration) -> Result<Session>;

    /// Goes on with a session that another process opened with this `ttl` and has stopped renewing, or is about to.
    /// Nothing under it changes. [`ErrorKind::SessionLost`] when it has ended meanwhile.
    async fn adopt_session(&self, id: u64, ttl: std::time::Duration) -> Result<Session>;

    /// Ends a session: every entry under it is deleted now.
    async fn close_session(&self, session: Session) -> Result<()>;

    /// Watches every entry below `directory`.
    fn watch(&self, directory: &Path) -> Watch;

    /// Changes nothing from now on and lets go of what only one process may hold (a file); writes that are made meanwhile
    /// are refused as [`ErrorKind::Unavailable`]. Returns what [`open_inherited`] needs in the process that goes on; `None`
    /// for a store that lives outside of both.
    async fn hand_over(&self) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Ends [`Store::hand_over`]: nobody else went on, this process does.
    async fn take_back(&self) -> Result<()> {
        Ok(())
    }

    /// Ends watches and background work. Calls made later fail with [`ErrorKind::Unavailable`].
    async fn shutdown(&self);
}
