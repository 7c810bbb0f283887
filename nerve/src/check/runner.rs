//! Runs the checks: one task a check, so that a target that hangs delays no other.
//!
//! A probe holds a slot while it runs, since each is a file descriptor; whoever has to wait for one is counted. The wait
//! does not eat into the probe's timeout. A probe that panics is a failed probe.

use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::carried::{Beginning, Carried, CarriedCheck, Progress};
use super::schedule::Schedule;
use super::{CheckSpec, Hysteresis, Metrics, Outcome, bounded};
use crate::model::{Health, ListensOn};
use crate::tasks::Tasks;

/// What is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its name in logs (`web/web-a-8080`), from which its moment within the interval is drawn.
    pub name: String,
    /// Where it listens.
    pub on: ListensOn,
    /// Its checks; without any it is passing.
    pub checks: Vec<CheckSpec>,
}

/// Starts checks and bounds how many probe at a time.
#[derive(Debug, Clone)]
pub struct Runner {
    tasks: Tasks,
    slots: Arc<Semaphore>,
    metrics: Metrics,
    /// Where every check's grid of probes begins.
    epoch: Instant,
}

/// The checks of one instance, running for as long as this value lives.
#[derive(Debug)]
pub struct Monitor {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// How an instance is, as its checks see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// As its worst check.
    pub health: Health,
    /// The probe that decided it (`http GET /healthz: status 503`); empty when passing.
    pub reason: String,
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
}

type OnChange = Box<dyn Fn() + Send + Sync>;

struct Shared {
    name: String,
    on: ListensOn,
    state: Mutex<State>,
    metrics: Metrics,
    on_change: OnChange,
}

struct State {
    report: Report,
    /// One a check: how it stands, and when it began.
    progress: Vec<(Progress, Instant)>,
}

/// Everything that one check's task needs.
struct Running {
    index: usize,
    spec: CheckSpec,
    description: String,
    hysteresis: Hysteresis,
    schedule: Schedule,
    started: Instant,
    slots: Arc<Semaphore>,
    shared: Arc<Shared>,
}

impl Runner {
    /// A runner whose checks are `tasks`' and that runs at most `max_probes` probes at a time.
    #[must_use]
    pub fn new(tasks: Tasks, max_probes: NonZeroUsize, metrics: Metrics) -> Self {
        let slots = Arc::new(Semaphore::new(max_probes.get().min(Semaphore::MAX_PERMITS)));
        Self { tasks, slots, metrics, epoch: Instant::now() }
    }

    /// Begins to check `subject`. Every check has the verdict of `beginning` until its probes give another; `on_change`
    /// is called whenever the health of the instance has changed, and must not block.
    #[must_use]
    pub fn start(
        &self,
        subject: Subject,
        beginning: Beginning,
        on_change: impl Fn() + Send + Sync + 'static,
    ) -> Monitor {
        let Subject { name, on, checks } = subject;
        let now = Instant::now();
        let (mut statuses, mut progress) = (Vec::new(), Vec::new());
        for (index, spec) in checks.iter().enumerate() {
            let description = spec.probe.check().describe();
            let carried = beginning.of_check(index, &description);
            let stands = carried.map_or(Progress::new(beginning.health()), |check| check.progress);
            let began = carried.and_then(|check| now.checked_sub(check.age)).unwrap_or(now);
            progress.push((stands, began));
            statuses.push(CheckStatus {
                kind: spec.probe.kind(),
                description,
                health: stands.health,
                last: carried.and_then(|check| check.last.clone()),
            });
        }
        let health = statuses.iter().map(|check| check.health).max().unwrap_or(Health::Passing);
        let reason = match (health, &beginning) {
            (Health::Passing, _) => String::new(),
            (_, Beginning::Carried(carried)) if carried.health == health => carried.reason.clone(),
            _ => "its checks have not been decided yet".to_owned(),
        };
        self.metrics.instances_of(health).inc();
        let stop = CancellationToken::new();
        let report = Report { health, reason, checks: statuses.clone() };
        let shared = Arc::new(Shared {
            name,
            on,
            state: Mutex::new(State { report, progress: progress.clone() }),
            metrics: self.metrics.clone(),
            on_change: Box::new(on_change),
        });
        let begins = statuses.into_iter().zip(progress);
        for (index, (spec, (status, (stands, began)))) in checks.into_iter().zip(begins).enumerate() {
            let timing = &spec.timing;
            let schedule = Schedule::new(&shared.name, index, timing.interval(), self.epoch, now);
            let decided =
                beginning.of_check(index, &status.description).is_some() && stands.health != Health::Starting;
            let running = Running {
                schedule: if decided { schedule.resumed(now) } else { schedule },
                index,
                hysteresis: Hysteresis::new(timing.rise(), timing.fall(), timing.start_period(), stands),
                spec,
                description: status.description,
                started: began,
                slots: Arc::clone(&self.slots),
                shared: Arc::clone(&shared),
            };
            let (stop, owner) = (stop.clone(), self.tasks.stop_token());
            self.tasks.spawn("check", async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = owner.cancelled() => {}
                    () = running.run() => {}
                }
            });
        }
        Monitor { shared, _stop: stop.drop_guard() }
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
        });
        let (health, reason) = (state.report.health, state.report.reason.clone());
        Carried::of(&self.shared.on, health, reason, checks.collect())
    }

    /// The verdict and the probe that decided it.
    #[must_use]
    pub fn verdict(&self) -> (Health, String) {
        let state = self.shared.state();
        (state.report.health, state.report.reason.clone())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shared.metrics.instances_of(self.shared.state().report.health).dec();
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Each change is made in one piece, so a panic elsewhere leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in one check's outcome and verdict.
    fn apply(&self, index: usize, outcome: Outcome, progress: Progress, description: &str) {
        let health = progress.health;
        let changed = {
            let mut state = self.state();
            if let Some((stands, _)) = state.progress.get_mut(index) {
                *stands = progress;
            }
            let state = &mut state.report;
            let deciding = format!("{description}: {}", outcome.text);
            if let Some(check) = state.checks.get_mut(index) {
                check.health = health;
                check.last = Some(outcome);
            }
            let worst = state.checks.iter().map(|check| check.health).max().unwrap_or_default();
            let before = state.health;
            if worst != before {
                state.health = worst;
                state.reason = match worst {
                    Health::Passing => String::new(),
                    _ if worst == health => deciding,
                    _ => worst_check(&state.checks, worst),
                };
                self.metrics.instances_of(before).dec();
                self.metrics.instances_of(worst).inc();
                Some((before, worst, state.reason.clone()))
            } else {
                None
            }
        };
        let Some((from, to, reason)) = changed else { return };
        if to == Health::Critical {
            tracing::warn!(instance = self.name, %from, %to, reason, "health changed");
        } else {
            tracing::info!(instance = self.name, %from, %to, reason, "health changed");
        }
        (self.on_change)();
    }
}

/// When the worst check recovers, the next worst is the reason.
fn worst_check(checks: &[CheckStatus], worst: Health) -> String {
    let check = checks.iter().find(|check| check.health == worst);
    check.map_or_else(String::new, |check| {
        let text = check.last.as_ref().map_or("not decided yet", |last| last.text.as_str());
        format!("{}: {text}", check.description)
    })
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Running {
    async fn run(mut self) {
        loop {
            tokio::time::sleep_until(self.schedule.due()).await;
            let outcome = self.probe().await;
            let now = Instant::now();
            let healthy = outcome.healthy;
            let health = self.hysteresis.observe(healthy, now - self.started);
            self.schedule.advance(now, healthy, health);
            self.shared.apply(self.index, outcome, self.hysteresis.progress(), &self.description);
        }
    }

    async fn probe(&self) -> Outcome {
        let metrics = &self.shared.metrics;
        let slot = match self.slots.try_acquire() {
            Ok(slot) => Ok(slot),
            Err(_) => {
                metrics.slot_waits.inc();
                self.slots.acquire().await
            }
        };
        let begun = Instant::now();
        let probe = AssertUnwindSafe(self.spec.probe.check().probe(&self.shared.on)).catch_unwind();
        let timeout = self.spec.timing.timeout();
        let (healthy, text, result) = match tokio::time::timeout(timeout, probe).await {
            Ok(Ok(Ok(text))) => (true, text, "pass"),
            Ok(Ok(Err(text))) => (false, text, "fail"),
            Ok(Err(_)) => (false, "the check itself panicked; please report it".to_owned(), "panic"),
            Err(_) => {
                let timeout = humantime::format_duration(timeout);
                (false, format!("no answer within {timeout}"), "timeout")
            }
        };
        drop(slot);
        let latency = begun.elapsed();
        let kind = self.spec.probe.kind();
        metrics.probes.with_label_values(&[kind, result]).inc();
        metrics.latency.with_label_values(&[kind]).observe(latency.as_secs_f64());
        Outcome { healthy, text: bounded(&text), latency, at: SystemTime::now() }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::num::NonZeroU32;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio::sync::Notify;

    use super::*;
    use crate::check::{Http, Probe, Tcp, Timing};
    use crate::period::Period;

    struct Bench {
        tasks: Tasks,
        runner: Runner,
        metrics: Metrics,
        changed: Arc<Notify>,
    }

    fn bench(slots: usize) -> Bench {
        let (tasks, metrics) = (Tasks::new(), Metrics::default());
        let runner = Runner::new(tasks.clone(), NonZeroUsize::new(slots).unwrap(), metrics.clone());
        Bench { tasks, runner, metrics, changed: Arc::new(Notify::new()) }
    }

    impl Bench {
        fn start(&self, name: &str, address: SocketAddr, checks: Vec<CheckSpec>) -> Monitor {
            let changed = Arc::clone(&self.changed);
            let subject = Subject { name: name.to_owned(), on: address.into(), checks };
            self.runner.start(subject, Beginning::With(Health::Starting), move || changed.notify_one())
        }

        async fn wait_for(&self, monitor: &Monitor, health: Health) -> Report {
            let seen = async {
                loop {
                    let report = monitor.report();
                    if report.health == health {
                        return report;
                    }
                    self.changed.notified().await;
                }
            };
            match tokio::time::timeout(Duration::from_secs(10), seen).await {
                Ok(report) => report,
                Err(_) => panic!("never {health}: {:?}", monitor.report()),
            }
        }
    }

    fn every(millis: u64) -> Timing {
        Timing::every(Period::new(Duration::from_millis(millis)).unwrap())
    }

    fn tcp(millis: u64) -> CheckSpec {
        CheckSpec { probe: Probe::Tcp(Tcp::default()), timing: every(millis) }
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn an_instance_rises_falls_within_its_intervals_and_recovers() {
        let bench = bench(8);
        let (server, address) = listener().await;
        let monitor = bench.start("web/a", address, vec![tcp(50)]);
        let report = bench.wait_for(&monitor, Health::Passing).await;
        assert_eq!((report.reason.as_str(), report.checks[0].last.as_ref().unwrap().healthy), ("", true));
        drop(server);
        let killed = Instant::now();
        let report = bench.wait_for(&monitor, Health::Critical).await;
        // The first failure within one interval, the third two intervals later; half of one for a busy machine.
        assert!(killed.elapsed() < Duration::from_millis(175), "{:?}", killed.elapsed());
        assert!(report.reason.starts_with("tcp: connect to 127.0.0.1:"), "{}", report.reason);
        assert_eq!(bench.metrics.instances_of(Health::Critical).get(), 1);
        let _again = TcpListener::bind(address).await.unwrap();
        bench.wait_for(&monitor, Health::Passing).await;
        drop(monitor);
        assert_eq!(bench.metrics.instances_of(Health::Passing).get(), 0);
        bench.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn an_instance_is_as_well_as_its_worst_check_and_says_which() {
        let bench = bench(8);
        let (server, address) = listener().await;
        let well = Arc::new(AtomicBool::new(false));
        let answering = Arc::clone(&well);
        let serving = async move {
            loop {
                let (stream, _) = server.accept().await.unwrap();
                let status = if answering.load(Ordering::Relaxed) { "200 OK" } else { "503 Busy" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.readable().await;
                let _ = stream.try_read(&mut [0; 1024]);
                let _ = stream.try_write(answer.as_bytes());
            }
        };
        bench.tasks.spawn("server", {
            let stop = bench.tasks.stop_token();
            async move {
                let _ = stop.run_until_cancelled(serving).await;
            }
        });
        let http = CheckSpec { probe: Probe::Http(Http::get("/healthz").unwrap()), timing: every(20) };
        let monitor = bench.start("web/a", address, vec![tcp(20), http]);
        let report = bench.wait_for(&monitor, Health::Critical).await;
        assert_eq!(report.reason, "http GET /healthz: status 503");
        assert_eq!(report.checks[0].health, Health::Passing);
        well.store(true, Ordering::Relaxed);
        bench.wait_for(&monitor, Health::Passing).await;
        bench.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_target_that_hangs_delays_no_other_and_is_told_apart() {
        let bench = bench(64);
        let (_hanging, silent) = listener().await;
        let (_server, address) = listener().await;
        let http = |millis| CheckSpec { probe: Probe::Http(Http::get("/").unwrap()), timing: every(millis) };
        let stuck: Vec<_> =
            (0..32).map(|n| bench.start(&format!("stuck/{n}"), silent, vec![http(200)])).collect();
        let monitor = bench.start("web/a", address, vec![tcp(20)]);
        let begun = Instant::now();
        bench.wait_for(&monitor, Health::Passing).await;
        assert!(begun.elapsed() < Duration::from_millis(150), "{:?}", begun.elapsed());
        let report = bench.wait_for(&stuck[0], Health::Critical).await;
        assert_eq!(report.reason, "http GET /: no answer within 200ms");
        assert_eq!(bench.metrics.slot_waits.get(), 0);
        bench.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn probes_beyond_the_limit_wait_and_are_counted() {
        let bench = bench(1);
        let (_hanging, silent) = listener().await;
        let http = CheckSpec {
            probe: Probe::Http(Http::get("/").unwrap()),
            timing: every(30).rise_and_fall(NonZeroU32::MIN, NonZeroU32::MIN),
        };
        let first = bench.start("a/1", silent, vec![http.clone()]);
        let second = bench.start("a/2", silent, vec![http]);
        bench.wait_for(&first, Health::Critical).await;
        bench.wait_for(&second, Health::Critical).await;
        assert!(bench.metrics.slot_waits.get() > 0);
        bench.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_thousand_checks_of_one_interval_are_spread_over_it() {
        let bench = bench(2000);
        let (server, address) = listener().await;
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let stop = bench.tasks.stop_token();
        bench.tasks.spawn("server", async move {
            let serving = async {
                while server.accept().await.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            };
            stop.run_until_cancelled(serving).await;
        });
        let monitors: Vec<_> =
            (0..1000).map(|n| bench.start(&format!("web/{n}"), address, vec![tcp(1000)])).collect();
        for monitor in &monitors {
            bench.wait_for(monitor, Health::Passing).await;
        }
        // All began at the same moment; from the next whole interval on, each has its own.
        tokio::time::sleep(Duration::from_millis(1000)).await;
        let mut shares = Vec::new();
        for _ in 0..5 {
            let before = accepted.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(200)).await;
            shares.push(accepted.load(Ordering::Relaxed) - before);
        }
        assert!(shares.iter().all(|share| (100..=320).contains(share)), "{shares:?}");
        bench.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn without_checks_it_is_passing_and_carried_health_holds_until_a_verdict() {
        let bench = bench(8);
        let (_server, address) = listener().await;
        assert_eq!(bench.start("web/a", address, Vec::new()).verdict(), (Health::Passing, String::new()));
        let subject = Subject { name: "web/b".to_owned(), on: address.into(), checks: vec![tcp(20)] };
        let carried = bench.runner.start(subject, Beginning::With(Health::Passing), || ());
        assert_eq!(carried.verdict().0, Health::Passing);
        bench.tasks.shutdown().await;
    }
}
