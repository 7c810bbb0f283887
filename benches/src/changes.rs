//! Changes: how soon one is in use, what a thousand a second cost, and what it costs the store to tell a thousand watchers.
//!
//! Prints the tables of `benches/README.md`.
#![allow(clippy::print_stdout, reason = "a program whose result is a table")]

use std::env;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::StreamExt;
use nerve::model::{Instance, ServiceName};
use nerve::store::Store;
use nerve::tasks::Tasks;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use plexus_tests::Cluster;
use plexus_tests::client::http;
use serde_json::json;
use synapse::catalog::Catalog;
use synapse::{Metrics, watch};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{etcd, fleet};

const PREFIX: &str = "/fleet";
const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;
/// Changes a second, and for so many seconds.
const RATE: usize = 1_000;
const SECONDS: usize = 10;
/// A prime, to visit services in an order that no cache foresees.
const STEP: usize = 7919;
/// Watchers, and changes that each of them is told.
const WATCHERS: usize = 1_000;
const TOLD: usize = 100;
/// Changes whose way to the first connection is measured.
const USED: usize = 300;
const PUBLISHED: u16 = 8080;
const LONGEST: Duration = Duration::from_secs(20);

/// Runs the parts that are named; without names, all of them.
///
/// # Errors
/// A part has no such name, or something that it needs is not there.
pub fn run(parts: &[String]) -> anyhow::Result<()> {
    let all = ["use", "rate", "watchers"].map(str::to_owned);
    let here = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let [part, url] = parts
        && part == "write"
    {
        return here()?.block_on(write(url));
    }
    for part in if parts.is_empty() { &all[..] } else { parts } {
        match part.as_str() {
            "use" => in_use()?,
            "rate" => here()?.block_on(rate())?,
            "watchers" => here()?.block_on(watchers())?,
            other => bail!("there is no part {other:?}; there are use, rate and watchers"),
        }
    }
    Ok(())
}

/// Three nodes: a change of where a service's only instance is stands in the store, and the next connection to the port that the
/// service is published on, of a node that has no instance, is there.
fn in_use() -> anyhow::Result<()> {
    let cluster =
        Cluster::of(3).settings(|settings| settings.more = "[log]\nlevel = \"warn\"\n".to_owned()).start();
    let [a, _, c] = cluster.nodes();
    let backends = [9000, 9001].map(|port| a.backend("web", port));
    let record = |port: u16| -> anyhow::Result<Instance> {
        let record = json!({"service": "web", "id": "web-1", "node": "a", "address": a.address(), "port": port, "health": "passing"});
        Ok(serde_json::from_value(record)?)
    };
    let records = [record(9000)?, record(9001)?];
    let ids = [backends[0].id().to_owned(), backends[1].id().to_owned()];
    let first = records[0].clone();
    let put = etcd::inside(c.namespace(), &cluster.etcd().url(), async move |store| {
        etcd::put(&store, &first).await
    })?;
    put.join().map_err(|_| anyhow::anyhow!("the first write panicked"))??;
    cluster.wait_serving("web", &["web-1"]);
    cluster.publish("web", PUBLISHED);
    let at = c.at(PUBLISHED);
    let measured = etcd::inside(c.namespace(), &cluster.etcd().url(), async move |store| {
        let mut times = Vec::new();
        for round in 1..=USED {
            let side = round % 2;
            etcd::put(&store, &records[side]).await?;
            times.push(first_connection(at, &ids[side])?);
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        Ok(times)
    })?;
    let mut times = measured.join().map_err(|_| anyhow::anyhow!("the measurement panicked"))??;
    let [median, tail, longest] = quantiles(&mut times);
    println!(
        "| three nodes, {USED} changes | median | 99th percentile | longest |\n| --- | ---: | ---: | ---: |"
    );
    println!(
        "| the store has said that it has it → a connection is answered by it | {median} | {tail} | {longest} |\n"
    );
    Ok(())
}

/// How long it is until a connection is answered by this instance.
fn first_connection(at: SocketAddr, id: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    loop {
        let answer =
            http::get(at, "/").map_err(|failure| anyhow::anyhow!("a connection failed: {failure}"))?;
        if answer.instance().as_deref() == Some(id) {
            return Ok(begun.elapsed());
        }
        ensure!(begun.elapsed() < LONGEST, "the change is not in use after {LONGEST:?}");
    }
}

/// A large fleet of which a thousand instances change each second, written by another process.
async fn rate() -> anyhow::Result<()> {
    let server = etcd::Etcd::start()?;
    server.ready().await?;
    etcd::register(server.url(), PREFIX, fleet::instances(SERVICES, ENDPOINTS)?).await?;
    let (tasks, store) = (Tasks::new(), etcd::open(server.url(), PREFIX)?);
    let catalog = follow(&store, &tasks).await?;
    let (us, own, of_etcd, begun) =
        (std::process::id(), cpu(std::process::id())?, cpu(server.id())?, Instant::now());
    let mut writer = Command::new(env::current_exe()?).args(["write", server.url()]).spawn()?;
    let ended = tokio::task::spawn_blocking(move || writer.wait()).await??;
    ensure!(ended.success(), "the writer failed");
    let last = changed(RATE * SECONDS - 1)?;
    let is_there = || weight(&catalog, &last.service, &last) == Some(last.weight.0.get());
    while !is_there() {
        ensure!(begun.elapsed() < LONGEST + LONGEST, "the last change is not there");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (took, own, of_etcd) = (begun.elapsed().as_secs_f64(), cpu(us)? - own, cpu(server.id())? - of_etcd);
    let share = |used: Duration| format!("{:.1} %", used.as_secs_f64() / took * 100.0);
    #[allow(clippy::cast_precision_loss, reason = "some thousands")]
    let rate = (RATE * SECONDS) as f64 / took;
    println!(
        "| {SERVICES} × {ENDPOINTS} endpoints, {rate:.0} changes a second | of one core |\n| --- | ---: |"
    );
    println!("| watched and applied | {} |\n| etcd | {} |\n", share(own), share(of_etcd));
    tasks.shutdown().await;
    store.shutdown().await;
    Ok(())
}

/// The other process: so many changes a second.
async fn write(url: &str) -> anyhow::Result<()> {
    let store = etcd::open(url, PREFIX)?;
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(RATE)?);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let changes = futures_util::stream::unfold((0, ticks), async |(number, mut ticks)| {
        if number == RATE * SECONDS {
            return None;
        }
        ticks.tick().await;
        Some((number, (number + 1, ticks)))
    });
    let put = |number| {
        let store = &store;
        async move { etcd::put(store, &changed(number)?).await }
    };
    let mut puts = std::pin::pin!(changes.map(put).buffered(128));
    while let Some(done) = puts.next().await {
        done?;
    }
    store.shutdown().await;
    Ok(())
}

fn changed(number: usize) -> anyhow::Result<Instance> {
    let service = fleet::service_name(number * STEP % SERVICES)?;
    fleet::instance(&service, 5, 101 + u16::try_from(number % 60_000)?)
}

/// A thousand watchers, each with a connection and a catalog of its own, are told of one change after the other.
async fn watchers() -> anyhow::Result<()> {
    let server = etcd::Etcd::start()?;
    server.ready().await?;
    etcd::register(server.url(), PREFIX, fleet::instances(100, ENDPOINTS)?).await?;
    let (tasks, service) = (Tasks::new(), fleet::service_name(0)?);
    let (heard, mut hears) = mpsc::channel(WATCHERS);
    let mut stores = Vec::new();
    for _ in 0..WATCHERS {
        let store = etcd::open(server.url(), PREFIX)?;
        let (catalog, heard, service) = (follow(&store, &tasks).await?, heard.clone(), service.clone());
        let (stop, instance) = (tasks.stop_token(), fleet::instance(&service, 5, 1)?);
        tasks.spawn("listener", async move {
            let listen = async {
                let mut changes = catalog.subscribe();
                let mut last = None;
                loop {
                    changes.changed().await;
                    let now = weight(&catalog, &service, &instance);
                    if now != std::mem::replace(&mut last, now)
                        && heard.send((now, Instant::now())).await.is_err()
                    {
                        return;
                    }
                }
            };
            let _ = stop.run_until_cancelled(listen).await;
        });
        stores.push(store);
    }
    let writer = etcd::open(server.url(), PREFIX)?;
    let (mut times, mut lasts) = (Vec::new(), Vec::new());
    let (own, of_etcd) = (cpu(std::process::id())?, cpu(server.id())?);
    for round in 0..TOLD {
        let now = 200 + u16::try_from(round)?;
        let begun = Instant::now();
        etcd::put(&writer, &fleet::instance(&service, 5, now)?).await?;
        let mut told = 0;
        while told < WATCHERS {
            let (weight, at) = timeout(LONGEST, hears.recv()).await?.context("nobody listens")?;
            if weight == Some(now) {
                times.push(at - begun);
                told += 1;
            }
        }
        lasts.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let each = |used: Duration| format!("{:.1} ms", used.as_secs_f64() * 1e3 / TOLD as f64);
    let (own, of_etcd) = (cpu(std::process::id())? - own, cpu(server.id())? - of_etcd);
    let ([median, tail, longest], [last, ..]) = (quantiles(&mut times), quantiles(&mut lasts));
    println!("| {WATCHERS} watchers in one process, {TOLD} changes | |\n| --- | ---: |");
    println!(
        "| etcd put → visible in a catalog, median | {median} |\n| … 99th percentile | {tail} |\n| … longest | {longest} |"
    );
    println!("| etcd put → visible in all, median | {last} |");
    println!(
        "| etcd, processor time a change | {} |\n| all watchers together | {} |",
        each(of_etcd),
        each(own)
    );
    drop(hears);
    tasks.shutdown().await;
    for store in stores.into_iter().chain([writer]) {
        store.shutdown().await;
    }
    Ok(())
}

async fn follow(store: &Arc<dyn Store>, tasks: &Tasks) -> anyhow::Result<Catalog> {
    let ((catalog, writer), config) = (Catalog::new(), watch::store::Config::default());
    let watcher = watch::store::start(config, Arc::clone(store), writer, None, Metrics::new()?, tasks);
    timeout(LONGEST, watcher.filled()).await?;
    Ok(catalog)
}

fn weight(catalog: &Catalog, service: &ServiceName, instance: &Instance) -> Option<u16> {
    let service = catalog.service(service.as_str())?;
    Some(service.endpoint(&instance.id)?.instance.weight.0.get())
}

/// Processor time of a process so far.
fn cpu(process: u32) -> anyhow::Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(process)?))?;
    Ok(clock.now()?.into())
}

/// Median, 99th percentile and the longest.
fn quantiles(times: &mut [Duration]) -> [String; 3] {
    times.sort_unstable();
    let at = |percent: usize| {
        times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
    };
    [50, 99, 100].map(|percent| format!("{:.1} ms", at(percent).as_secs_f64() * 1e3))
}
