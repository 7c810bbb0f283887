//! What an agent holds: descriptors by kind, threads, memory, and what it says of itself. And whether that is what it held when
//! it had nothing to do.

use std::fmt;
use std::fs;
use std::time::Duration;

use crate::node::Node;

/// Sockets that come and go with nobody's connection: a check's, the store's when it is connected anew, an operator's.
const PASSING: usize = 4;
/// Empty pipes that a data-plane thread keeps for the next stream: 32, with two ends each.
const PIPES_A_THREAD: usize = 64;
/// The smallest block that the allocator gives out, in bytes: whoever forgets one of them a connection loses at least that.
const SMALLEST: f64 = 24.0;
/// What the memory of a process that has found its size may still move by in a minute, in KiB: pages that are used for the first
/// time in pools and buffers that are bounded.
const NOISE: f64 = 256.0;

/// What an agent held at some time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    pub(super) at: Duration,
    pub(super) node: usize,
    pub(super) process: u32,
    pub(super) sockets: usize,
    pub(super) pipes: usize,
    pub(super) others: usize,
    pub(super) threads: usize,
    pub(super) data_threads: usize,
    /// Its proportional share of memory.
    pub(super) pss_kib: u64,
    /// What of that is its own, and not the program's text, whose share depends on how many others run it.
    pub(super) own_kib: u64,
    /// Connections and UDP sessions that it says are open.
    pub(super) connections: f64,
    pub(super) sessions: f64,
    /// Connections and UDP sessions so far.
    pub(super) so_far: f64,
    /// Tasks that panicked.
    pub(super) panics: f64,
}

impl Sample {
    /// `None` while the agent is not there.
    pub(super) fn take(at: Duration, node: usize, of: &Node) -> Option<Self> {
        let metrics = of.admin("/metrics").ok()?.body;
        let process = of.agent_id();
        let sum = |name| crate::node::metric(&metrics, name, "").unwrap_or(0.0);
        let descriptors: Vec<String> = fs::read_dir(format!("/proc/{process}/fd"))
            .ok()?
            .flatten()
            .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
            .collect();
        let of_kind = |kind: &str| descriptors.iter().filter(|name| name.starts_with(kind)).count();
        let (sockets, pipes) = (of_kind("socket:"), of_kind("pipe:"));
        let names: Vec<String> = fs::read_dir(format!("/proc/{process}/task"))
            .ok()?
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
            .collect();
        let memory = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        let kib = |field: &str| {
            let line = memory.lines().find_map(|line| line.strip_prefix(field))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            at,
            node,
            process,
            sockets,
            pipes,
            others: descriptors.len() - sockets - pipes,
            threads: names.len(),
            data_threads: names.iter().filter(|name| name.starts_with("data-")).count(),
            pss_kib: kib("Pss:")?,
            own_kib: kib("Pss_Anon:")?,
            connections: sum("plexus_connections_active"),
            sessions: sum("plexus_udp_sessions_active"),
            so_far: sum("plexus_connections_total") + sum("plexus_udp_sessions_total"),
            panics: sum("plexus_task_panics"),
        })
    }

    /// What it holds that an idle agent does not; nothing when all is as it was.
    pub(super) fn more_than(&self, idle: &Self) -> Vec<String> {
        let mut more = Vec::new();
        let mut at_most = |what: &str, now: usize, most: usize| {
            if now > most {
                more.push(format!("{now} {what}, at most {most} when idle"));
            }
        };
        at_most("sockets", self.sockets, idle.sockets + PASSING);
        at_most("pipes", self.pipes, idle.pipes.max(PIPES_A_THREAD * self.data_threads));
        at_most("other descriptors", self.others, idle.others);
        at_most("threads", self.threads, idle.threads);
        for (what, now) in [("connections", self.connections), ("UDP sessions", self.sessions)] {
            if now != 0.0 {
                more.push(format!("{now} {what}, none when idle"));
            }
        }
        more
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:8.1}  {:4}  {:7}  {:7}  {:5}  {:6}  {:7}  {:8}  {:8}  {:11}  {:8}",
            self.at.as_secs_f64(),
            super::plan::name_of(self.node),
            self.process,
            self.sockets,
            self.pipes,
            self.others,
            self.threads,
            self.pss_kib,
            self.own_kib,
            self.connections,
            self.sessions,
        )
    }
}

/// What stands above samples.
pub(super) const HEADINGS: &str =
    "      at  node  process  sockets  pipes  others  threads  Pss, KiB  own, KiB  connections  sessions";

/// How fast the memory of one process grows, and how fast it may, in KiB a minute; from samples of the time to be judged.
///
/// The bound is what would be lost by forgetting the smallest block there is with every connection and session, and some noise:
/// growth below it is no leak of anything that belongs to a connection.
pub(super) fn growth(samples: &[&Sample]) -> Option<(f64, f64)> {
    let (first, last) = (samples.first()?, samples.last()?);
    let minutes = |sample: &Sample| (sample.at - first.at).as_secs_f64() / 60.0;
    if samples.len() < 3 {
        return None;
    }
    let count = samples.len() as f64;
    let mean_time = samples.iter().map(|sample| minutes(sample)).sum::<f64>() / count;
    let mean_size = samples.iter().map(|sample| sample.own_kib as f64).sum::<f64>() / count;
    let (mut together, mut spread) = (0.0, 0.0);
    for sample in samples {
        let time = minutes(sample) - mean_time;
        together += time * (sample.own_kib as f64 - mean_size);
        spread += time * time;
    }
    let begun_a_minute = (last.so_far - first.so_far) / minutes(last);
    Some((together / spread, begun_a_minute * SMALLEST / 1024.0 + NOISE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: u64, own_kib: u64, so_far: f64) -> Sample {
        Sample {
            at: Duration::from_secs(seconds),
            node: 0,
            process: 1,
            sockets: 10,
            pipes: 0,
            others: 5,
            threads: 4,
            data_threads: 2,
            pss_kib: 5000,
            own_kib,
            connections: 0.0,
            sessions: 0.0,
            so_far,
            panics: 0.0,
        }
    }

    #[test]
    fn idle_is_what_it_was_and_pipes_that_are_kept() {
        let idle = sample(0, 1000, 0.0);
        assert!(Sample { sockets: 14, pipes: 128, ..idle.clone() }.more_than(&idle).is_empty());
        let leaking =
            Sample { sockets: 15, pipes: 130, others: 6, threads: 5, sessions: 1.0, ..idle.clone() };
        assert_eq!(leaking.more_than(&idle).len(), 5);
    }

    #[test]
    fn growth_is_the_slope_a_minute_and_the_bound_is_a_block_a_connection() {
        let samples: Vec<Sample> =
            (0..6).map(|ten| sample(ten * 10, 1000 + ten * 100, ten as f64 * 10_240.0)).collect();
        let (slope, most) = growth(&samples.iter().collect::<Vec<_>>()).expect("enough samples");
        assert!((slope - 600.0).abs() < 0.01, "{slope}");
        assert!((most - (61_440.0 * 24.0 / 1024.0 + 256.0)).abs() < 0.01, "{most}");
    }
}
