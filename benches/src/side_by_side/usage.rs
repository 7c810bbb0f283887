//! What processes and the machine have used, from their clocks and from `/proc`.
//!
//! A process: its processor-time clock, in nanoseconds; `stat` counts in ticks of ten milliseconds, good enough for the
//! share of user time. On a kernel without `CONFIG_IRQ_TIME_ACCOUNTING` this
//! includes the interrupts and softirqs that ran on top of it: on a veth the receiver's half of TCP is the sender's time.
//! So the machine as a whole is read as well, from the processors' idle time, which charges nobody wrongly.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// Ticks a second of what `/proc` counts in; a constant of the kernel's interface.
const TICKS: f64 = 100.0;

/// Seconds of processor time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Processor {
    /// All of it.
    pub(crate) total: f64,
    /// Of this, in the program's own code, by the tick.
    pub(crate) user: f64,
}

/// The machine and the processes of a measurement at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    at: Instant,
    /// Idle seconds of all processors.
    idle: f64,
    /// Seconds that the hypervisor took.
    stolen: f64,
    processors: f64,
    /// The kernel's threads for softirqs: they work for everyone.
    kernel: f64,
    pub(crate) balancer: Processor,
    pub(crate) client: Processor,
    pub(crate) backend: Processor,
}

/// Processes by their ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watched {
    pub(crate) balancer: Vec<u32>,
    pub(crate) client: Vec<u32>,
    pub(crate) backend: Vec<u32>,
    softirq_threads: Vec<u32>,
}

/// What lies between two snapshots, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) elapsed: f64,
    pub(crate) balancer: Processor,
    pub(crate) client: f64,
    pub(crate) backend: f64,
    /// Of all processors, by anybody.
    pub(crate) busy: f64,
    /// Of this, by nobody of ours.
    pub(crate) foreign: f64,
    /// Processors of the machine.
    pub(crate) processors: f64,
}

impl Watched {
    pub(crate) fn new(balancer: Vec<u32>, client: u32, backend: u32) -> Self {
        let softirq_threads = processes()
            .filter(|pid| {
                let name = fs::read_to_string(format!("/proc/{pid}/comm"));
                name.is_ok_and(|name| name.starts_with("ksoftirqd/"))
            })
            .collect();
        Self { balancer, client: vec![client], backend: vec![backend], softirq_threads }
    }

    pub(crate) fn look(&self) -> anyhow::Result<Snapshot> {
        let (idle, stolen, processors) = machine()?;
        Ok(Snapshot {
            at: Instant::now(),
            idle,
            stolen,
            processors,
            kernel: used(&self.softirq_threads)?.total,
            balancer: used(&self.balancer)?,
            client: used(&self.client)?,
            backend: used(&self.backend)?,
        })
    }
}

impl Snapshot {
    pub(crate) fn since(&self, earlier: &Self) -> Used {
        let elapsed = self.at.duration_since(earlier.at).as_secs_f64();
        let idle = (self.idle - earlier.idle) + (self.stolen - earlier.stolen);
        let busy = (elapsed * self.processors - idle).max(0.0);
        let balancer = Processor {
            total: self.balancer.total - earlier.balancer.total,
            user: self.balancer.user - earlier.balancer.user,
        };
        let (client, backend) =
            (self.client.total - earlier.client.total, self.backend.total - earlier.backend.total);
        let ours = balancer.total + client + backend + self.kernel - earlier.kernel;
        let foreign = (busy - ours).max(0.0);
        Used { elapsed, balancer, client, backend, busy, foreign, processors: self.processors }
    }
}

/// The share of the machine that is used at the moment, looked at for so long.
pub(crate) fn load(during: Duration) -> anyhow::Result<f64> {
    let watched = Watched::default();
    let before = watched.look()?;
    plexus_tests::pause(during);
    let used = watched.look()?.since(&before);
    Ok(used.busy / (used.elapsed * used.processors))
}

/// The processes that stand in a network namespace.
pub(crate) fn processes_in(namespace: &str) -> anyhow::Result<Vec<u32>> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |path: &Path| fs::metadata(path).map(|file| file.ino());
    let wanted = inode(&Path::new("/run/netns").join(namespace)).context("look at a namespace")?;
    let stands_there =
        |pid: &u32| inode(Path::new(&format!("/proc/{pid}/ns/net"))).is_ok_and(|is| is == wanted);
    Ok(processes().filter(stands_there).collect())
}

/// Memory that the processes would give back if they ended, in KiB: what they share is shared out among who shares it.
pub(crate) fn memory(pids: &[u32]) -> anyhow::Result<u64> {
    let of = |pid: &u32| -> anyhow::Result<u64> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context(path)?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    pids.iter().map(of).sum()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn used(pids: &[u32]) -> anyhow::Result<Processor> {
    let mut sum = Processor::default();
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} ended during the measurement"))?;
        // After the name, which may have spaces, and two more fields than are counted here.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks =
            |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        sum.user += ticks(11) / TICKS;
        let clock = i32::try_from(*pid).map(Pid::from_raw).context("a process id")?;
        let time = clock_getcpuclockid(clock)?.now()?;
        sum.total += Duration::from(time).as_secs_f64();
    }
    Ok(sum)
}

/// Idle and stolen seconds of all processors so far, and how many there are.
fn machine() -> anyhow::Result<(f64, f64, f64)> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let all = text.lines().next().context("/proc/stat is empty")?;
    let values: Vec<f64> = all.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    ensure!(values.len() >= 8, "/proc/stat has an unknown form: {all}");
    let count = text.lines().filter(|line| line.starts_with("cpu")).count() - 1;
    #[allow(clippy::cast_precision_loss, reason = "processors of a machine")]
    let processors = count as f64;
    Ok(((values[3] + values[4]) / TICKS, values[7] / TICKS, processors))
}
