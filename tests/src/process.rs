//! Processes: one command run to its end, and one kept running with its output in a file.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::wait::wait_until;
use crate::world::World;

/// How much of a log a failure prints.
const TAIL: usize = 6000;

/// What a command printed, and how it ended.
#[derive(Clone)]
pub struct Ran {
    /// The command, as one would type it.
    pub command: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Did it exit with 0?
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Its standard output; panics with everything it printed when it failed.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> String {
        assert!(self.success(), "{self}");
        self.stdout
    }

    /// What it said when it failed; panics when it did not.
    #[track_caller]
    #[must_use]
    pub fn refused(self) -> String {
        assert!(!self.success(), "expected to fail, but: {self}");
        self.stderr
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        let code = code.map_or("killed".to_owned(), |code| format!("exit {code}"));
        write!(f, "$ {command}  → {code}\n{stdout}{stderr}")
    }
}

impl fmt::Debug for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Runs a command to its end, its input empty.
///
/// # Errors
/// It could not be started.
pub fn run(command: &[&str]) -> io::Result<Ran> {
    run_command(Command::new(command[0]).args(&command[1..]), &command.join(" "))
}

pub(crate) fn run_command(command: &mut Command, shown: &str) -> io::Result<Ran> {
    let output = command.stdin(Stdio::null()).output()?;
    Ok(Ran {
        command: shown.to_owned(),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A process that runs, its output in a file. Killed when dropped, unless worlds are to be left standing.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`, appending what it prints to `log`.
    ///
    /// # Panics
    /// It cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let open = || File::options().create(true).append(true).open(log);
        let (out, err) = (open().expect("a log file"), open().expect("a log file"));
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.unwrap_or_else(|error| panic!("starting {name} ({command:?}): {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned(), ended: None }
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its whole output so far.
    #[must_use]
    pub fn output(&self) -> String {
        read_lossy(&self.log)
    }

    /// Sends a signal. Nothing happens when it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.status().is_none() {
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
            // It may end at this very moment, which is as good.
            let _ = kill_process(pid, signal);
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        if self.ended.is_none() {
            self.ended = self.child.wait().ok();
        }
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Waits until it ends by itself; panics with the tail of its output when it does not.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let ended = wait_until(within, || self.status(), Option::is_some).ok().flatten();
        ended.unwrap_or_else(|| panic!("{} did not end within {within:?}\n{}", self.name, tail(&self.log)))
    }

    /// Panics with the tail of its output when it has ended.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if let Some(status) = self.status() {
            let how = status.signal().map_or(format!("{status}"), |signal| format!("signal {signal}"));
            panic!("{} ended: {how}\n{}", self.name, tail(&self.log));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that is stopped dies of SIGKILL all the same.
        if !World::keeps() {
            self.kill();
        }
    }
}

/// The end of a log file, with its name above.
#[must_use]
pub(crate) fn tail(log: &Path) -> String {
    let text = read_lossy(log);
    let mut start = text.len().saturating_sub(TAIL);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    format!("--- {} ---\n{}", log.display(), &text[start..])
}

fn read_lossy(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    read.map_or_else(
        |error| format!("(unreadable: {error})"),
        |_| String::from_utf8_lossy(&bytes).into_owned(),
    )
}
