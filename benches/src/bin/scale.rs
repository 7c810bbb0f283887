//! A large fleet in a real etcd: how long until the first answer, how much memory, how long a change takes.
//!
//! `cargo run --release -p plexus-benches --bin scale` prints the rows of the table in benches/README.md.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nerve::store::{self, Key, Store, StoreConfig};
use nerve::tasks::Tasks;
use plexus_benches::{instance, service_name};
use synapse::catalog::{Catalog, Change};
use synapse::watch::store as watcher;

const ENDPOINTS: usize = 10;
const CHANGES: usize = 200;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    report(
        "services × endpoints | load (s) | to first answer (ms) | resident (MiB) | etcd put → seen (ms, median, p95) | apply alone (µs, median)",
    );
    for services in [100, 10_000] {
        let row = runtime.block_on(measure(services))?;
        report(&row);
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the table is the output of this program")]
fn report(line: &str) {
    println!("{line}");
}

async fn measure(services: usize) -> anyhow::Result<String> {
    let etcd = Etcd::start()?;
    let writing = store::open(&StoreConfig::new(etcd.url.parse()?), &store::Metrics::default())?;
    let load = Instant::now();
    fill(&writing, services).await?;
    let load = load.elapsed();

    let resident_before = resident_mib()?;
    let (catalog, writer) = Catalog::new();
    let (reading, tasks) =
        (store::open(&StoreConfig::new(etcd.url.parse()?), &store::Metrics::default())?, Tasks::new());
    let begun = Instant::now();
    let handle =
        watcher::start(watcher::Config::default(), reading, writer, None, synapse::Metrics::new()?, &tasks);
    handle.filled().await;
    let last = service_name(services - 1);
    let answered =
        catalog.service(last.as_str()).context("the last service is not in the catalog")?.endpoints.len();
    let first_answer = begun.elapsed();
    if answered != ENDPOINTS || catalog.endpoint_count() != services * ENDPOINTS {
        bail!("only {} endpoints arrived", catalog.endpoint_count());
    }
    let resident = resident_mib()? - resident_before;

    let seen = changes_seen(&writing, &catalog, services).await?;
    let apply = changes_applied(services);
    tasks.shutdown().await;
    writing.shutdown().await;
    Ok(format!(
        "{services} × {ENDPOINTS} | {:.1} | {:.0} | {resident:.0} | {:.2}, {:.2} | {:.2}",
        load.as_secs_f64(),
        first_answer.as_secs_f64() * 1e3,
        percentile(&seen, 50).as_secs_f64() * 1e3,
        percentile(&seen, 95).as_secs_f64() * 1e3,
        percentile(&apply, 50).as_secs_f64() * 1e6,
    ))
}

/// Sixty-four writers at a time, as a fleet's agents would.
async fn fill(store: &Arc<dyn Store>, services: usize) -> anyhow::Result<()> {
    let mut writes = tokio::task::JoinSet::new();
    for service in 0..services {
        for endpoint in 0..ENDPOINTS {
            let store = Arc::clone(store);
            writes.spawn(async move { put(&store, service, endpoint, 8000).await });
            if writes.len() >= 64
                && let Some(done) = writes.join_next().await
            {
                done??;
            }
        }
    }
    while let Some(done) = writes.join_next().await {
        done??;
    }
    Ok(())
}

async fn put(store: &Arc<dyn Store>, service: usize, endpoint: usize, port: u16) -> anyhow::Result<()> {
    let record = instance(service, endpoint, port);
    let path = Key::Instance(record.service.clone(), record.id.clone()).path();
    store.put(&path, serde_json::to_vec(&*record)?, None).await?;
    Ok(())
}

/// From before the put until a reader of the catalog can see it.
async fn changes_seen(
    store: &Arc<dyn Store>,
    catalog: &Catalog,
    services: usize,
) -> anyhow::Result<Vec<Duration>> {
    let mut subscription = catalog.subscribe();
    subscription.changed().await;
    let mut times = Vec::with_capacity(CHANGES);
    for change in 0..CHANGES {
        let service = (change * 37) % services;
        let port = u16::try_from(9000 + change)?;
        let begun = Instant::now();
        let seen = async {
            loop {
                if subscription.changed().await.contains(&service_name(service)) {
                    return begun.elapsed();
                }
            }
        };
        let (written, seen) = tokio::join!(put(store, service, 3, port), seen);
        written?;
        times.push(seen);
    }
    Ok(times)
}

/// The catalog's own part of it. A hundred services change in turn, whatever their number, so that both sizes are measured
/// with the same data in the processor's caches.
fn changes_applied(services: usize) -> Vec<Duration> {
    let (_catalog, mut writer) = Catalog::new();
    writer.apply(
        (0..services).flat_map(|s| (0..ENDPOINTS).map(move |e| Change::PutInstance(instance(s, e, 8000)))),
    );
    let changes: Vec<_> = (0..CHANGES * 10)
        .map(|change| instance(change % 100 * (services / 100), 3, u16::try_from(9000 + change).unwrap_or(1)))
        .collect();
    let apply = |change| {
        let begun = Instant::now();
        writer.apply([Change::PutInstance(change)]);
        begun.elapsed()
    };
    changes.into_iter().map(apply).collect()
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() * percent / 100).copied().unwrap_or_default()
}

/// What this process holds in memory, proc(5).
fn resident_mib() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS in /proc/self/status")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// A real etcd with its data in a directory that goes with it.
struct Etcd {
    process: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Etcd {
    fn start() -> anyhow::Result<Self> {
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let (client, peer) = (free()?, free()?);
        let data = tempfile::tempdir()?;
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(data.path())
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}"), "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start etcd (apt-get install etcd-server)")?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(client).is_err() {
            if Instant::now() > deadline {
                bail!("etcd does not listen on {client} after 10 s");
            }
            std::thread::yield_now();
        }
        Ok(Self { process, url: format!("etcd://{client}"), _data: data })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It is gone already, or it goes now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
