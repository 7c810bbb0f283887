//! One run of `dnsperf`, and what it cost the server.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use super::servers::Server;

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// Answers a second.
    pub(super) rate: f64,
    /// Processor time of the server an answer, in microseconds.
    pub(super) micros: f64,
    /// Queries without an answer.
    pub(super) lost: u64,
}

/// Asks for so long, from the second core, with as many queries under way as keep the server busy.
pub(super) fn ask(server: &Server, questions: &Path, seconds: u64) -> anyhow::Result<Outcome> {
    let before = cpu(server.process())?;
    let output = Command::new("taskset")
        .args(["-c", "1", "dnsperf", "-s", "127.0.0.1", "-p", &server.port.to_string()])
        .arg("-d")
        .arg(questions)
        .args(["-l", &seconds.to_string(), "-c", "8", "-q", "400", "-T", "1", "-O", "suppress=timeout"])
        .output()
        .context("run dnsperf; on Debian: apt install dnsperf")?;
    let used = cpu(server.process())?.saturating_sub(before);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "dnsperf failed: {}", String::from_utf8_lossy(&output.stderr));
    let number = |label: &str| -> anyhow::Result<f64> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        number.with_context(|| format!("dnsperf said no {label:?}:\n{text}"))?.parse().context("a number")
    };
    let answered = number("Queries completed:")?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let lost = number("Queries lost:")? as u64;
    Ok(Outcome {
        rate: number("Queries per second:")?,
        micros: used.as_secs_f64() * 1e6 / answered.max(1.0),
        lost,
    })
}

fn cpu(process: u32) -> anyhow::Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(process)?))?;
    Ok(clock.now()?.into())
}
