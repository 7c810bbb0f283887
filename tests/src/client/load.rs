//! A steady load: so many new connections a second, whatever happens, and a record of each that failed.
//!
//! The pace is kept by the clock and not by the answers: several threads take the ticks in turn, so that one connection
//! that hangs does not hide that others would have hung as well.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http::{self, Failure, Step};
use crate::netns::Namespace;
use crate::wait::pause;

/// So many connections may be waiting before the pace suffers.
const THREADS: u32 = 16;

/// What is asked, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where.
    pub address: SocketAddr,
    /// The path that is asked for.
    pub path: String,
    /// New connections a second.
    pub rate: u32,
}

impl Plan {
    /// 200 new connections a second that ask for `/`.
    #[must_use]
    pub fn steady(address: SocketAddr) -> Self {
        Self { address, path: "/".to_owned(), rate: 200 }
    }
}

/// A request that did not end with a 200.
#[derive(Debug, Clone)]
pub struct Failed {
    /// When it began, since the load did.
    pub began: Duration,
    /// How long it took to fail.
    pub took: Duration,
    /// Why.
    pub why: Failure,
}

/// A load that runs; stopped when dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What a load has seen.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// How many requests ended well.
    pub succeeded: u64,
    /// Those that did not, in the order in which they ended.
    pub failed: Vec<Failed>,
    /// How many answers came from each instance.
    pub by_instance: BTreeMap<String, u64>,
    /// When the newest answer of each instance came, since the load began.
    pub last_by_instance: BTreeMap<String, Duration>,
    /// The slowest that ended well.
    pub slowest: Duration,
    /// The largest lag behind the pace.
    pub latest: Duration,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    tick: AtomicU64,
    stop: AtomicBool,
    record: Mutex<Record>,
}

impl Load {
    /// Starts a load from inside a namespace.
    ///
    /// # Panics
    /// Its threads cannot be made.
    #[must_use]
    pub fn start(from: &Namespace, plan: Plan) -> Self {
        let shared = Arc::new(Shared {
            start: Instant::now(),
            tick: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            record: Mutex::default(),
        });
        let plan = Arc::new(plan);
        let threads = (0..THREADS).map(|_| {
            let (shared, plan) = (Arc::clone(&shared), Arc::clone(&plan));
            from.spawn("load", move || shared.work(&plan)).expect("a thread inside the namespace")
        });
        Self { threads: threads.collect(), shared }
    }

    /// How long it runs: the clock of its record.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// What it has seen so far.
    #[must_use]
    pub fn so_far(&self) -> Record {
        self.shared.record().clone()
    }

    /// Waits until it has had `count` more answers.
    #[track_caller]
    pub fn wait_for(&self, count: u64) {
        let enough = self.shared.record().succeeded + count;
        crate::eventually!(Duration::from_secs(60), self.shared.record().succeeded, |seen| *seen >= enough);
    }

    /// Ends it and returns what it has seen.
    #[must_use]
    pub fn stop(mut self) -> Record {
        self.end();
        let record = self.shared.record().clone();
        assert!(
            record.succeeded + record.failed.len() as u64 > 0,
            "a load that asked nothing proves nothing"
        );
        record
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Record {
    /// The failures but those that began before `moment`: what was under way then may have been lost with its server.
    #[must_use]
    pub fn failed_after(&self, moment: Duration) -> Vec<&Failed> {
        self.failed.iter().filter(|failed| failed.began >= moment).collect()
    }

    /// Panics when a request failed.
    #[track_caller]
    pub fn assert_unharmed(&self) {
        assert!(self.failed.is_empty(), "{self}");
        self.assert_kept_pace();
    }

    /// Panics when a request that began after `moment` failed.
    #[track_caller]
    pub fn assert_unharmed_after(&self, moment: Duration) {
        assert!(self.failed_after(moment).is_empty(), "of those after {moment:?}: {self}");
        self.assert_kept_pace();
    }

    /// Panics when the load was no steady one: then it proves little.
    #[track_caller]
    fn assert_kept_pace(&self) {
        assert!(
            self.latest < Duration::from_secs(3),
            "the load fell {:?} behind its pace: {self}",
            self.latest
        );
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { succeeded, failed, by_instance, slowest, .. } = self;
        write!(f, "{} of {} requests failed", failed.len(), succeeded + failed.len() as u64)?;
        write!(f, " (slowest {slowest:?}, answers {by_instance:?})")?;
        for Failed { began, took, why } in failed.iter().take(10) {
            write!(f, "\n  at {began:.3?} after {took:.3?}: {why}")?;
        }
        if failed.len() > 10 { write!(f, "\n  and {} more", failed.len() - 10) } else { Ok(()) }
    }
}

impl Shared {
    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, plan: &Plan) {
        while !self.stop.load(Ordering::SeqCst) {
            let tick = u32::try_from(self.tick.fetch_add(1, Ordering::SeqCst)).expect("a test ends before");
            let due = Duration::from_secs(1) * tick / plan.rate;
            pause(due.saturating_sub(self.start.elapsed()));
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            let began = self.start.elapsed();
            let outcome = http::get(plan.address, &plan.path).and_then(|answer| match answer.status {
                200 => Ok(answer),
                status => Err(Failure {
                    step: Step::Status,
                    kind: std::io::ErrorKind::Other,
                    why: format!("{status} {}", answer.body),
                }),
            });
            let ended = self.start.elapsed();
            let mut record = self.record();
            record.latest = record.latest.max(began.saturating_sub(due));
            match outcome {
                Ok(answer) => {
                    record.succeeded += 1;
                    record.slowest = record.slowest.max(ended - began);
                    let instance = answer.instance().unwrap_or_else(|| "?".to_owned());
                    *record.by_instance.entry(instance.clone()).or_default() += 1;
                    record.last_by_instance.insert(instance, ended);
                }
                Err(why) => record.failed.push(Failed { began, took: ended - began, why }),
            }
        }
    }
}
