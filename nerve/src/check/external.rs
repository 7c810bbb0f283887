//! The external check: a program of anybody's, started once and asked many times by lines of JSON.
//!
//! Keys: `external` (a list: the program and its arguments), `options` (a table that is handed on). Checks that name the same
//! command share one process. `docs/checks.md` has the protocol and an example.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::json;

use super::means::{Means, Of};
use super::process::Argv;
use super::program::{Answer, Program, Question};
use super::seen::Seen;
use super::{Judge, Liberty};
use crate::document::{Reported, Section};

/// Asks a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct External {
    external: Argv,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    options: BTreeMap<String, String>,
}

impl External {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let external = section.required("external");
        let options = section.or("options", BTreeMap::new());
        Ok(Self { external: external?, options })
    }

    fn question(&self, of: &Of<'_>) -> Question {
        let mut question = Question::new();
        let mut say = |key: &str, value| question.insert(key.to_owned(), value);
        say("service", json!(of.service));
        say("instance", json!(of.id));
        say("address", json!(of.on.address));
        say("timeout_ms", json!(u64::try_from(of.timeout.as_millis()).unwrap_or(u64::MAX)));
        if let Some(port) = of.on.port {
            say("port", json!(port));
        }
        if let Some(socket) = &of.on.socket {
            say("socket", json!(socket));
        }
        say("options", json!(self.options));
        question
    }
}

#[async_trait]
impl Judge for External {
    fn describe(&self) -> String {
        format!("external {}", self.external.shown())
    }

    fn liberty(&self) -> Option<Liberty> {
        Some(Liberty::Programs)
    }

    fn program(&self, means: &Means) -> Option<Arc<Program>> {
        Some(means.programs.of(&self.external))
    }

    async fn judge(&self, of: &Of<'_>) -> Seen {
        // The check's task holds the same one: it is not started for each probe.
        let program = of.means.programs.of(&self.external);
        match program.ask(self.question(of)).await {
            Ok(Answer { status, output, .. }) => {
                let line = output.lines().map(str::trim).find(|line| !line.is_empty());
                let text = line.unwrap_or(status.as_str()).to_owned();
                Seen { output, ..Seen::new(status, text) }
            }
            Err(trouble) => Seen::critical(trouble),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::check::Level;
    use crate::check::means::Means;
    use crate::check::reports::Reports;
    use crate::model::{InstanceId, ListensOn, ServiceName};
    use crate::tasks::Tasks;

    const SOON: Duration = Duration::from_secs(10);

    struct Bench {
        means: Means,
        check: External,
        _program: Arc<Program>,
    }

    /// A check by a program that a shell runs.
    fn bench(script: &str) -> Bench {
        let means = Means::new(Tasks::new());
        let check = External { external: Argv::of_shell(script), options: BTreeMap::new() };
        let program = check.program(&means).unwrap();
        Bench { means, check, _program: program }
    }

    impl Bench {
        async fn judge(&self) -> Seen {
            let (service, id) = (ServiceName::new("web").unwrap(), InstanceId::new("a").unwrap());
            let on: ListensOn = "192.0.2.7:80".parse::<std::net::SocketAddr>().unwrap().into();
            let (reports, within) = (Reports::default(), Duration::from_secs(1));
            let of = Of {
                service: &service,
                id: &id,
                on: &on,
                timeout: within,
                means: &self.means,
                reports: &reports,
            };
            self.check.judge(&of).await
        }

        /// Asks until it says this.
        async fn says(&self, wanted: &str) -> Seen {
            let ask = async || timeout(Duration::from_millis(100), self.judge()).await.ok();
            let (deadline, mut seen) = (Instant::now() + SOON, None);
            while seen.as_ref().is_none_or(|seen: &Seen| !seen.text.contains(wanted)) {
                assert!(Instant::now() < deadline, "never {wanted:?}: {seen:?}");
                sleep(Duration::from_millis(5)).await;
                seen = ask().await;
            }
            seen.unwrap()
        }
    }

    /// Answers each request with this status.
    fn answers(status: &str) -> String {
        format!(r#"sed -u 's/.*"id":\([0-9]*\).*/{{"id":\1,"status":"{status}","output":"so\\nmore"}}/'"#)
    }

    #[tokio::test]
    async fn one_process_answers_many_probes_of_many_checks() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("starts");
        let bench = bench(&format!("echo started >> {}; {}", file.display(), answers("warning")));
        let again = bench.check.program(&bench.means).unwrap();
        let probes = (0..50).map(|_| bench.judge());
        for seen in futures_util::future::join_all(probes).await {
            assert_eq!(
                (seen.level, seen.text.as_str(), seen.output.as_str()),
                (Level::Warning, "so", "so\nmore")
            );
        }
        drop(again);
        assert_eq!(bench.judge().await.level, Level::Warning);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "started\n");
    }

    #[tokio::test]
    async fn when_it_dies_its_checks_say_so_until_it_is_started_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("starts");
        // The first one dies of its first request.
        let script = format!(
            "echo >> {0}; if [ $(wc -l < {0}) = 1 ]; then read x; echo 'out of luck' >&2; exit 7; fi; {1}",
            file.display(),
            answers("passing")
        );
        let bench = bench(&script);
        let seen = bench.judge().await;
        assert_eq!(seen.level, Level::Critical);
        assert!(
            seen.text.contains("ended with exit status: 7 (out of luck); it is started again in 250ms"),
            "{seen:?}"
        );
        assert_eq!(bench.judge().await, seen, "at once, without waiting");
        assert_eq!(bench.says("so").await.level, Level::Passing);
    }

    #[tokio::test]
    async fn pauses_grow_for_one_that_does_not_last() {
        let bench = bench("exit 1");
        let begun = Instant::now();
        let _ = bench.says("again in 1s").await;
        assert!(begun.elapsed() >= Duration::from_millis(750));
    }

    #[tokio::test]
    async fn one_that_does_not_answer_or_cannot_stop_is_started_again() {
        let silent = bench("cat > /dev/null");
        assert_eq!(silent.says("has not answered 10 times in a row").await.level, Level::Critical);
        let endless = bench("read x; yes | tr -d '\\n'");
        assert_eq!(endless.says("a line of more than 65536 bytes").await.level, Level::Critical);
        let nonsense = bench(&format!("echo hello; echo '{{}}'; {}", answers("critical")));
        assert_eq!(nonsense.says("so").await.level, Level::Critical);
    }

    #[tokio::test]
    async fn it_ends_with_the_last_check_that_wants_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ended");
        let bench = bench(&format!("{}; echo > {}", answers("passing"), file.display()));
        assert_eq!(bench.says("so").await.level, Level::Passing);
        drop(bench);
        let ended = async {
            while !file.exists() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, ended).await.expect("its input ends");
    }
}
