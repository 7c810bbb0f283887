//! Runs the checks: one task a check, so that a target that hangs delays no other.
//!
//! A probe holds a slot while it runs, since each is a file descriptor, or a process; whoever has to wait for one is counted. The
//! wait does not eat into the probe's timeout. A probe that panics is a failed probe; one that fails because this host
//! lacks something changes no verdict.

use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::carried::{Beginning, Progress};
use super::host::{self, Lack};
use super::means::{Means, Of};
use super::monitor::{CheckStatus, Found, Monitor, Report, Shared, State, Subject, advice};
use super::program::Program;
use super::reports::Reports;
use super::schedule::Schedule;
use super::{CheckSpec, Damping, Hysteresis, Level, Manner, Metrics, Outcome, Seen, bounded};
use crate::model::Health;
use crate::tasks::Tasks;

/// Starts checks and bounds how many probe at a time.
#[derive(Debug, Clone)]
pub struct Runner {
    tasks: Tasks,
    slots: Arc<Semaphore>,
    means: Means,
    metrics: Metrics,
    damping: Damping,
    /// Where every check's grid of probes begins.
    epoch: Instant,
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
    means: Means,
    /// Runs for as long as this check does.
    _program: Option<Arc<Program>>,
    shared: Arc<Shared>,
}

impl Runner {
    /// A runner whose checks are `tasks`' and that runs at most `max_probes` probes at a time.
    #[must_use]
    pub fn new(tasks: Tasks, max_probes: NonZeroUsize, damping: Damping, metrics: Metrics) -> Self {
        let slots = Arc::new(Semaphore::new(max_probes.get().min(Semaphore::MAX_PERMITS)));
        let means = Means::new(tasks.clone());
        Self { tasks, slots, means, metrics, damping, epoch: Instant::now() }
    }

    /// Begins to check `subject`. Every check has the verdict of `beginning` until its probes give another; `on_change`
    /// is called whenever the health of the instance has changed, or what it asks for, and must not block.
    #[must_use]
    pub fn start(
        &self,
        subject: Subject,
        beginning: Beginning,
        on_change: impl Fn() + Send + Sync + 'static,
    ) -> Monitor {
        let Subject { service, id, on, checks, mode } = subject;
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
                health: stands.health(),
                last: carried.and_then(|check| check.last.clone()),
                advice: carried.and_then(|check| check.advice),
            });
        }
        let health = mode.over(statuses.iter().map(|check| check.health));
        let reason = match (health, &beginning) {
            (Health::Passing, _) => String::new(),
            (_, Beginning::Carried(carried)) if carried.health == health => carried.reason.clone(),
            _ => "its checks have not been decided yet".to_owned(),
        };
        self.metrics.instances_of(health).inc();
        let stop = CancellationToken::new();
        let report = Report { health, reason, advice: advice(&statuses), checks: statuses.clone() };
        let shared = Arc::new(Shared {
            name: format!("{service}/{id}"),
            service,
            id,
            on,
            mode,
            reports: checks.iter().map(|_| Reports::new()).collect(),
            state: Mutex::new(State::new(report, progress.clone(), self.damping)),
            metrics: self.metrics.clone(),
            on_change: Box::new(on_change),
        });
        let begins = statuses.into_iter().zip(progress);
        for (index, (spec, (status, (stands, began)))) in checks.into_iter().zip(begins).enumerate() {
            let decided =
                beginning.of_check(index, &status.description).is_some() && stands.health != Health::Starting;
            let timing = &spec.timing;
            let schedule = Schedule::new(&shared.name, index, timing.interval(), self.epoch, now);
            let check = spec.probe.check();
            let runs = check.manner() == Manner::RunsAProgram;
            let running = Running {
                schedule: if decided { schedule.resumed(now) } else { schedule },
                index,
                hysteresis: Hysteresis::new(timing.rise(), timing.fall(), timing.start_period(), stands),
                description: status.description,
                started: began,
                slots: Arc::clone(if runs { &self.means.running } else { &self.slots }),
                means: self.means.clone(),
                _program: check.program(&self.means),
                shared: Arc::clone(&shared),
                spec,
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

impl Running {
    async fn run(mut self) {
        let is_told = self.spec.probe.check().manner() == Manner::IsTold;
        let mut lacked = None;
        loop {
            if !is_told {
                tokio::time::sleep_until(self.schedule.due()).await;
            }
            let (seen, latency, lack) = self.probe(is_told).await;
            let now = Instant::now();
            let Seen { level, text, output, advice } = seen;
            let outcome = Outcome {
                healthy: level != Level::Critical,
                warning: level == Level::Warning,
                text: bounded(&text),
                output,
                latency,
                at: SystemTime::now(),
            };
            if let Some(lack) = lack {
                self.shared.metrics.host_faults.with_label_values(&[lack.as_str()]).inc();
                if lacked.replace(lack) != Some(lack) {
                    tracing::warn!(
                        instance = self.shared.name,
                        lacks = lack.as_str(),
                        reason = outcome.text,
                        "this host lacks something for a check; the verdict stays as it is"
                    );
                }
                self.schedule.advance(now, false, self.hysteresis.progress().health());
                let text = bounded(&format!(
                    "said nothing, for want of {} on this host: {}",
                    lack.as_str(),
                    outcome.text
                ));
                self.shared.note(self.index, Outcome { text, ..outcome });
                continue;
            }
            lacked = None;
            let health = self.hysteresis.observe(self.spec.timing.on().weigh(level), now - self.started);
            self.schedule.advance(now, level != Level::Critical, health);
            let found = Found { outcome, progress: self.hysteresis.progress(), advice };
            self.shared.apply(self.index, found, &self.description);
        }
    }

    /// A slot; `None` for whoever needs none.
    async fn slot(&self, is_told: bool) -> Option<OwnedSemaphorePermit> {
        if is_told {
            return None;
        }
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => Some(slot),
            Err(_) => {
                self.shared.metrics.slot_waits.inc();
                Arc::clone(&self.slots).acquire_owned().await.ok()
            }
        }
    }

    /// What one probe says, how long it took, and what this host lacked for it.
    async fn probe(&self, is_told: bool) -> (Seen, Duration, Option<Lack>) {
        let metrics = &self.shared.metrics;
        let slot = self.slot(is_told).await;
        let begun = Instant::now();
        let timeout = self.spec.timing.timeout();
        let nothing = Reports::default();
        let of = Of {
            service: &self.shared.service,
            id: &self.shared.id,
            on: &self.shared.on,
            timeout,
            means: &self.means,
            reports: self.shared.reports.get(self.index).map_or(&nothing, |reports| reports),
        };
        let probe = AssertUnwindSafe(host::watched(self.spec.probe.check().judge(&of))).catch_unwind();
        let probed = if is_told { Ok(probe.await) } else { tokio::time::timeout(timeout, probe).await };
        let (seen, lack, result) = match probed {
            Ok(Ok((seen, lack))) => {
                let lack = lack.filter(|_| seen.level != Level::Passing);
                let result = match (seen.level, lack) {
                    (_, Some(_)) => "host",
                    (Level::Passing, _) => "pass",
                    (Level::Warning, _) => "warn",
                    (Level::Critical, _) => "fail",
                };
                (seen, lack, result)
            }
            Ok(Err(_)) => (Seen::critical("the check itself panicked; please report it"), None, "panic"),
            Err(_) => {
                let timeout = humantime::format_duration(timeout);
                (Seen::critical(format!("no answer within {timeout}")), None, "timeout")
            }
        };
        drop(slot);
        // How long an application was silent is no latency.
        let latency = if is_told { Duration::ZERO } else { begun.elapsed() };
        let kind = self.spec.probe.kind();
        metrics.probes.with_label_values(&[kind, result]).inc();
        if !is_told {
            metrics.latency.with_label_values(&[kind]).observe(latency.as_secs_f64());
        }
        (seen, latency, lack)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::num::NonZeroU32;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::net::TcpListener;
    use tokio::sync::Notify;

    use super::*;
    use crate::check::{Advice, CheckMode, Http, Probe, Tcp, Timing};
    use crate::model::{InstanceId, ServiceName};
    use crate::period::Period;

    struct Bench {
        tasks: Tasks,
        runner: Runner,
        metrics: Metrics,
        changed: Arc<Notify>,
    }

    fn subject(name: &str, address: SocketAddr, checks: Vec<CheckSpec>) -> Subject {
        let (service, id) = name.split_once('/').unwrap();
        let (service, id) = (ServiceName::new(service).unwrap(), InstanceId::new(id).unwrap());
        Subject { service, id, on: address.into(), checks, mode: CheckMode::All }
    }

    fn bench(slots: usize) -> Bench {
        let (tasks, metrics) = (Tasks::new(), Metrics::default());
        let runner = Runner::new(
            tasks.clone(),
            NonZeroUsize::new(slots).unwrap(),
            Damping::default(),
            metrics.clone(),
        );
        Bench { tasks, runner, metrics, changed: Arc::new(Notify::new()) }
    }

    impl Bench {
        fn start(&self, name: &str, address: SocketAddr, checks: Vec<CheckSpec>) -> Monitor {
            let changed = Arc::clone(&self.changed);
            let subject = subject(name, address, checks);
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
        assert_eq!(
            bench.start("web/a", address, Vec::new()).verdict(),
            (Health::Passing, String::new(), Advice::NONE)
        );
        let subject = subject("web/b", address, vec![tcp(20)]);
        let carried = bench.runner.start(subject, Beginning::With(Health::Passing), || ());
        assert_eq!(carried.verdict().0, Health::Passing);
        bench.tasks.shutdown().await;
    }

    fn exec(line: &str) -> CheckSpec {
        let text = format!("exec = {line:?}\nshell = true\ninterval = \"20ms\"\nrise = 1\nfall = 1");
        read(&text)
    }

    fn read(text: &str) -> CheckSpec {
        crate::document::Document::parse("x", text).unwrap().decode(CheckSpec::read).unwrap()
    }

    #[tokio::test]
    async fn a_warning_is_shown_and_takes_nothing_out_unless_it_is_to() {
        let bench = bench(8);
        let address = "127.0.0.1:1".parse().unwrap();
        let monitor = bench.start("web/a", address, vec![exec("echo full; exit 1")]);
        let report = bench.wait_for(&monitor, Health::Warning).await;
        assert_eq!(report.reason, "exec sh -c \"echo full; exit 1\": exit 1: full");
        let mut strict = exec("echo full; exit 1");
        strict.timing = strict.timing.failing_on(crate::check::FailsOn::Warning);
        let monitor = bench.start("web/b", address, vec![strict]);
        let report = bench.wait_for(&monitor, Health::Critical).await;
        assert_eq!(report.checks[0].last.as_ref().map(Outcome::level), Some(Level::Warning));
        bench.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn one_of_several_checks_is_enough_where_any_will_do() {
        let bench = bench(8);
        let both = || vec![exec("exit 2"), exec("exit 0")];
        let all = bench.start("web/a", "127.0.0.1:1".parse().unwrap(), both());
        bench.wait_for(&all, Health::Critical).await;
        let mut any = subject("web/b", "127.0.0.1:1".parse().unwrap(), both());
        any.mode = CheckMode::Any;
        let changed = Arc::clone(&bench.changed);
        let any = bench.runner.start(any, Beginning::With(Health::Starting), move || changed.notify_one());
        bench.wait_for(&any, Health::Passing).await;
        let decided = async {
            while any.report().checks[0].health != Health::Critical {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), decided).await.unwrap();
        assert_eq!(any.verdict().0, Health::Passing);
        bench.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn an_application_reports_and_its_silence_is_critical() {
        let bench = bench(8);
        let monitor = bench.start("web/a", "127.0.0.1:1".parse().unwrap(), vec![read("ttl = \"300ms\"")]);
        assert_eq!(monitor.verdict().0, Health::Starting);
        let tell = |level, text: &str| {
            monitor.tell(0, crate::check::SelfReport { level, text: text.to_owned() });
        };
        tell(Level::Passing, "");
        bench.wait_for(&monitor, Health::Passing).await;
        tell(Level::Warning, "hot");
        assert_eq!(bench.wait_for(&monitor, Health::Warning).await.reason, "ttl 300ms: hot");
        let report = bench.wait_for(&monitor, Health::Critical).await;
        assert_eq!(report.reason, "ttl 300ms: no report within 300ms");
        tell(Level::Passing, "back");
        bench.wait_for(&monitor, Health::Passing).await;
        bench.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn an_instance_that_comes_and_goes_is_held_down_and_released() {
        let damping = Damping {
            changes: NonZeroU32::new(4).unwrap(),
            window: Period::seconds(60),
            hold: Period::new(Duration::from_millis(700)).unwrap(),
            longest: Period::seconds(60),
        };
        let mut bench = bench(8);
        bench.runner.damping = damping;
        let (_server, address) = listener().await;
        let spec = read("ttl = \"1h\"");
        let steady = read("tcp = true\ninterval = \"20ms\"");
        let monitor = bench.start("web/a", address, vec![spec, steady]);
        for level in [Level::Passing, Level::Critical, Level::Passing, Level::Critical, Level::Passing] {
            monitor.tell(0, crate::check::SelfReport { level, text: String::new() });
            let wanted = if level == Level::Passing { Health::Passing } else { Health::Critical };
            let taken_in = async {
                while monitor.report().checks[0].health != wanted {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                // The steady one decides first.
                while monitor.report().checks[1].health != Health::Passing {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(5), taken_in).await.unwrap();
        }
        let (health, reason, _) = monitor.verdict();
        assert_eq!(health, Health::Critical);
        assert_eq!(reason, "flapping: changed 4 times within 1m, held down for 700ms");
        assert_eq!(bench.metrics.held.get(), 1);
        bench.wait_for(&monitor, Health::Passing).await;
        bench.tasks.shutdown().await;
    }
}
