//! HAProxy in TCP mode.
//!
//! Left at its defaults, which are good here: `tune.listener.multi-queue`, epoll, the buffer's size. `defer-accept` is
//! not set: with it a server that speaks first would wait, which no general TCP balancer may cause.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use plexus_tests::Process;

use super::{FIRST_PORT, Setup, write};
use crate::side_by_side::lab::Lab;

/// Pipes for splicing; no case has more than four streams, of two directions.
const PIPES: usize = 256;

pub(super) fn start(lab: &Lab, setup: &Setup, splice: bool) -> anyhow::Result<Process> {
    let file = write(lab, "haproxy.cfg", &configuration(lab, setup, splice)?)?;
    let mut command = lab.balancer.command("haproxy");
    command.arg("-db").arg("-f").arg(file);
    Ok(Process::start("haproxy", &mut command, &lab.log("haproxy")))
}

fn configuration(lab: &Lab, setup: &Setup, splice: bool) -> anyhow::Result<String> {
    let (threads, connections) = (setup.threads, setup.connections);
    let socket = socket(lab);
    let socket = socket.display();
    let last = FIRST_PORT + setup.listeners - 1;
    let splice = if splice { "option splice-auto" } else { "" };
    let mut text = format!(
        "global\n\
         \x20 nbthread {threads}\n\
         \x20 maxconn {connections}\n\
         \x20 maxpipes {PIPES}\n\
         \x20 stats timeout 1h\n\
         \x20 stats socket {socket} mode 600 level admin\n\
         defaults\n\
         \x20 mode tcp\n\
         \x20 maxconn {connections}\n\
         \x20 timeout connect 5s\n\
         \x20 timeout client 1h\n\
         \x20 timeout server 1h\n\
         \x20 option tcp-smart-accept\n\
         \x20 option tcp-smart-connect\n\
         \x20 {splice}\n\
         frontend front\n\
         \x20 bind 0.0.0.0:{FIRST_PORT}-{last}\n\
         \x20 default_backend back\n\
         backend back\n\
         \x20 balance roundrobin\n"
    );
    for (index, endpoint) in setup.endpoints.iter().enumerate() {
        writeln!(text, "  server s{index} {endpoint}")?;
    }
    for (index, endpoint) in setup.spares.iter().enumerate() {
        writeln!(text, "  server spare{index} {endpoint} disabled")?;
    }
    Ok(text)
}

fn socket(lab: &Lab) -> PathBuf {
    lab.directory().join("haproxy.sock")
}

/// The run-time interface, on a connection that stays open.
pub(in crate::side_by_side) struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    pub(super) fn path(lab: &Lab) -> PathBuf {
        socket(lab)
    }

    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut control = Self { stream: BufReader::new(stream) };
        control.ask("prompt")?;
        Ok(control)
    }

    /// Servers that are written in the configuration are let in and out: what costs HAProxy least. `add server` would
    /// do the same at run time and more.
    pub(super) fn change(&mut self, spare: usize, present: bool) -> anyhow::Result<()> {
        let state = if present { "ready" } else { "maint" };
        let answer = self.ask(&format!("set server back/spare{spare} state {state}"))?;
        ensure!(answer.is_empty(), "HAProxy: {answer}");
        Ok(())
    }

    /// The answer, up to the prompt.
    fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        writeln!(self.stream.get_mut(), "{command}")?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"> ") {
            ensure!(self.stream.read_until(b' ', &mut answer)? > 0, "HAProxy closed its run-time interface");
        }
        Ok(String::from_utf8_lossy(&answer[..answer.len() - 2]).trim().to_owned())
    }
}
