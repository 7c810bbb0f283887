//! How one instance stands: what its checks say together, and whether it is held down because it comes and goes.
//!
//! The checks' tasks write here; whoever shows or registers the instance reads. The lock is held for a few assignments.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::carried::{Carried, CarriedCheck, Progress};
use super::flapping::Damper;
use super::reports::Reports;
use super::{Advice, CheckMode, CheckSpec, Damping, Metrics, Outcome, SelfReport};
use crate::model::{Health, InstanceId, ListensOn, ServiceName};

/// What is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The service that it is an instance of.
    pub service: ServiceName,
    /// Its id.
    pub id: InstanceId,
    /// Where it listens.
    pub on: ListensOn,
    /// Its checks; without any it is passing.
    pub checks: Vec<CheckSpec>,
    /// What they have to say together.
    pub mode: CheckMode,
}

/// The checks of one instance, running for as long as this value lives.
#[derive(Debug)]
pub struct Monitor {
    pub(super) shared: Arc<Shared>,
    pub(super) _stop: DropGuard,
}

/// How an instance is, as its checks see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// As its worst check, or its best; critical while it is held down.
    pub health: Health,
    /// The probe that decided it (`http GET /healthz: status 503`); empty when passing.
    pub reason: String,
    /// What it asks for itself.
    pub advice: Advice,
    /// Each check.
    pub checks: Vec<CheckStatus>,
}

/// How one check is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckStatus {
    /// `tcp`, `http`, …
    pub kind: &'static str,
    /// What it does: `http GET /healthz`.
    pub description: String,
    /// Its verdict.
    pub health: Health,
    /// Its last probe.
    pub last: Option<Outcome>,
    /// What it has been told of the weight.
    pub advice: Option<Advice>,
}

pub(super) type OnChange = Box<dyn Fn() + Send + Sync>;

/// What the tasks of an instance's checks share.
pub(super) struct Shared {
    /// Its name in logs (`web/web-a-8080`), from which its moment within the interval is drawn.
    pub(super) name: String,
    pub(super) service: ServiceName,
    pub(super) id: InstanceId,
    pub(super) on: ListensOn,
    pub(super) mode: CheckMode,
    /// One a check: what the application has reported to it.
    pub(super) reports: Vec<Arc<Reports>>,
    pub(super) state: Mutex<State>,
    pub(super) metrics: Metrics,
    pub(super) on_change: OnChange,
}

pub(super) struct State {
    report: Report,
    /// One a check: how it stands, and when it began.
    progress: Vec<(Progress, Instant)>,
    damper: Damper,
}

/// What one probe came to.
pub(super) struct Found {
    pub(super) outcome: Outcome,
    pub(super) progress: Progress,
    pub(super) advice: Option<Advice>,
}

impl State {
    pub(super) fn new(report: Report, progress: Vec<(Progress, Instant)>, damping: Damping) -> Self {
        let mut damper = Damper::new(damping);
        damper.observe(serving(report.health), Instant::now());
        Self { report, progress, damper }
    }
}

impl Monitor {
    /// The verdict and how each check is.
    #[must_use]
    pub fn report(&self) -> Report {
        self.shared.state().report.clone()
    }

    /// What another process needs to go on with these checks.
    #[must_use]
    pub fn carried(&self) -> Carried {
        let state = self.shared.state();
        let checks = state.report.checks.iter().zip(&state.progress);
        let checks = checks.map(|(check, (progress, began))| CarriedCheck {
            description: check.description.clone(),
            progress: *progress,
            age: began.elapsed(),
            last: check.last.clone(),
            advice: check.advice,
        });
        let (health, reason) = (state.report.health, state.report.reason.clone());
        Carried::of(&self.shared.on, health, reason, checks.collect())
    }

    /// The verdict, the probe that decided it, and what the instance asks for itself.
    #[must_use]
    pub fn verdict(&self) -> (Health, String, Advice) {
        let state = self.shared.state();
        (state.report.health, state.report.reason.clone(), state.report.advice)
    }

    /// Tells the check at this place what the application reports.
    pub fn tell(&self, place: usize, report: SelfReport) {
        if let Some(reports) = self.shared.reports.get(place) {
            reports.tell(report);
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shared.metrics.instances_of(self.shared.state().report.health).dec();
    }
}

impl Shared {
    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Each change is made in one piece, so a panic elsewhere leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a probe of one check came to.
    pub(super) fn apply(&self, index: usize, found: Found, description: &str) {
        let mut state = self.state();
        let deciding = format!("{description}: {}", found.outcome.text);
        let health = found.progress.health();
        if let Some((stands, _)) = state.progress.get_mut(index) {
            *stands = found.progress;
        }
        if let Some(check) = state.report.checks.get_mut(index) {
            check.health = health;
            check.last = Some(found.outcome);
            check.advice = found.advice.or(check.advice);
        }
        let verdict = self.mode.over(state.report.checks.iter().map(|check| check.health));
        let advice = advice(&state.report.checks);
        let advised = std::mem::replace(&mut state.report.advice, advice) != advice;
        let before = state.report.health;
        let held = state.damper.observe(serving(verdict), Instant::now());
        let (shown, reason) = match held {
            Some(hold) => (Health::Critical, Some(state.damper.reason(hold))),
            None if verdict == Health::Passing => (verdict, Some(String::new())),
            None if verdict == health => (verdict, Some(deciding)),
            None => (verdict, deciding_check(&state.report.checks, verdict)),
        };
        let begins_hold = held.is_some() && reason.as_ref() != Some(&state.report.reason);
        // Why it is as it is stays what it was when that was found out: a record is not written for every probe.
        let ends_hold = held.is_none() && before == shown && is_hold(&state.report.reason);
        let changed = (shown != before || begins_hold || ends_hold).then(|| {
            state.report.health = shown;
            state.report.reason = reason.unwrap_or_default();
            self.metrics.instances_of(before).dec();
            self.metrics.instances_of(shown).inc();
            (before, shown, state.report.reason.clone())
        });
        drop(state);
        if begins_hold {
            self.metrics.held.inc();
        }
        if let Some((from, to, reason)) = &changed {
            if *to == Health::Critical {
                tracing::warn!(instance = self.name, %from, %to, reason, "health changed");
            } else {
                tracing::info!(instance = self.name, %from, %to, reason, "health changed");
            }
        }
        if advised {
            let Advice { percent, drain } = advice;
            tracing::info!(instance = self.name, percent, drain, "the instance asks for another weight");
        }
        if changed.is_some() || advised {
            (self.on_change)();
        }
    }

    /// Shows a probe that says nothing of the instance: this host lacked something for it.
    pub(super) fn note(&self, index: usize, outcome: Outcome) {
        if let Some(check) = self.state().report.checks.get_mut(index) {
            check.last = Some(outcome);
        }
    }
}

/// Is it given traffic? `None` while its checks have not decided.
fn serving(health: Health) -> Option<bool> {
    (health != Health::Starting).then(|| health.is_serving())
}

fn is_hold(reason: &str) -> bool {
    reason.starts_with("flapping: ")
}

/// What the checks have been told, together.
pub(super) fn advice(checks: &[CheckStatus]) -> Advice {
    checks.iter().filter_map(|check| check.advice).fold(Advice::NONE, Advice::and)
}

/// When the check that decided recovers, another one is the reason.
fn deciding_check(checks: &[CheckStatus], verdict: Health) -> Option<String> {
    let check = checks.iter().find(|check| check.health == verdict)?;
    let text = check.last.as_ref().map_or("not decided yet", |last| last.text.as_str());
    Some(format!("{}: {text}", check.description))
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("name", &self.name).finish_non_exhaustive()
    }
}
