//! What did happen, and when: the faults as they were carried out.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::plan::Fault;
use crate::wait::pause;

/// Between two looks at whether this machine goes on.
const NAP: Duration = Duration::from_millis(20);
/// Whoever is not let run for so long takes what is late for lost, and others for dead.
const STALL: Duration = Duration::from_millis(300);

/// A fault that was carried out. Times are from the beginning of the soak.
#[derive(Debug, Clone, Copy)]
pub struct Happened {
    /// Which.
    pub fault: Fault,
    /// Just before it was done.
    pub began: Duration,
    /// Just after it was done; before that, unknown.
    pub done: Option<Duration>,
    /// When all was as before, as far as can be seen from outside: the process answers, the link carries.
    pub over: Option<Duration>,
}

/// All faults so far, and the clock of the soak.
#[derive(Debug)]
pub struct Timeline {
    start: Instant,
    happened: Mutex<Vec<Happened>>,
    /// When this machine stood still, until when.
    stalls: Mutex<Vec<(Duration, Duration)>>,
}

impl Happened {
    /// Just after it was done.
    #[must_use]
    pub fn done(&self) -> Duration {
        self.done.unwrap_or(Duration::MAX)
    }

    /// When it was over.
    #[must_use]
    pub fn over(&self) -> Duration {
        self.over.unwrap_or(Duration::MAX)
    }
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.over.map_or_else(|| "…".to_owned(), |over| format!("{:.3}", over.as_secs_f64()));
        write!(f, "{} ({:.3} to {end})", self.fault, self.began.as_secs_f64())
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self { start: Instant::now(), happened: Mutex::default(), stalls: Mutex::default() }
    }
}

impl Timeline {
    /// The time on its clock.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Carries a fault out: `act` does it, `mend` ends it; both are noted and printed.
    pub fn note(&self, fault: Fault, act: impl FnOnce(), mend: impl FnOnce()) {
        let number = {
            let mut happened = self.happened();
            happened.push(Happened { fault, began: self.now(), done: None, over: None });
            happened.len() - 1
        };
        self.say(&format!("{fault}"));
        act();
        self.happened()[number].done = Some(self.now());
        mend();
        self.happened()[number].over = Some(self.now());
        self.say(&format!("over: {fault}"));
    }

    /// Prints a line with the time before it.
    pub fn say(&self, what: &str) {
        eprintln!("{:8.3}  {what}", self.now().as_secs_f64());
    }

    /// Sleeps a moment, and notes when that took so long that clients and agents were not let run either.
    pub fn nap(&self) {
        let began = self.now();
        pause(NAP);
        let ended = self.now();
        if ended - began > NAP + STALL {
            self.say(&format!("this machine stood still for {:.2?}", ended - began));
            self.stalls.lock().unwrap_or_else(PoisonError::into_inner).push((began, ended));
        }
    }

    /// When this machine stood still.
    #[must_use]
    pub fn stalls(&self) -> Vec<(Duration, Duration)> {
        self.stalls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything that happened.
    #[must_use]
    pub fn so_far(&self) -> Vec<Happened> {
        self.happened().clone()
    }

    fn happened(&self) -> MutexGuard<'_, Vec<Happened>> {
        self.happened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
