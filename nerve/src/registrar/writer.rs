//! Keeps the store equal to the board, under one session a node.
//!
//! A loop over two phases: open a session, then settle what is marked until the session is lost or the agent leaves.
//! After a loss everything is settled anew. Each record has at most one job in flight; what changes meanwhile is settled
//! afterwards, in its newest state. Nothing of an instance is written before the node's own record stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::board::{Board, Target};
use super::pause::{Backoff, shortened};
use super::settle::{Confirmed, Job, Record, Settled, settle};
use super::{Config, LeaveError, Metrics};
use crate::store::{Error, ErrorKind, Session, Store};

/// So many records are in flight at a time.
const IN_FLIGHT: usize = 64;
/// A session that is lost earlier than this was none.
const SHORT_LIVED: Duration = Duration::from_secs(1);

/// When the agent wants to be gone by, and how it went.
#[derive(Debug, Clone)]
pub(super) struct Leaving {
    pub(super) by: watch::Receiver<Option<Instant>>,
    pub(super) done: Arc<watch::Sender<Option<Result<(), LeaveError>>>>,
}

/// The one that writes.
#[derive(Debug)]
pub(super) struct Writer {
    store: Arc<dyn Store>,
    board: Arc<Board>,
    config: Config,
    metrics: Metrics,
    leaving: Leaving,
    backoff: Backoff,
    /// What may stand in the store; with its revision where the present session has confirmed it.
    confirmed: BTreeMap<Target, Option<Confirmed>>,
    /// What is to be settled; `true`: look even if nothing seems amiss.
    queue: BTreeMap<Target, bool>,
}

/// Why a session's phase ended.
enum Ended {
    Lost(String),
    Leave(Instant),
}

type InFlight<'a> = FuturesUnordered<BoxFuture<'a, (Target, Result<Settled, Error>)>>;

/// The times of a session's phase.
struct Timers {
    /// No job before.
    retry: Instant,
    /// Look at everything.
    tick: Instant,
    /// Try again what was refused.
    recheck: Instant,
}

impl Writer {
    pub(super) fn new(
        store: Arc<dyn Store>,
        board: Arc<Board>,
        config: Config,
        metrics: Metrics,
        leaving: Leaving,
    ) -> Self {
        let (confirmed, queue) = (BTreeMap::new(), BTreeMap::new());
        Self { store, board, config, metrics, leaving, backoff: Backoff::new(), confirmed, queue }
    }

    /// Works until the agent has left; then waits to be dropped.
    pub(super) async fn run(mut self) {
        let mut pause = Duration::ZERO;
        while self.leaving.done.borrow().is_none() {
            let mut leaving = self.leaving.by.clone();
            let session = tokio::select! {
                biased;
                by = asked_to_leave(&mut leaving) => {
                    self.leave(None, by).await;
                    continue;
                }
                session = self.open(pause) => session,
            };
            let opened = Instant::now();
            match self.serve(&session, leaving).await {
                Ended::Leave(by) => self.leave(Some(session), by).await,
                Ended::Lost(reason) => {
                    self.metrics.sessions_lost.inc();
                    tracing::warn!(
                        reason,
                        "session lost; a new one is opened and everything registered under it"
                    );
                    self.board.all_pending(&reason);
                    self.confirmed.values_mut().for_each(|confirmed| *confirmed = None);
                    // At once, unless sessions are lost as fast as they are opened.
                    pause =
                        if opened.elapsed() < SHORT_LIVED { self.backoff.pause() } else { Duration::ZERO };
                }
            }
        }
        std::future::pending::<()>().await;
    }

    /// Opens a session, however long it takes; the first attempt is made after `pause`.
    async fn open(&mut self, pause: Duration) -> Session {
        let mut told = false;
        tokio::time::sleep(pause).await;
        loop {
            match self.store.open_session(self.config.session_ttl.get()).await {
                Ok(session) => {
                    tracing::info!(store = self.store.url(), session = session.id(), "session opened");
                    self.board.store_problem(None);
                    return session;
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "no session; trying until there is one");
                    }
                    self.board.store_problem(Some(error.to_string()));
                    self.board.all_pending(&error.to_string());
                }
            }
            tokio::time::sleep(self.backoff.pause()).await;
        }
    }

    /// Settles records under `session` until it ends.
    async fn serve(&mut self, session: &Session, mut leaving: watch::Receiver<Option<Instant>>) -> Ended {
        let store = Arc::clone(&self.store);
        let mut in_flight = InFlight::new();
        let mut busy = BTreeSet::new();
        let mut refused = BTreeSet::new();
        let now = Instant::now();
        let mut timers = Timers { retry: now, tick: now + self.tick(), recheck: now + self.recheck() };
        let board = Arc::clone(&self.board);
        self.queue = board.targets().into_iter().map(|target| (target, false)).collect();
        loop {
            while in_flight.len() < IN_FLIGHT
                && Instant::now() >= timers.retry
                && let Some((target, verify)) = self.next(&busy)
            {
                busy.insert(target.clone());
                let job = self.job(&target, verify);
                let store = Arc::clone(&store);
                in_flight.push(Box::pin(async move { (target, settle(&*store, Some(session), job).await) }));
            }
            let waiting = self.queue.len() + in_flight.len();
            self.metrics.pending.set(i64::try_from(waiting).unwrap_or(i64::MAX));
            tokio::select! {
                biased;
                by = asked_to_leave(&mut leaving) => return Ended::Leave(by),
                lost = session.lost() => return Ended::Lost(lost.to_string()),
                Some((target, result)) = in_flight.next() => {
                    busy.remove(&target);
                    if let Some(ended) = self.finish(target, result, &mut refused, &mut timers) {
                        return ended;
                    }
                }
                marked = board.take_marked() => {
                    for target in marked {
                        self.queue.entry(target).or_insert(false);
                    }
                }
                () = tokio::time::sleep_until(timers.retry), if timers.retry > Instant::now() => {}
                () = tokio::time::sleep_until(timers.recheck) => {
                    timers.recheck = Instant::now() + self.recheck();
                    self.queue.extend(std::mem::take(&mut refused).into_iter().map(|target| (target, false)));
                }
                () = tokio::time::sleep_until(timers.tick) => {
                    timers.tick = Instant::now() + self.tick();
                    self.queue.extend(board.targets().into_iter().map(|target| (target, true)));
                }
            }
        }
    }

    /// The next record to settle: the node's first, and nothing else before it stands.
    fn next(&mut self, busy: &BTreeSet<Target>) -> Option<(Target, bool)> {
        let node_stands = matches!(self.confirmed.get(&Target::Node), Some(Some(_)));
        let free = |target: &Target| !busy.contains(target) && (node_stands || *target == Target::Node);
        let target = self.queue.keys().find(|target| free(target))?.clone();
        self.queue.remove_entry(&target)
    }

    fn job(&self, target: &Target, verify: bool) -> Job {
        let (path, record, first) = self.board.desired(target);
        let known = self.confirmed.get(target).cloned().flatten();
        Job { path, record, node: self.config.node.clone(), known, verify, first }
    }

    /// Takes in how a job ended.
    fn finish(
        &mut self,
        target: Target,
        result: Result<Settled, Error>,
        refused: &mut BTreeSet<Target>,
        timers: &mut Timers,
    ) -> Option<Ended> {
        let count = |result| self.metrics.writes.with_label_values(&[result]).inc();
        match result {
            Ok(Settled::Stands { confirmed, repaired, adopted }) => {
                count("stands");
                if repaired {
                    self.metrics.repairs.inc();
                    tracing::warn!(record = ?target, "record was changed by someone else; it was written again");
                }
                self.backoff.reset();
                self.board.stands(&target, confirmed.revision, adopted);
                self.confirmed.insert(target, Some(confirmed));
            }
            Ok(Settled::Gone) => {
                count("gone");
                self.backoff.reset();
                self.confirmed.remove(&target);
                self.board.gone(&target);
            }
            Ok(Settled::Refused(refusal)) => {
                count("refused");
                self.confirmed.remove(&target);
                if target == Target::Node {
                    self.board.all_pending("it waits until the node itself can be registered");
                }
                self.board.refused(&target, refusal);
                refused.insert(target);
            }
            Err(error) => {
                count("failed");
                // It may have been applied: the revision that is known may be no longer true.
                let known = self.confirmed.entry(target.clone()).or_default();
                if error.may_have_applied {
                    *known = None;
                }
                self.board.failed(&target, &error.to_string());
                tracing::debug!(record = ?target, %error, "record could not be settled");
                match error.kind {
                    ErrorKind::SessionLost => return Some(Ended::Lost(error.to_string())),
                    // The next tick tries again; sooner is of no use.
                    ErrorKind::Denied | ErrorKind::Invalid | ErrorKind::Corrupt => {
                        tracing::error!(%error, "record cannot be registered");
                    }
                    ErrorKind::Unavailable => {
                        self.queue.entry(target).or_insert(false);
                        if timers.retry <= Instant::now() {
                            timers.retry = Instant::now() + self.backoff.pause();
                        }
                    }
                }
            }
        }
        None
    }

    /// Takes everything back: by ending the session, which deletes all of it in one step; where that fails, one by one.
    async fn leave(&mut self, session: Option<Session>, by: Instant) {
        let mut last_error = "there is no session, since the store is out of reach".to_owned();
        let left = tokio::time::timeout_at(by, self.withdraw(session, &mut last_error)).await;
        let done = left.map_err(|_| LeaveError { ttl: self.config.session_ttl, reason: last_error });
        match &done {
            Ok(()) => {
                tracing::info!(node = %self.config.node, "everything of this node is deregistered");
                self.board.all_withdrawn();
            }
            Err(error) => tracing::error!(%error, "leaving"),
        }
        self.metrics.pending.set(0);
        self.leaving.done.send_replace(Some(done));
    }

    async fn withdraw(&mut self, session: Option<Session>, last_error: &mut String) {
        if let Some(session) = session {
            match self.store.close_session(session).await {
                Ok(()) => return,
                Err(error) => *last_error = error.to_string(),
            }
        }
        while let Some((target, _)) = self.confirmed.last_key_value() {
            // From the last to the first: the node goes after its instances.
            let target = target.clone();
            let mut job = self.job(&target, true);
            job.record = match &target {
                Target::Node => Record::NoNode(self.config.address),
                Target::Instance(key) => Record::NoInstance(key.clone()),
            };
            match settle(&*self.store, None, job).await {
                Ok(_) => drop(self.confirmed.remove(&target)),
                Err(error) => {
                    *last_error = error.to_string();
                    tokio::time::sleep(self.backoff.pause()).await;
                }
            }
        }
    }

    fn tick(&self) -> Duration {
        shortened(self.config.repair_interval.get(), 20)
    }

    /// What another agent holds is free at the latest when its lease has ended.
    fn recheck(&self) -> Duration {
        shortened(self.config.repair_interval.min(self.config.session_ttl).get(), 20)
    }
}

async fn asked_to_leave(leaving: &mut watch::Receiver<Option<Instant>>) -> Instant {
    if let Ok(by) = leaving.wait_for(Option::is_some).await
        && let Some(by) = *by
    {
        return by;
    }
    // Nobody is left to ask.
    std::future::pending().await
}
