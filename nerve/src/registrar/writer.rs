//! Keeps the store equal to the board, under one session a node.
//!
//! A loop over two phases: open a session, then settle what is marked until the session is lost or the agent leaves.
//! After a loss everything is settled anew. Each record has at most one job in flight; what changes meanwhile is settled
//! afterwards, in its newest state. Nothing of an instance is written before the node's own record stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::board::{Board, Target};
use super::carried::{CarriedRecord, CarriedSession};
use super::pace::Pace;
use super::pause::{Backoff, shortened};
use super::settle::{Confirmed, Job, Settled, settle};
use super::{Config, LeaveError, Metrics};
use crate::store::{Error, ErrorKind, Session, Store};

/// So many records are in flight at a time.
pub(super) const IN_FLIGHT: usize = 64;
/// A session that is lost earlier than this was none.
const SHORT_LIVED: Duration = Duration::from_secs(1);

/// What the writer is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Keep the store equal to the board.
    Serve,
    /// Write nothing, keep the session: another process is about to go on with it.
    Pause,
    /// Take everything back by then.
    Leave(Instant),
}

/// What stands at the store while the writer is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Paused {
    pub(super) session: Option<CarriedSession>,
    pub(super) records: Vec<CarriedRecord>,
}

/// A session and what stands under it.
pub(super) type Estate = (CarriedSession, Vec<CarriedRecord>);

/// What the writer is asked, and what it answers.
#[derive(Debug, Clone)]
pub(super) struct Orders {
    pub(super) asked: watch::Receiver<Asked>,
    /// How leaving went.
    pub(super) left: Arc<watch::Sender<Option<Result<(), LeaveError>>>>,
    /// Set for as long as it is paused.
    pub(super) paused: Arc<watch::Sender<Option<Paused>>>,
    /// What the process before this one left; taken by the first session.
    pub(super) carried: Arc<Mutex<Option<Estate>>>,
}

/// The one that writes.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) store: Arc<dyn Store>,
    pub(super) board: Arc<Board>,
    pub(super) config: Config,
    pub(super) metrics: Metrics,
    pub(super) orders: Orders,
    pub(super) backoff: Backoff,
    /// What may stand in the store; with its revision where the present session has confirmed it.
    pub(super) confirmed: Known,
    pace: Pace,
    /// What is to be settled; `true`: look even if nothing seems amiss.
    queue: BTreeMap<Target, bool>,
}

/// Why a session's phase ended.
enum Ended {
    Lost(String),
    Leave(Instant),
}

/// The node's records that may stand in the store.
type Known = BTreeMap<Target, Option<Confirmed>>;

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
        orders: Orders,
    ) -> Self {
        let (confirmed, queue) = (BTreeMap::new(), BTreeMap::new());
        Self {
            store,
            board,
            config,
            metrics,
            orders,
            backoff: Backoff::new(),
            confirmed,
            pace: Pace::new(),
            queue,
        }
    }

    /// Works until the agent has left; then waits to be dropped.
    pub(super) async fn run(mut self) {
        let mut pause = Duration::ZERO;
        while self.orders.left.borrow().is_none() {
            let mut asked = self.orders.asked.clone();
            let session = tokio::select! {
                biased;
                order = ordered(&mut asked) => {
                    match order {
                        Asked::Leave(by) => self.leave(None, by).await,
                        Asked::Pause | Asked::Serve => self.pause(None).await,
                    }
                    continue;
                }
                session = self.open(pause) => session,
            };
            let opened = Instant::now();
            match self.serve(&session, asked).await {
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
        if let Some(session) = self.adopt().await {
            return session;
        }
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

    /// Goes on with the session of the process before this one. Without it a new one does as well: every record is written
    /// again under it before the old one ends.
    async fn adopt(&mut self) -> Option<Session> {
        let carried = self.orders.carried.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (session, records) = carried?;
        self.confirmed = records.iter().map(|record| (Target::of(record), None)).collect();
        if session.asked != self.config.session_ttl.get() {
            tracing::info!("the time to live of sessions was changed: a new one is opened");
            return None;
        }
        match self.store.adopt_session(session.id, session.granted).await {
            Ok(session) => {
                tracing::info!(store = self.store.url(), session = session.id(), "session taken over");
                self.confirmed =
                    records.iter().map(|record| (Target::of(record), Some(record.confirmed()))).collect();
                self.board.store_problem(None);
                Some(session)
            }
            Err(error) => {
                tracing::warn!(%error, "the session cannot be taken over; a new one is opened");
                None
            }
        }
    }

    /// Tells what stands at the store and writes nothing until another order.
    async fn pause(&mut self, session: Option<&Session>) {
        let asked = self.config.session_ttl.get();
        let records = self.confirmed.iter().filter(|_| session.is_some());
        let paused = Paused {
            session: session.map(|session| CarriedSession::new(session, asked)),
            records: records
                .filter_map(|(target, known)| CarriedRecord::new(target.instance(), known.as_ref()))
                .collect(),
        };
        self.orders.paused.send_replace(Some(paused));
        let mut asked = self.orders.asked.clone();
        if asked.wait_for(|asked| *asked != Asked::Pause).await.is_err() {
            // Nobody is left to ask.
            std::future::pending::<()>().await;
        }
        self.orders.paused.send_replace(None);
    }

    /// Settles records under `session` until it ends.
    async fn serve(&mut self, session: &Session, mut asked: watch::Receiver<Asked>) -> Ended {
        let store = Arc::clone(&self.store);
        let mut in_flight = InFlight::new();
        let mut busy = BTreeSet::new();
        let mut refused = BTreeSet::new();
        let now = Instant::now();
        let mut timers = Timers { retry: now, tick: now + self.tick(), recheck: now + self.recheck() };
        let board = Arc::clone(&self.board);
        self.queue = board.targets().into_iter().map(|target| (target, false)).collect();
        loop {
            let mut paced = None;
            while in_flight.len() < IN_FLIGHT
                && Instant::now() >= timers.retry
                && let Some((target, verify)) = self.next(&busy)
            {
                // Looking is no storm: it comes with the slow tick.
                if !verify && let Err(until) = self.pace.take(Instant::now()) {
                    self.metrics.paced.inc();
                    self.queue.insert(target, verify);
                    paced = Some(until);
                    break;
                }
                busy.insert(target.clone());
                let job = self.job(&target, verify);
                let store = Arc::clone(&store);
                in_flight.push(Box::pin(async move { (target, settle(&*store, Some(session), job).await) }));
            }
            let waiting = self.queue.len() + in_flight.len();
            self.metrics.pending.set(i64::try_from(waiting).unwrap_or(i64::MAX));
            tokio::select! {
                biased;
                order = ordered(&mut asked) => {
                    if let Asked::Leave(by) = order {
                        return Ended::Leave(by);
                    }
                    while let Some((target, result)) = in_flight.next().await {
                        busy.remove(&target);
                        if let Some(ended) = self.finish(target, result, &mut refused, &mut timers) {
                            return ended;
                        }
                    }
                    self.pause(Some(session)).await;
                    // Whoever was to go on may have written before giving up.
                    self.queue.extend(board.targets().into_iter().map(|target| (target, true)));
                }
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
                () = tokio::time::sleep_until(paced.unwrap_or(timers.tick)), if paced.is_some() => {}
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

    pub(super) fn job(&self, target: &Target, verify: bool) -> Job {
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
                match target {
                    // It stays refused all the while: whoever waits for its end must not take it for undecided.
                    Target::Node => self.board.node_refused(refusal),
                    Target::Instance(_) => self.board.refused(&target, refusal),
                }
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

    fn tick(&self) -> Duration {
        shortened(self.config.repair_interval.get(), 20)
    }

    /// What another agent holds is free at the latest when its lease has ended.
    fn recheck(&self) -> Duration {
        shortened(self.config.repair_interval.min(self.config.session_ttl).get(), 20)
    }
}

/// The next order that is not to serve.
async fn ordered(asked: &mut watch::Receiver<Asked>) -> Asked {
    if let Ok(order) = asked.wait_for(|asked| *asked != Asked::Serve).await {
        return *order;
    }
    // Nobody is left to ask.
    std::future::pending().await
}
