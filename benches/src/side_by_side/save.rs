//! Results kept: every sample, the tables, and what they were measured on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use plexus_tests::{repository, run};

use super::sample::Sample;

/// Writes samples to a file.
pub(crate) fn samples(file: &Path, samples: &[&Sample]) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(samples)?;
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// The directory of today's results of this machine, made.
pub(crate) fn directory(machine: &str) -> anyhow::Result<PathBuf> {
    let is_name = !machine.is_empty() && machine.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    ensure!(is_name, "{machine:?}: the machine's name is letters, digits and hyphens");
    let date = said(&["date", "-u", "+%F"])?;
    let directory = repository().join("benches/results").join(format!("{date}-{machine}"));
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    Ok(directory)
}

/// What the figures were made with and on.
pub(crate) fn conditions(plexus: &Path) -> anyhow::Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let models = processors.lines().filter_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let models: Vec<&str> = models.collect();
    let kernel = said(&["uname", "-r"])?;
    let plexus = said(&[&plexus.to_string_lossy(), "--version"])?;
    let commit = said(&["git", "-C", &repository().to_string_lossy(), "describe", "--always", "--dirty"]);
    // A peer that is not installed was left out, and said so.
    let peer = |command: &[&str]| said(command).ok().and_then(|text| text.lines().next().map(str::to_owned));
    let peers = [peer(&["haproxy", "-v"]), peer(&["nginx", "-v"])];
    let peers: Vec<String> = peers.into_iter().flatten().collect();
    Ok(format!(
        "{} × {}, Linux {kernel}; {plexus}; {}; runner of {}\n",
        models.len(),
        models.first().unwrap_or(&"unknown processor"),
        peers.join("; "),
        commit.as_deref().unwrap_or("unknown commit"),
    ))
}

/// What a command prints, on either of its outputs.
fn said(command: &[&str]) -> anyhow::Result<String> {
    let ran = run(command).with_context(|| command.join(" "))?;
    ensure!(ran.success(), "{ran}");
    let text = if ran.stdout.is_empty() { ran.stderr } else { ran.stdout };
    Ok(text.trim().to_owned())
}
