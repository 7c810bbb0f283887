//! The program check: a program is run, and its exit code is the verdict, as Nagios and Consul have it.
//!
//! Keys: `exec` (a list: the program and its arguments; or, with `shell = true`, a command line for `/bin/sh -c`). Exit code 0
//! is passing, 1 a warning, everything else critical, as is a signal. The first line that it prints is shown, and the first 4 KiB
//! are kept. When its time is over it is killed, with every process that it started in its process group; so is
//! whatever it leaves behind when it ends.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::time::timeout;

use super::means::Of;
use super::process::Argv;
use super::seen::Seen;
use super::{Judge, Level, Liberty, Manner};
use crate::document::{Reported, Section};

/// So much of the output is kept, in bytes.
const MAX_OUTPUT: usize = 4096;
/// A program that has ended has printed everything; who else holds its output open is waited for so long.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Runs a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Exec(Command);

/// Of what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Command {
    Program { exec: Argv },
    Shell { exec: String, shell: bool },
}

/// What was printed, on both streams in the order in which it came.
#[derive(Debug, Default)]
struct Printed {
    kept: Vec<u8>,
}

impl Exec {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        if section.or("shell", false) {
            let line = section.required::<String>("exec")?;
            if line.trim().is_empty() || line.contains('\0') {
                return Err(section.invalid("exec", "it is no command line", "what `/bin/sh -c` can run"));
            }
            return Ok(Self(Command::Shell { exec: line, shell: true }));
        }
        section.required("exec").map(|exec| Self(Command::Program { exec }))
    }

    fn argv(&self) -> Argv {
        match &self.0 {
            Command::Program { exec } => exec.clone(),
            Command::Shell { exec, .. } => Argv::of_shell(exec),
        }
    }
}

#[async_trait]
impl Judge for Exec {
    fn describe(&self) -> String {
        match &self.0 {
            Command::Program { exec } => format!("exec {}", exec.shown()),
            Command::Shell { exec, .. } => format!("exec sh -c {exec:?}"),
        }
    }

    fn liberty(&self) -> Option<Liberty> {
        Some(Liberty::Programs)
    }

    fn manner(&self) -> Manner {
        Manner::RunsAProgram
    }

    async fn judge(&self, of: &Of<'_>) -> Seen {
        let argv = self.argv();
        let (mut child, mut group) = match argv.start(&environment(of), Stdio::null()) {
            Ok(started) => started,
            Err(error) => return Seen::critical(format!("{} cannot be started: {error}", argv.name())),
        };
        let (status, printed, all) = match finish(&mut child).await {
            Ok(finished) => finished,
            Err(error) => return Seen::critical(format!("waiting for {}: {error}", argv.name())),
        };
        if all {
            group.ended();
        }
        judged(status, &printed)
    }
}

/// Waits for its end, reading what it prints. The last: nobody holds its output open any more.
async fn finish(child: &mut Child) -> std::io::Result<(ExitStatus, Printed, bool)> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let (mut printed, mut status) = (Printed::default(), None);
    while status.is_none() {
        tokio::select! {
            ended = child.wait() => status = Some(ended?),
            piece = read(&mut out) => printed.take(&piece),
            piece = read(&mut err) => printed.take(&piece),
        }
    }
    let rest = async {
        while out.is_some() || err.is_some() {
            tokio::select! {
                piece = read(&mut out) => printed.take(&piece),
                piece = read(&mut err) => printed.take(&piece),
            }
        }
    };
    let all = timeout(LAST_WORDS, rest).await.is_ok();
    status.map(|status| (status, printed, all)).ok_or_else(|| std::io::ErrorKind::Other.into())
}

/// Reads a piece; at the end of the stream it is `None`, and waits for ever. Cancel-safe.
async fn read(stream: &mut Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(open) = stream else { return std::future::pending().await };
    let mut piece = vec![0; 1024];
    let read = open.read(&mut piece).await.unwrap_or(0);
    if read == 0 {
        *stream = None;
    }
    piece.truncate(read);
    piece
}

impl Printed {
    /// What is too much is thrown away, so that the program does not wait for us.
    fn take(&mut self, piece: &[u8]) {
        let left = MAX_OUTPUT - self.kept.len();
        self.kept.extend_from_slice(&piece[..piece.len().min(left)]);
    }
}

fn judged(status: ExitStatus, printed: &Printed) -> Seen {
    let output = String::from_utf8_lossy(&printed.kept).into_owned();
    let (level, how) = match (status.code(), status.signal()) {
        (Some(0), _) => (Level::Passing, "exit 0".to_owned()),
        (Some(1), _) => (Level::Warning, "exit 1".to_owned()),
        (Some(code), _) => (Level::Critical, format!("exit {code}")),
        (None, signal) => (Level::Critical, format!("ended by signal {}", signal.unwrap_or_default())),
    };
    let first = output.lines().map(str::trim).find(|line| !line.is_empty());
    let text = first.map_or_else(|| how.clone(), |line| format!("{how}: {line}"));
    Seen { output, ..Seen::new(level, text) }
}

/// What a program is told of what it is to check.
fn environment(of: &Of<'_>) -> Vec<(&'static str, String)> {
    let mut environment = vec![
        ("PLEXUS_SERVICE", of.service.to_string()),
        ("PLEXUS_INSTANCE", of.id.to_string()),
        ("PLEXUS_ADDRESS", of.on.address.to_string()),
        ("PLEXUS_TIMEOUT_MS", of.timeout.as_millis().to_string()),
    ];
    environment.extend(of.on.port.map(|port| ("PLEXUS_PORT", port.to_string())));
    environment.extend(of.on.socket.as_ref().map(|socket| ("PLEXUS_SOCKET", socket.to_string())));
    environment
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::judged as judge;
    use super::*;
    use crate::model::ListensOn;

    fn shell(line: &str) -> Exec {
        Exec(Command::Shell { exec: line.to_owned(), shell: true })
    }

    fn on() -> ListensOn {
        "192.0.2.7:8080".parse::<std::net::SocketAddr>().unwrap().into()
    }

    #[tokio::test]
    async fn the_exit_code_is_the_verdict_and_the_first_line_is_shown() {
        for (line, level, text) in [
            ("echo fine; exit 0", Level::Passing, "exit 0: fine"),
            ("exit 0", Level::Passing, "exit 0"),
            ("echo 'disk 91%' >&2; exit 1", Level::Warning, "exit 1: disk 91%"),
            ("echo; echo bad; exit 2", Level::Critical, "exit 2: bad"),
            ("exit 3", Level::Critical, "exit 3"),
            ("kill -9 $$", Level::Critical, "ended by signal 9"),
        ] {
            let seen = judge(&shell(line), on()).await;
            assert_eq!((seen.level, seen.text.as_str()), (level, text), "{line}");
        }
        let missing = Exec(Command::Program { exec: Argv::of(&["/nowhere/check", "x"]) });
        let seen = judge(&missing, on()).await;
        assert_eq!(seen.level, Level::Critical);
        assert!(seen.text.starts_with("check cannot be started: No such file"), "{}", seen.text);
    }

    #[tokio::test]
    async fn it_is_told_what_it_checks_and_nothing_of_the_agent() {
        let seen =
            judge(&shell("env | sort | grep -v ^PWD= | grep -v ^_= | grep -v ^SHLVL=; pwd"), on()).await;
        assert_eq!(
            seen.output,
            "HOME=/\nLANG=C.UTF-8\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
             PLEXUS_ADDRESS=192.0.2.7\nPLEXUS_INSTANCE=a\nPLEXUS_PORT=8080\nPLEXUS_SERVICE=web\n\
             PLEXUS_TIMEOUT_MS=5000\n/\n"
        );
    }

    #[tokio::test]
    async fn what_it_prints_is_bounded_and_it_never_waits_for_us() {
        let seen = judge(&shell("yes | head -c 1000000"), on()).await;
        assert_eq!((seen.level, seen.output.len()), (Level::Passing, MAX_OUTPUT));
    }

    fn is_running(pid: &str) -> bool {
        // A zombie has no command line.
        std::fs::read(Path::new("/proc").join(pid).join("cmdline")).is_ok_and(|line| !line.is_empty())
    }

    async fn ends(pid: &str) {
        let gone = async {
            while is_running(pid) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(5), gone).await.unwrap_or_else(|_| panic!("{pid} runs on"));
    }

    async fn written(file: &Path) -> String {
        let read = || std::fs::read_to_string(file).unwrap_or_default();
        let written = async {
            while !read().ends_with('\n') {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(5), written).await.expect("it writes its number");
        read().trim().to_owned()
    }

    #[tokio::test]
    async fn when_its_time_is_over_it_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let line = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let check = shell(&line);
        let probe = timeout(Duration::from_millis(500), judge(&check, on()));
        let (probed, child) = tokio::join!(probe, written(&file));
        assert!(probed.is_err(), "it was still running");
        ends(&child).await;
    }

    #[tokio::test]
    async fn what_it_leaves_behind_neither_delays_the_verdict_nor_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let line = format!("sleep 1000 & echo $! > {}; echo done", file.display());
        let seen = timeout(Duration::from_secs(2), judge(&shell(&line), on())).await.expect("at once");
        assert_eq!(seen.text, "exit 0: done");
        ends(&written(&file).await).await;
    }
}
