//! How the catalog grows with the fleet, over a real etcd: time to the first answer, resident memory, one change.
//!
//! Starts an etcd, registers a fleet of a hundred services and one of ten thousand with ten endpoints each, and measures
//! each in a process of its own, so that memory is that fleet's alone. Prints the table of `benches/README.md`.
#![allow(clippy::print_stdout, reason = "a program whose result is a table")]

use std::env;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nerve::model::Instance;
use nerve::tasks::Tasks;
use plexus_benches::{etcd, fleet};
use prometheus::Registry;
use serde_json::{Value, json};
use synapse::catalog::{Catalog, Change, Subscription};
use synapse::{Metrics, memory, watch};

const FLEETS: [usize; 2] = [100, 10_000];
const ENDPOINTS: usize = 10;
/// Changes measured, each of another service.
const CHANGES: usize = 500;
/// A prime, to visit services in an order that no cache foresees.
const STEP: usize = 7919;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match &*arguments.iter().map(String::as_str).collect::<Vec<_>>() {
        [] => orchestrate().await,
        ["follow", url, prefix, services, file] => {
            print_result(&follow(url, prefix, services.parse()?, FilePath::new(file)).await?)
        }
        ["recall", url, prefix, file] => print_result(&recall(url, prefix, file.into()).await?),
        _ => bail!("usage: scale (without arguments)"),
    }
}

fn print_result(result: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}

async fn orchestrate() -> anyhow::Result<()> {
    let server = etcd::Etcd::start()?;
    server.ready().await?;
    let directory = tempfile::tempdir()?;
    let mut columns = Vec::new();
    for services in FLEETS {
        let (prefix, file) =
            (format!("/fleet-{services}"), directory.path().join(format!("{services}.json")));
        let registered =
            etcd::register(server.url(), &prefix, fleet::instances(services, ENDPOINTS)?).await?;
        let file = file.to_str().context("the temporary directory has a strange name")?;
        let mut result = child(&["follow", server.url(), &prefix, &services.to_string(), file])?;
        let recalled = child(&["recall", server.url(), &prefix, file])?;
        result["register"] = json!(registered.as_secs_f64() * 1e3);
        for key in ["recall_ms", "recall_rss"] {
            result[key] = recalled[key].clone();
        }
        columns.push(result);
    }
    print_table(&columns)
}

fn child(arguments: &[&str]) -> anyhow::Result<Value> {
    let output = Command::new(env::current_exe()?).args(arguments).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// An agent's catalog: from nothing to the first answer, then one change after the other.
async fn follow(url: &str, prefix: &str, services: usize, file: &FilePath) -> anyhow::Result<Value> {
    let (tasks, metrics, registry) = (Tasks::new(), Metrics::new()?, Registry::new());
    metrics.register(&registry)?;
    let (before, started) = (resident()?, Instant::now());
    let store = etcd::open(url, prefix)?;
    let (catalog, writer) = Catalog::new();
    let watcher = watch::store::start(
        watch::store::Config::default(),
        Arc::clone(&store),
        writer,
        None,
        metrics.clone(),
        &tasks,
    );
    watcher.filled().await;
    let last = fleet::service_name(services - 1)?;
    ensure!(
        catalog.service(last.as_str()).is_some_and(|s| s.endpoints.len() == ENDPOINTS),
        "not all is there"
    );
    let first_answer = started.elapsed();
    ensure!(catalog.endpoint_count() == services * ENDPOINTS, "{} endpoints", catalog.endpoint_count());
    let after = resident()?;

    let (count, seconds) = applied(&registry);
    let (mut puts, mut seen) = (Vec::new(), Vec::new());
    let mut subscription = catalog.subscribe();
    subscription.changed().await;
    for number in 0..CHANGES {
        let service = fleet::service_name(number * STEP % services)?;
        let instance = fleet::instance(&service, 5, 101 + u16::try_from(number)?)?;
        let begun = Instant::now();
        let written = async { etcd::put(&store, &instance).await.map(|()| begun.elapsed()) };
        let visible = async {
            visible(&catalog, &mut subscription, &instance).await;
            begun.elapsed()
        };
        let (written, visible) = tokio::join!(written, visible);
        puts.push(written?);
        seen.push(visible);
    }
    let (count, seconds) = (applied(&registry).0 - count, applied(&registry).1 - seconds);
    let peak = status("VmHWM:")?;
    let (pure, cold) = (pure(services, FLEETS[0])?, pure(services, services)?);

    memory::keep(file.to_owned(), catalog.clone(), watcher, metrics, &tasks);
    // It saves at the end.
    tokio::task::yield_now().await;
    let begun = Instant::now();
    tasks.shutdown().await;
    let saved = begun.elapsed();
    store.shutdown().await;
    Ok(json!({
        "services": services,
        "first_answer": ms(first_answer),
        "rss": after - before,
        "peak": peak,
        "put_p50": ms(percentile(&mut puts, 50)),
        "visible_p50": ms(percentile(&mut seen, 50)),
        "visible_p99": ms(percentile(&mut seen, 99)),
        "handled": seconds / count * 1e6,
        "pure": pure,
        "cold": cold,
        "saved": ms(saved),
        "file": std::fs::metadata(file)?.len(),
    }))
}

async fn visible(catalog: &Catalog, subscription: &mut Subscription, instance: &Instance) {
    let is_there = || {
        let service = catalog.service(instance.service.as_str());
        service
            .is_some_and(|s| s.endpoint(&instance.id).is_some_and(|e| e.instance.weight == instance.weight))
    };
    while !is_there() {
        subscription.changed().await;
    }
}

/// Microseconds to apply one decoded change: the median of some thousand, that go round `changing` of the services. As many
/// in either fleet compares the catalog's work; all of them shows what the processor's caches add to it.
fn pure(services: usize, changing: usize) -> anyhow::Result<f64> {
    let (catalog, mut writer) = fleet::catalog(services, ENDPOINTS)?;
    let _subscription = catalog.subscribe();
    let mut times = Vec::new();
    for number in 0..20 * CHANGES {
        let service = fleet::service_name(number * STEP % changing * (services / changing))?;
        let change =
            Change::PutInstance(Arc::new(fleet::instance(&service, 5, 200 + u16::try_from(number)?)?));
        let begun = Instant::now();
        writer.apply([change]);
        times.push(begun.elapsed());
    }
    Ok(percentile(&mut times, 50).as_secs_f64() * 1e6)
}

/// An agent that starts while its store is gone: from opening the file to the first answer.
async fn recall(url: &str, prefix: &str, file: PathBuf) -> anyhow::Result<Value> {
    let (before, started) = (resident()?, Instant::now());
    let store = etcd::open(url, prefix)?;
    let (tasks, (catalog, writer)) = (Tasks::new(), Catalog::new());
    let recalled = memory::recall(&file);
    ensure!(recalled.is_some(), "nothing recalled from {}", file.display());
    let config = watch::store::Config::default();
    let _watcher = watch::store::start(config, Arc::clone(&store), writer, recalled, Metrics::new()?, &tasks);
    ensure!(catalog.service(fleet::service_name(0)?.as_str()).is_some(), "the catalog is empty");
    let took = started.elapsed();
    let after = resident()?;
    tasks.shutdown().await;
    store.shutdown().await;
    Ok(json!({"recall_ms": ms(took), "recall_rss": after - before}))
}

/// Events that the watcher has handled, and the seconds that this took.
fn applied(registry: &Registry) -> (f64, f64) {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == "plexus_catalog_apply_seconds");
    family.map_or((0.0, 0.0), |family| {
        let histogram = family.get_metric()[0].get_histogram();
        #[allow(clippy::cast_precision_loss, reason = "some hundreds")]
        (histogram.get_sample_count() as f64, histogram.get_sample_sum())
    })
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Resident memory of this process in KiB.
fn resident() -> anyhow::Result<u64> {
    status("VmRSS:")
}

fn status(key: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| key.to_owned())?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn print_table(columns: &[Value]) -> anyhow::Result<()> {
    let number = |column: &Value, key: &str| column[key].as_f64().with_context(|| key.to_owned());
    let rows: [(&str, &str, f64, &str); 13] = [
        ("etcd reached → first answer", "first_answer", 1.0, "ms"),
        ("resident memory of the catalog and its watcher", "rss", 1.0 / 1024.0, "MiB"),
        ("peak of the process", "peak", 1.0 / 1024.0, "MiB"),
        ("one change: etcd put → visible in the catalog, median", "visible_p50", 1.0, "ms"),
        ("… 99th percentile", "visible_p99", 1.0, "ms"),
        ("… of which etcd's own answer to the put, median", "put_p50", 1.0, "ms"),
        ("one change: decoded and applied by the watcher, mean", "handled", 1.0, "µs"),
        ("one change: applied to the catalog, of 100 services in turn, median", "pure", 1.0, "µs"),
        ("… of all services in turn (out of the processor's caches)", "cold", 1.0, "µs"),
        ("memory on disk: saved in", "saved", 1.0, "ms"),
        ("memory on disk: size", "file", 1.0 / 1024.0 / 1024.0, "MiB"),
        ("memory on disk: opened → first answer without the store", "recall_ms", 1.0, "ms"),
        ("registering the fleet (128 puts at a time)", "register", 1.0 / 1e3, "s"),
    ];
    let names: Vec<_> =
        columns.iter().map(|column| format!("{} × {ENDPOINTS}", column["services"])).collect();
    println!("| services × endpoints | {} |\n| --- |{}", names.join(" | "), " ---: |".repeat(columns.len()));
    for (name, key, factor, unit) in rows {
        let values: Vec<_> = columns
            .iter()
            .map(|column| Ok(format!("{:.1} {unit}", number(column, key)? * factor)))
            .collect::<anyhow::Result<_>>()?;
        println!("| {name} | {} |", values.join(" | "));
    }
    for key in ["pure", "cold", "handled", "visible_p50"] {
        println!("{key}: {:.2} times as long", number(&columns[1], key)? / number(&columns[0], key)?);
    }
    Ok(())
}
