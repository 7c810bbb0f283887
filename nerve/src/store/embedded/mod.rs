//! The store in this process: for one node, for tests, and for a whole fleet inside one process.
//!
//! It keeps etcd's promises: one revision order over everything, leases, compare-and-swap, watches with a bounded
//! history. All reads are from memory. With a file, durable entries and the reach of the revision counter survive a
//! restart; leased ones do not, for their writers restarted too. A durable write is on disk before anyone, its caller
//! or a watcher, sees it; it is committed on the blocking pool, so that a slow disk delays writes and nothing else.
//!
//! A session is alive for as long as its value is: its writer is in this very process and cannot fall silent
//! otherwise. A dropped one ends after its TTL, as if the writer had been killed.
//!
//! Only one process has the state. It is handed over whole: this one refuses writes, closes the file and gives away an
//! image of its memory; until the other one says that it has it, this one can take everything back.

mod file;
mod image;
mod state;

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::file::File;
use self::image::Image;
use self::state::{CatchUp, Mutation, NoSuchLease, Outcome, State};
use super::{
    Entry, Error, ErrorKind, Expect, Listing, Metrics, OpenError, Path, Result, Revision, Session,
    SessionKeeper, SnapshotCause, Store, Swap, WATCH_QUEUE, Watch, WatchEvent,
};
use crate::tasks::Tasks;

/// How long the sessions of the process before this one may take to be adopted before their time to live begins to run.
const ADOPT_WITHIN: Duration = Duration::from_secs(30);

/// The in-process store. Clones of the `Arc` share it.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    tasks: Tasks,
}

struct Shared {
    url: String,
    timeout: Duration,
    metrics: Metrics,
    path: Option<PathBuf>,
    state: Mutex<State>,
    /// With a file, the right to change anything: held from planning to applying. `None` inside after shutdown.
    file: Option<Arc<tokio::sync::Mutex<Option<File>>>>,
    /// Tells watches that the revision moved.
    moved: watch::Sender<Revision>,
}

impl EmbeddedStore {
    /// Opens the store; with `file`, reads all of it.
    pub fn open(
        file: Option<&FilePath>,
        timeout: Duration,
        metrics: Metrics,
    ) -> std::result::Result<Self, OpenError> {
        Self::open_inherited(file, timeout, metrics, None)
    }

    /// The same with what [`Store::hand_over`] of the process before this one returned.
    pub fn open_inherited(
        path: Option<&FilePath>,
        timeout: Duration,
        metrics: Metrics,
        inherited: Option<&[u8]>,
    ) -> std::result::Result<Self, OpenError> {
        let url = path.map_or("embedded".to_owned(), |path| format!("embedded:{}", path.display()));
        // Before the file is touched: what cannot be read is found out while the other process can still go on.
        let unusable = |reason| OpenError::Database { file: url.clone(), reason, source: None };
        let image = inherited.map(Image::read).transpose().map_err(unusable)?;
        let (file, on_disk) = match path.map(File::open).transpose()? {
            Some((file, entries, revision)) => (Some(file), Some((entries, revision))),
            None => (None, None),
        };
        let state = State::begin(on_disk, image).map_err(unusable)?;
        let abandoned = state.abandoned();
        let moved = watch::Sender::new(state.revision());
        let file = file.map(|file| Arc::new(tokio::sync::Mutex::new(Some(file))));
        let path = path.map(FilePath::to_owned);
        let shared = Arc::new(Shared { url, timeout, metrics, path, state: Mutex::new(state), file, moved });
        let store = Self { shared, tasks: Tasks::new() };
        for lease in abandoned {
            store.tasks.spawn_while_wanted(
                "embedded session",
                Arc::clone(&store.shared).expire(lease, ADOPT_WITHIN),
            );
        }
        Ok(store)
    }

    fn session(&self, lease: u64, ttl: Duration) -> Session {
        let (session, keeper) = Session::new(lease, ttl);
        self.tasks
            .spawn_while_wanted("embedded session", Arc::clone(&self.shared).outlive(lease, ttl, keeper));
        session
    }

    async fn mutate(&self, operation: &'static str, target: &str, mutation: Mutation) -> Result<Outcome> {
        let started = Instant::now();
        let result = match self.check_open(operation, target) {
            Ok(()) => self.shared.mutate(operation, target, mutation).await,
            Err(error) => Err(error),
        };
        self.shared.metrics.observe(operation, started.elapsed(), &result);
        result
    }

    fn check_open(&self, operation: &'static str, target: &str) -> Result<()> {
        if self.tasks.stop_token().is_cancelled() {
            let reason = "the store was shut down".to_owned();
            return Err(self.shared.error(operation, target, ErrorKind::Unavailable, reason));
        }
        Ok(())
    }

    fn check_value(&self, operation: &'static str, path: &Path, value: Option<&[u8]>) -> Result<()> {
        let refusal = |(kind, reason)| Err(self.shared.error(operation, path.as_str(), kind, reason));
        super::refused(value, None).map_or(Ok(()), refusal)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; were it so, every step leaves a state that can be read.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, operation: &'static str, target: &str, kind: ErrorKind, reason: String) -> Error {
        let target = target.to_owned();
        Error {
            operation,
            target,
            store: self.url.clone(),
            kind,
            may_have_applied: false,
            reason,
            source: None,
        }
    }

    async fn mutate(
        self: &Arc<Self>,
        operation: &'static str,
        target: &str,
        mutation: Mutation,
    ) -> Result<Outcome> {
        let unavailable = |reason: String, may_have_applied| Error {
            may_have_applied,
            ..self.error(operation, target, ErrorKind::Unavailable, reason)
        };
        let lost = |NoSuchLease(lease)| {
            let reason = format!("session {lease} has ended; open another");
            self.error(operation, target, ErrorKind::SessionLost, reason)
        };
        let elsewhere = || unavailable("another process goes on with it; ask that one".to_owned(), false);
        let Some(file) = &self.file else {
            let mut state = self.state();
            if state.is_handed_over() {
                return Err(elsewhere());
            }
            let plan = state.plan(mutation).map_err(lost)?;
            let outcome = state.apply(plan);
            self.announce(&state);
            return Ok(outcome);
        };
        let deadline = Instant::now() + self.timeout;
        let mut file = tokio::time::timeout_at(deadline, Arc::clone(file).lock_owned())
            .await
            .map_err(|_| unavailable("earlier writes wait for the disk; check it".to_owned(), false))?;
        let plan = {
            let state = self.state();
            if state.is_handed_over() {
                return Err(elsewhere());
            }
            state.plan(mutation).map_err(lost)?
        };
        if file.as_ref().is_some_and(|file| !file.concerns(&plan)) {
            let mut state = self.state();
            let outcome = state.apply(plan);
            self.announce(&state);
            return Ok(outcome);
        }
        let shared = Arc::clone(self);
        // From here on the caller may go away: what was begun is finished on the blocking pool, which holds the lock.
        let commit = tokio::task::spawn_blocking(move || {
            let Some(file) = file.as_mut() else { return Ok(None) };
            file.commit(&plan)?;
            let mut state = shared.state();
            let outcome = state.apply(plan);
            shared.announce(&state);
            Ok::<_, redb::Error>(Some(outcome))
        });
        match tokio::time::timeout_at(deadline, commit).await {
            Ok(Ok(Ok(Some(outcome)))) => Ok(outcome),
            Ok(Ok(Ok(None))) => Err(unavailable("the store was shut down".to_owned(), false)),
            Ok(Ok(Err(error))) => {
                let kind = match error {
                    redb::Error::Corrupted(_) => ErrorKind::Corrupt,
                    _ => ErrorKind::Unavailable,
                };
                let reason =
                    format!("the file cannot be written ({error}); check the disk and its free space");
                Err(Error { kind, source: Some(Arc::new(error)), ..unavailable(reason, false) })
            }
            Ok(Err(panic)) => Err(unavailable(format!("the write was not finished: {panic}"), true)),
            Err(_) => Err(unavailable("the disk did not answer in time; check it".to_owned(), true)),
        }
    }

    fn announce(&self, state: &State) {
        self.moved.send_if_modified(|moved| std::mem::replace(moved, state.revision()) != state.revision());
    }

    /// Lets a session live until it is dropped, and `ttl` longer.
    async fn outlive(self: Arc<Self>, lease: u64, ttl: Duration, keeper: SessionKeeper) {
        keeper.closed().await;
        self.state().let_go(lease);
        // Closed, or held by whoever adopted it.
        if self.state().is_abandoned(lease) {
            self.expire(lease, ttl).await;
        }
    }

    /// Ends a lease that nobody holds after `pause`.
    async fn expire(self: Arc<Self>, lease: u64, pause: Duration) {
        tokio::time::sleep(pause).await;
        while self.state().is_abandoned(lease) {
            match self.mutate("expire", &lease.to_string(), Mutation::EndLease { lease }).await {
                Ok(_) => {
                    tracing::info!(store = self.url, session = lease, "a session that nobody held has ended");
                    return;
                }
                // It is the other process's.
                Err(_) if self.state().is_handed_over() => {}
                Err(error) => tracing::warn!(%error, "the entries of an ended session stay for now"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Closes the file, or opens it again.
    async fn with_file(&self, open: bool) -> Result<()> {
        let (Some(file), Some(path)) = (&self.file, &self.path) else { return Ok(()) };
        let mut file = Arc::clone(file).lock_owned().await;
        let path = path.clone();
        let done = tokio::task::spawn_blocking(move || {
            *file = None;
            if open {
                *file = Some(File::open(&path)?.0);
            }
            Ok::<_, OpenError>(())
        });
        let failed = |reason: String| self.error("hand over", "", ErrorKind::Unavailable, reason);
        done.await.map_err(|panic| failed(panic.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    async fn feed(self: Arc<Self>, directory: Path, events: mpsc::Sender<WatchEvent>) {
        let mut moved = self.moved.subscribe();
        let mut cause = Some(SnapshotCause::First);
        let mut seen = Revision(0);
        loop {
            let event = if let Some(cause) = cause.take() {
                moved.mark_unchanged();
                let Listing { entries, revision } = self.state().list(&directory);
                self.metrics.snapshot(cause);
                seen = revision;
                Some(WatchEvent::Snapshot { entries, revision, cause })
            } else {
                tokio::select! {
                    () = events.closed() => return,
                    changed = moved.changed() => if changed.is_err() { return },
                }
                let caught_up = self.state().since(seen, &directory);
                match caught_up {
                    CatchUp::TooOld => {
                        cause = Some(SnapshotCause::Resync);
                        None
                    }
                    CatchUp::Changes(changes, revision) => {
                        seen = revision;
                        (!changes.is_empty()).then_some(WatchEvent::Changes(changes))
                    }
                }
            };
            if let Some(event) = event
                && events.send(event).await.is_err()
            {
                return;
            }
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    fn url(&self) -> &str {
        &self.shared.url
    }

    async fn get(&self, path: &Path) -> Result<Option<Entry>> {
        let started = Instant::now();
        let result = self.check_open("get", path.as_str()).map(|()| self.shared.state().get(path));
        self.shared.metrics.observe("get", started.elapsed(), &result);
        result
    }

    async fn list(&self, directory: &Path) -> Result<Listing> {
        let started = Instant::now();
        let result =
            self.check_open("list", directory.as_str()).map(|()| self.shared.state().list(directory));
        self.shared.metrics.observe("list", started.elapsed(), &result);
        result
    }

    async fn put(&self, path: &Path, value: Vec<u8>, session: Option<&Session>) -> Result<Revision> {
        self.check_value("put", path, Some(&value))?;
        let mutation = Mutation::Put { path: path.clone(), value, lease: session.map(Session::id) };
        match self.mutate("put", path.as_str(), mutation).await? {
            Outcome::Done { revision, .. } => Ok(revision),
            // It expected nothing and cannot have been disappointed.
            Outcome::Conflict(found) => {
                Ok(found.map_or_else(|| self.shared.state().revision(), |entry| entry.revision))
            }
        }
    }

    async fn delete(&self, path: &Path) -> Result<bool> {
        let outcome = self.mutate("delete", path.as_str(), Mutation::Delete { path: path.clone() }).await?;
        Ok(matches!(outcome, Outcome::Done { changed: true, .. }))
    }

    async fn compare_and_swap(
        &self,
        path: &Path,
        expect: Expect,
        value: Option<Vec<u8>>,
        session: Option<&Session>,
    ) -> Result<Swap> {
        self.check_value("compare-and-swap", path, value.as_deref())?;
        let mutation = Mutation::Swap { path: path.clone(), expect, value, lease: session.map(Session::id) };
        Ok(match self.mutate("compare-and-swap", path.as_str(), mutation).await? {
            Outcome::Done { revision, .. } => Swap::Done(revision),
            Outcome::Conflict(found) => Swap::Conflict(found),
        })
    }

    async fn open_session(&self, ttl: Duration) -> Result<Session> {
        self.check_open("open session", "")?;
        let lease = self.shared.state().grant();
        Ok(self.session(lease, ttl))
    }

    async fn adopt_session(&self, id: u64, ttl: Duration) -> Result<Session> {
        self.check_open("adopt session", &id.to_string())?;
        if self.shared.state().hold(id) {
            return Ok(self.session(id, ttl));
        }
        let reason = format!("session {id} has ended; open another");
        Err(self.shared.error("adopt session", &id.to_string(), ErrorKind::SessionLost, reason))
    }

    async fn close_session(&self, session: Session) -> Result<()> {
        let lease = session.id();
        self.mutate("close session", &lease.to_string(), Mutation::EndLease { lease }).await?;
        Ok(())
    }

    fn watch(&self, directory: &Path) -> Watch {
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        self.tasks
            .spawn_while_wanted("embedded watch", Arc::clone(&self.shared).feed(directory.clone(), sender));
        Watch::new(receiver)
    }

    async fn hand_over(&self) -> Result<Option<Vec<u8>>> {
        self.check_open("hand over", "")?;
        // A write that is under way holds the file's lock and is finished first.
        let image = {
            let _no_write = match &self.shared.file {
                Some(file) => Some(file.lock().await),
                None => None,
            };
            let mut state = self.shared.state();
            state.set_handed_over(true);
            state.image()
        };
        self.shared.with_file(false).await?;
        Ok(Some(image.written()))
    }

    async fn take_back(&self) -> Result<()> {
        self.shared.with_file(true).await?;
        self.shared.state().set_handed_over(false);
        Ok(())
    }

    async fn shutdown(&self) {
        self.tasks.shutdown().await;
        if let Some(file) = &self.shared.file {
            // Closing the file writes; it waits for a commit that is under way.
            let file = file.lock().await.take();
            if let Err(error) = tokio::task::spawn_blocking(move || drop(file)).await {
                tracing::error!(store = self.shared.url, %error, "the embedded store's file was not closed");
            }
        }
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("url", &self.shared.url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
