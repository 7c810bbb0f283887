//! The load generator: one thread, one loop, system calls only.
//!
//! It is closed: so many operations are under way, and when one ends the next begins. It says `begin` when its window
//! begins, so that whoever started it looks at the processors' clocks at that moment, and its [`Tally`] as one line of
//! JSON when the window ends. Every response is compared, bit by bit, with what it must be.

mod close;
mod keep;
mod stream;

use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};

use super::histogram::Histogram;
use super::plan::{Errors, Load, Plan, Tally};

/// How long an operation may take before it counts as failed and its connection is given up.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long a datagram is waited for before it counts as lost.
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(250);
/// How long a loop waits at most, and so how late it sees the end of its window.
const LOOK: Duration = Duration::from_millis(20);

/// Carries out the plan that is the first line of its input, and prints what came of it.
///
/// # Errors
/// No plan, no socket at all, or nobody reads what is printed.
pub fn run() -> anyhow::Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let plan: &Plan = &serde_json::from_str(&line)?;
    let mut window = Window::new(plan);
    let left: Vec<OwnedFd> = match plan.load {
        Load::Close => close::run(plan, &mut window)?,
        Load::Keep | Load::Datagram | Load::Idle => keep::run(plan, &mut window)?,
        Load::Up | Load::Down => stream::run(plan, &mut window)?,
    };
    // Until the runner has looked at everything: connections that end now are not part of the measurement, nor are the
    // resets that the other side would count.
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    drop(left);
    Ok(())
}

/// The time that counts, and what is counted in it.
struct Window {
    begins: Instant,
    length: Duration,
    begun: Option<Instant>,
    operations: u64,
    bytes: u64,
    open: u64,
    errors: Errors,
    latencies: Histogram,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Goes,
    Over,
}

impl Window {
    fn new(plan: &Plan) -> Self {
        Self {
            begins: Instant::now() + plan.warm_up,
            length: plan.window,
            begun: None,
            operations: 0,
            bytes: 0,
            open: 0,
            errors: Errors::default(),
            latencies: Histogram::new(),
        }
    }

    /// Begins and ends the window when it is time; prints the result at its end.
    fn look(&mut self, now: Instant) -> anyhow::Result<Phase> {
        match self.begun {
            None if now >= self.begins => {
                (self.operations, self.bytes) = (0, 0);
                // Errors before the window are errors all the same: a balancer that is warm has none.
                self.latencies.clear();
                say("begin")?;
                self.begun = Some(Instant::now());
            }
            Some(begun) if now >= begun + self.length => {
                let tally = Tally {
                    window: now - begun,
                    operations: self.operations,
                    bytes: self.bytes,
                    errors: self.errors,
                    latency: self.latencies.latency(),
                    open: self.open,
                };
                say(&serde_json::to_string(&tally)?)?;
                return Ok(Phase::Over);
            }
            None | Some(_) => {}
        }
        Ok(Phase::Goes)
    }

    fn done(&mut self, took: Duration) {
        self.operations += 1;
        self.latencies.add(took);
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// A socket on its way to `target`.
fn dial(target: SocketAddrV4, datagrams: bool) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (kind, protocol) =
        if datagrams { (SocketType::DGRAM, ipproto::UDP) } else { (SocketType::STREAM, ipproto::TCP) };
    let socket = socket_with(AddressFamily::INET, kind, flags, Some(protocol))?;
    match connect(&socket, &target) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}
