//! A process of our own in a namespace: the load generator or the backend, which this program is as well.
//!
//! It speaks lines; every wait for one has a deadline and ends when the user interrupts. Its input is a pipe, whose end
//! ends it, also when the runner itself was killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use plexus_tests::Namespace;

use super::interrupt;

/// Lines that wait to be read. An actor says less.
const LINES: usize = 16;
/// Between two looks at whether the user has interrupted.
const LOOK: Duration = Duration::from_millis(50);

/// A running one; killed when dropped.
#[derive(Debug)]
pub(crate) struct Actor {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
}

impl Actor {
    /// Starts this program with these arguments inside a namespace.
    pub(crate) fn start(
        name: &'static str,
        namespace: &Namespace,
        arguments: &[String],
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program's own file")?;
        let mut command = namespace.command(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start the {name}"))?;
        let out = child.stdout.take().context("its output is a pipe")?;
        let (sender, lines) = sync_channel(LINES);
        // It ends with the pipe, and so with the process.
        std::thread::Builder::new().name(format!("{name}'s lines")).spawn(move || {
            let lines = BufReader::new(out).lines().map_while(Result::ok);
            lines.map(|line| sender.send(line)).take_while(Result::is_ok).for_each(drop);
        })?;
        Ok(Self { name, child, lines })
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line it says.
    pub(crate) fn line(&self, within: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + within;
        loop {
            match self.lines.recv_timeout(LOOK) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Disconnected) => bail!("the {} ended; its reason is above", self.name),
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    bail!("the {} said nothing within {within:?}", self.name)
                }
                Err(RecvTimeoutError::Timeout) => interrupt::check()?,
            }
        }
    }

    /// Says a line to it.
    pub(crate) fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.child.stdin.as_mut().context("its input is a pipe")?;
        writeln!(input, "{line}").with_context(|| format!("speak to the {}", self.name))
    }

    /// Says a line and returns what is said back.
    pub(crate) fn ask(&mut self, question: &str) -> anyhow::Result<String> {
        self.say(question)?;
        self.line(Duration::from_secs(5))
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
