//! What checking and registering cost: a thousand checks at an interval of a second, and a thousand instances at once.
//!
//! The checks run on one thread, as in an agent; what they ask is answered on another, whose time is not counted. The store is a
//! real etcd. Prints the tables of `benches/README.md`.
#![allow(clippy::print_stdout, reason = "a program whose result is a table")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::num::{NonZeroU16, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nerve::check::{Beginning, CheckMode, CheckSpec, Damping, Metrics, Runner, Subject};
use nerve::document::Document;
use nerve::model::{Health, InstanceId, ServiceName};
use nerve::registrar::{self, Config};
use nerve::source::{ApiSource, ConfigSource, Draft, Local, Located, Origin};
use nerve::tasks::Tasks;
use nix::time::{ClockId, clock_gettime};
use plexus_benches::etcd;
use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const COUNT: usize = 1000;
/// How long each is measured.
const SECONDS: u64 = 20;
const CHECKS: [(&str, &str); 3] = [
    ("tcp", "tcp = true"),
    ("http", "http = \"/healthz\""),
    ("ttl, each told once a second", "ttl = \"10s\""),
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let address = answer()?;
    println!("| {COUNT} checks at an interval of a second | of a core | probes a second |");
    println!("| --- | ---: | ---: |");
    for (name, check) in CHECKS {
        let (share, rate) = checking(address, check).await?;
        println!("| {name} | {:.1} % | {rate:.0} |", share * 100.0);
    }
    println!();
    storm().await
}

/// Something that answers every request, on a thread of its own, and keeps connections as servers do.
fn answer() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            let tasks = Tasks::new();
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { continue };
                tasks.spawn("answer", async move {
                    let mut request = [0; 1024];
                    // A `tcp` check sends nothing, and closes at once.
                    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
    Ok(address)
}

fn spec(text: &str) -> anyhow::Result<CheckSpec> {
    Ok(Document::parse("bench", text)?.decode(CheckSpec::read)?)
}

/// The share of a core that the checks take, and how many probes there are a second.
async fn checking(address: SocketAddr, check: &str) -> anyhow::Result<(f64, f64)> {
    let is_told = check.starts_with("ttl");
    let check = spec(&if is_told { check.to_owned() } else { format!("{check}\ninterval = \"1s\"") })?;
    let (tasks, metrics, registry) = (Tasks::new(), Metrics::default(), Registry::new());
    metrics.register(&registry)?;
    let slots = NonZeroUsize::new(512).context("a number")?;
    let runner = Runner::new(tasks.clone(), slots, Damping::default(), metrics);
    let mut monitors = Vec::new();
    for number in 0..COUNT {
        let subject = Subject {
            service: ServiceName::new("web")?,
            id: InstanceId::new(&format!("web-{number}"))?,
            on: address.into(),
            checks: vec![check.clone()],
            mode: CheckMode::All,
        };
        monitors.push(runner.start(subject, Beginning::With(Health::Starting), || ()));
    }
    let tell = |number: usize| {
        let report =
            nerve::check::SelfReport { level: nerve::check::Level::Passing, text: "well".to_owned() };
        monitors[number].tell(0, report);
    };
    if is_told {
        (0..COUNT).for_each(tell);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while monitors.iter().any(|monitor| monitor.verdict().0 != Health::Passing) {
        ensure!(Instant::now() < deadline, "not all pass: {:?}", monitors[0].report());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (cpu, probes, begun) =
        (thread_time()?, total(&registry, "plexus_check_probes_total"), Instant::now());
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for tick in 0..SECONDS * 10 {
        ticks.tick().await;
        if is_told {
            let first = usize::try_from(tick % 10)? * COUNT / 10;
            (first..first + COUNT / 10).for_each(tell);
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let share = (thread_time()? - cpu).as_secs_f64() / took;
    let rate = (total(&registry, "plexus_check_probes_total") - probes) / took;
    drop(monitors);
    tasks.shutdown().await;
    Ok((share, rate))
}

/// A thousand instances are defined at once, and then all of them change twenty times within a second.
async fn storm() -> anyhow::Result<()> {
    let server = etcd::Etcd::start()?;
    server.ready().await?;
    let local = Local { node: "a".parse()?, address: IpAddr::from(Ipv4Addr::LOCALHOST) };
    let mut defined = Vec::new();
    for port in 1..=u16::try_from(COUNT)? {
        let draft = Draft::new("web".parse()?, NonZeroU16::new(port).context("a port")?);
        let origin = Origin::Config { file: "bench".into(), line: 1 };
        defined.push(Located { definition: draft.resolve(&local)?, origin });
    }
    let (tasks, metrics, registry) = (Tasks::new(), registrar::Metrics::default(), Registry::new());
    metrics.register(&registry)?;
    let store = etcd::open(server.url(), "/storm")?;
    let config = Config::new(local.node.clone(), local.address, "bench");
    let source = ConfigSource::new(defined);
    let begun = Instant::now();
    let api = ApiSource::open(None, local);
    let handle = registrar::start(config, Arc::clone(&store), &[&source], api, &tasks, metrics, None);
    wait(&registry, "plexus_registrar_registered_instances", COUNT).await?;
    let (registered, first) = (begun.elapsed(), total(&registry, "plexus_registrar_writes_total"));
    let begun = Instant::now();
    for turn in 0..21 {
        handle.set_node_drain(turn % 2 == 0).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let changed = begun.elapsed();
    let deadline = Instant::now() + Duration::from_secs(60);
    while total(&registry, "plexus_registrar_pending_writes") > 0.0 {
        ensure!(Instant::now() < deadline, "never settled");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let settled = begun.elapsed() - changed;
    let writes = total(&registry, "plexus_registrar_writes_total") - first;
    println!("| {COUNT} instances over a real etcd | |");
    println!("| --- | ---: |");
    println!("| defined at once → all registered | {:.0} ms |", registered.as_secs_f64() * 1e3);
    println!("| … writes | {first:.0} |");
    println!("| all of them change 21 times within {:.1} s: writes | {writes:.0} |", changed.as_secs_f64());
    println!("| … last change → its state is in the store | {:.0} ms |", settled.as_secs_f64() * 1e3);
    handle.deregister_all(Duration::from_secs(30)).await?;
    tasks.shutdown().await;
    store.shutdown().await;
    Ok(())
}

async fn wait(registry: &Registry, name: &str, count: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while total(registry, name) < count as f64 {
        ensure!(Instant::now() < deadline, "{name} never came to {count}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// The sum of a metric over its labels.
fn total(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    let metrics =
        families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
    metrics.map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value()).sum()
}

/// What this thread has used of the processor.
fn thread_time() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
