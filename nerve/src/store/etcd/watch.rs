//! One watch: a snapshot, then changes, resumed by revision for as long as the history allows.
//!
//! The library ends a watch with its stream, and a stream to a frozen or cut-off member does not even end. So the
//! watch asks the member for its progress every second and leaves one that keeps silent. Before every stream it makes a
//! linearizable read on the same client: that renews an expired token, which watches do not do by themselves, and shows
//! whether the store still tells the same history. Progress needs etcd 3.4.
//!
//! A manually requested progress answer may overtake events that are under way (etcd issue 15220), so that its revision
//! is never a point to resume from.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Event, EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::call::{Failed, History, Shared, unsigned};
use super::failure::{Failure, Next};
use super::listing::end_of;
use super::pool::Member;
use crate::store::backoff::Backoff;
use crate::store::{Change, Error, ErrorKind, Path, Revision, SnapshotCause, WatchEvent};

/// How often silence is looked at.
const TICK: Duration = Duration::from_millis(500);
/// After so much silence the member is asked for its progress.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// After so much silence, of which it was asked for a tick, it is called silent.
const SILENT_AFTER: Duration = Duration::from_millis(1500);
/// A member that answers is never silent for so long.
pub(super) const STALL: Duration = Duration::from_secs(2);
/// After so much silence the member is left.
const LEAVE_AFTER: Duration = Duration::from_millis(2500);
/// How long a member may take to answer the read and to set up the watch.
const SETUP_TIMEOUT: Duration = Duration::from_secs(1);
/// The most that etcd may send at a time. What is larger is answered by a new snapshot, which is read in pages.
const BATCH_BYTES: usize = 64 * 1024 * 1024;

/// Not an etcd watch id: the answer to a progress request concerns the whole stream.
const WHOLE_STREAM: i64 = -1;

/// Why following the store ended.
enum End {
    /// Nobody listens any more.
    Unwanted,
    /// The store is out of reach.
    Failed(Error),
}

/// What a watch knows.
struct Position {
    /// The point up to which everything was yielded.
    history: Option<History>,
    /// A snapshot is due.
    due: Option<SnapshotCause>,
    /// The consumer was told that the store is out of reach.
    told: bool,
}

/// What is followed, and by whom.
struct Feed {
    shared: Arc<Shared>,
    directory: Path,
    events: mpsc::Sender<WatchEvent>,
    position: Position,
}

impl Shared {
    /// Feeds a watch until nobody listens.
    pub(super) async fn feed(self: Arc<Self>, directory: Path, events: mpsc::Sender<WatchEvent>) {
        let position = Position { history: None, due: Some(SnapshotCause::First), told: false };
        let mut feed = Feed { shared: self, directory, events, position };
        let listener = feed.events.clone();
        tokio::select! {
            () = listener.closed() => {}
            () = feed.run() => {}
        }
    }
}

impl Feed {
    async fn run(&mut self) {
        let mut backoff = Backoff::new();
        loop {
            let started = Instant::now();
            let End::Failed(error) = self.follow().await else { return };
            if started.elapsed() > Duration::from_secs(5) {
                backoff = Backoff::new();
            }
            if !self.position.told {
                self.position.told = true;
                self.shared.metrics.disconnected();
                tracing::warn!(directory = %self.directory, %error, "a watch lost the store; the last known good is kept");
                if self.events.send(WatchEvent::Disconnected(error)).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Once around: snapshot if one is due, the read, the stream until it breaks.
    async fn follow(&mut self) -> End {
        if self.position.due.is_some()
            && let Err(end) = self.snapshot().await
        {
            return end;
        }
        let Some(seen) = self.position.history else { return self.again("no snapshot was taken") };
        let (client, member, now) = match self.read().await {
            Ok(read) => read,
            Err(failed) => return End::Failed(self.shared.error("watch", self.directory.as_str(), failed)),
        };
        if !seen.continues_in(&now) {
            self.position.due = Some(SnapshotCause::Reset);
            return self.again("the store went back in time or became another one");
        }
        let from = seen.revision;
        if now.revision > from && self.is_compacted(client.clone(), from + 1).await {
            self.position.due = Some(SnapshotCause::Resync);
            return self.again("what happened in the meantime is compacted");
        }
        // The history goes on from here under a new term perhaps; what was yielded reaches as far as before.
        self.position.history = Some(now.at(from));
        let stream = match tokio::time::timeout(SETUP_TIMEOUT, self.open(client, from + 1)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(failure)) => return self.broken(member, failure),
            Err(_) => return self.broken(member, Failure::timeout(SETUP_TIMEOUT)),
        };
        match self.pump(stream, now).await {
            Ok(()) => End::Unwanted,
            Err(failure) => self.broken(member, failure),
        }
    }

    async fn snapshot(&mut self) -> Result<(), End> {
        let (entries, now) = self.shared.listing("snapshot", &self.directory).await.map_err(End::Failed)?;
        let cause = match (self.position.history, self.position.due) {
            (Some(seen), _) if !seen.continues_in(&now) => SnapshotCause::Reset,
            (_, due) => due.unwrap_or(SnapshotCause::Resync),
        };
        let revision = Revision(now.revision);
        self.position = Position { history: Some(now), due: None, told: false };
        self.shared.metrics.snapshot(cause);
        tracing::info!(directory = %self.directory, ?cause, entries = entries.len(), "a watch took a snapshot");
        self.yields(WatchEvent::Snapshot { entries, revision, cause }).await
    }

    /// The linearizable read: a client that is fit to watch with, and where the store's history is.
    async fn read(&self) -> Result<(Client, Member, History), Failed> {
        let prefix = self.shared.directory(&self.directory);
        let options = GetOptions::new().with_range(end_of(&prefix)).with_limit(1).with_keys_only();
        let read = |mut client: Client| {
            let (prefix, options) = (prefix.clone(), options.clone());
            async move {
                let answer = client.get(prefix, Some(options)).await?;
                Ok((client, History::of(answer.header())))
            }
        };
        let ((client, now), member) = self.shared.attempt(SETUP_TIMEOUT, &read).await?;
        Ok((client, member, now))
    }

    /// Can the history not be read from `revision` on? etcd says so of a watch as well, but only after confirming it;
    /// then `Resumed` would be a lie. Any other answer is left to the watch.
    async fn is_compacted(&self, mut client: Client, revision: u64) -> bool {
        let options = GetOptions::new().with_revision(i64::try_from(revision).unwrap_or(i64::MAX));
        let read = client.get(self.shared.directory(&self.directory), Some(options));
        match tokio::time::timeout(SETUP_TIMEOUT, read).await {
            Ok(Err(error)) => Failure::of(error).next == Next::StartAnew,
            _ => false,
        }
    }

    async fn open(&self, client: Client, from: u64) -> Result<WatchStream, Failure> {
        let prefix = self.shared.directory(&self.directory);
        let options = WatchOptions::new()
            .with_range(end_of(&prefix))
            .with_start_revision(i64::try_from(from).unwrap_or(i64::MAX))
            .with_progress_notify();
        let mut client = client.watch_client().max_decoding_message_size(BATCH_BYTES);
        client.watch(prefix, Some(options)).await.map_err(Failure::of)
    }

    /// Yields what the stream brings until it breaks, or until nobody listens.
    async fn pump(&mut self, mut stream: WatchStream, now: History) -> Result<(), Failure> {
        let (mut heard, mut told_silent) = (Instant::now(), false);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let response = tokio::select! {
                response = stream.message() => match response {
                    Ok(Some(response)) => response,
                    Ok(None) => return Err(unavailable("etcd closed the watch")),
                    Err(error) => return Err(self.broken_by(error)),
                },
                _ = tick.tick() => {
                    let silence = heard.elapsed();
                    if silence >= LEAVE_AFTER {
                        if self.yields(WatchEvent::Stalled(silence)).await.is_err() {
                            return Ok(());
                        }
                        return Err(Failure::timeout(silence));
                    }
                    if silence >= SILENT_AFTER && !std::mem::replace(&mut told_silent, true)
                        && self.yields(WatchEvent::Silent).await.is_err()
                    {
                        return Ok(());
                    }
                    if silence >= ASK_AFTER {
                        stream.request_progress().await.map_err(Failure::of)?;
                    }
                    continue;
                }
            };
            let silence = heard.elapsed();
            if silence >= STALL && self.yields(WatchEvent::Stalled(silence)).await.is_err() {
                return Ok(());
            }
            if !self.take(&response, &now).await? {
                return Ok(());
            }
            // Counted from here: a consumer that let us wait is no silence of the store's.
            (heard, told_silent) = (Instant::now(), false);
        }
    }

    /// Yields what `response` tells; false when nobody listens.
    async fn take(&mut self, response: &WatchResponse, now: &History) -> Result<bool, Failure> {
        let header = History::of(response.header());
        if response.canceled() {
            return Err(self.refused(response));
        }
        if !header.is_of(now) {
            self.position.due = Some(SnapshotCause::Reset);
            return Err(unavailable("the answer came from another cluster"));
        }
        if response.created() && self.position.told {
            self.position.told = false;
            tracing::info!(directory = %self.directory, "a watch is back at the store");
            if self.yields(WatchEvent::Resumed).await.is_err() {
                return Ok(false);
            }
        }
        let changes: Vec<_> = response.events().iter().filter_map(|event| self.change(event)).collect();
        if !changes.is_empty() && self.yields(WatchEvent::Changes(changes)).await.is_err() {
            return Ok(false);
        }
        let reached = match response.events().last().and_then(Event::kv) {
            Some(last) => unsigned(last.mod_revision()),
            None if response.watch_id() != WHOLE_STREAM && !response.created() => header.revision,
            None => 0,
        };
        if let Some(history) = &mut self.position.history {
            history.revision = history.revision.max(reached);
        }
        Ok(true)
    }

    fn change(&self, event: &Event) -> Option<Change> {
        let read = event.kv()?;
        match event.event_type() {
            EventType::Put => self.shared.entry(read.clone()).map(Change::Put),
            EventType::Delete => self.shared.path(read.key()).map(Change::Delete),
        }
    }

    /// etcd ended the watch, and says why, in a way.
    fn refused(&mut self, response: &WatchResponse) -> Failure {
        if response.compact_revision() > 0 {
            self.position.due = Some(SnapshotCause::Resync);
            return unavailable("what happened in the meantime is compacted");
        }
        match response.cancel_reason() {
            "" => unavailable("etcd refused the watch without a reason; it may be the user's expired token"),
            reason if reason.contains("permission denied") => {
                let reason =
                    format!("{reason}; grant the user a role that may read below the store's prefix");
                Failure::new(ErrorKind::Denied, Next::GiveUp, reason)
            }
            reason => unavailable(reason),
        }
    }

    fn broken_by(&mut self, error: etcd_client::Error) -> Failure {
        let failure = Failure::of(error);
        if matches!(failure.next, Next::AskForLess | Next::StartAnew) {
            self.position.due = Some(SnapshotCause::Resync);
        }
        failure
    }

    /// The stream broke on `member`. Calls are better made elsewhere too, if it was the member's fault.
    fn broken(&self, member: Member, failure: Failure) -> End {
        if matches!(failure.next, Next::AskAnother | Next::Wait) && self.position.due.is_none() {
            self.shared.pool.failed(member.index, Some(member), &failure.reason);
        }
        let endpoint = self.shared.pool.name(member.index);
        End::Failed(self.shared.error("watch", self.directory.as_str(), Failed { failure, endpoint }))
    }

    fn again(&self, reason: &str) -> End {
        let failed = Failed { failure: unavailable(reason), endpoint: self.shared.url.clone() };
        End::Failed(self.shared.error("watch", self.directory.as_str(), failed))
    }

    async fn yields(&self, event: WatchEvent) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Unwanted)
    }
}

fn unavailable(reason: &str) -> Failure {
    Failure::new(ErrorKind::Unavailable, Next::AskAnother, reason)
}
