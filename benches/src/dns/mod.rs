//! Name servers side by side: the same names, asked by `dnsperf`, one thread each.
//!
//! Every server has the services of one fleet with two endpoints each: Plexus from etcd, the others from files. They run all the
//! time, on one core, and are asked in turn from the other one, so that what disturbs the machine disturbs each alike. Prints the table of
//! `benches/README.md`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program whose result is a table")]

mod names;
mod perf;
mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nerve::store::Store;

use crate::{etcd, fleet};
use names::Mix;
use perf::Outcome;
use servers::{Name, Server};

/// Endpoints of each service.
const ENDPOINTS: usize = 2;
/// Changes a second while the fleet is restless.
const RATE: u64 = 1_000;
/// Who changes meanwhile: another fleet in the same store, which costs the machine as much; and the one that is answered.
const RESTLESS: [(&str, &str); 2] = [
    ("addresses, 1,000 changes a second of others", "/others"),
    ("addresses, 1,000 changes a second", nerve::store::DEFAULT_PREFIX),
];
/// A prime, to visit services in an order that no cache foresees.
const STEP: usize = 7919;

struct Options {
    names: Vec<usize>,
    rounds: usize,
    seconds: u64,
    servers: Vec<Name>,
    mixes: Vec<Mix>,
}

/// Measures what is asked for.
///
/// # Errors
/// An argument is none, or something that it needs is not there.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    let options = options(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for names in &options.names {
        runtime.block_on(measure(*names, &options))?;
    }
    Ok(())
}

fn options(arguments: &[String]) -> anyhow::Result<Options> {
    let (servers, mixes) = (Name::ALL.to_vec(), Mix::ALL.to_vec());
    let mut options = Options { names: vec![1_000, 100_000], rounds: 5, seconds: 3, servers, mixes };
    for pair in arguments.chunks(2) {
        let [key, value] = pair else { bail!("{} needs a value", pair[0]) };
        let list = value.split(',');
        match key.as_str() {
            "--names" => options.names = list.map(str::parse).collect::<Result<_, _>>()?,
            "--servers" => options.servers = list.map(Name::parse).collect::<anyhow::Result<_>>()?,
            "--mixes" => options.mixes = list.map(Mix::parse).collect::<anyhow::Result<_>>()?,
            "--rounds" => options.rounds = value.parse()?,
            "--seconds" => options.seconds = value.parse()?,
            _ => bail!(
                "there is no option {key}; there are --names, --rounds, --seconds, --servers and --mixes"
            ),
        }
    }
    Ok(options)
}

async fn measure(names: usize, options: &Options) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let store = etcd::Etcd::start()?;
    store.ready().await?;
    etcd::register(store.url(), nerve::store::DEFAULT_PREFIX, fleet::instances(names, ENDPOINTS)?).await?;
    let away = Server::away(names, directory.path()).context("start whom names are forwarded to")?;
    let mut running = Vec::new();
    for name in &options.servers {
        let begun = Instant::now();
        let server = Server::start(*name, names, store.url(), away.port, directory.path())
            .with_context(|| format!("start {}", name.as_str()))?;
        eprintln!("{} answers {names} names after {:.1} s", name.as_str(), begun.elapsed().as_secs_f64());
        running.push(server);
    }
    let mut results: Vec<(Name, &str, Vec<Outcome>)> = Vec::new();
    for mix in &options.mixes {
        let questions = directory.path().join(mix.as_str());
        std::fs::write(&questions, mix.questions(names)?)?;
        let is_asked = |server: &&Server| !matches!(mix, Mix::Forwarded) || server.name.forwards();
        let asked: Vec<&Server> = running.iter().filter(is_asked).collect();
        let mut of_mix: Vec<_> = asked.iter().map(|server| (server.name, mix.as_str(), Vec::new())).collect();
        for server in &asked {
            // What is remembered is remembered by then.
            perf::ask(server, &questions, 1)?;
        }
        for round in 0..options.rounds {
            // The first is another one each time.
            for turn in 0..asked.len() {
                let at = (round + turn) % asked.len();
                of_mix[at].2.push(perf::ask(asked[at], &questions, options.seconds)?);
            }
        }
        results.extend(of_mix);
    }
    if let Some(plexus) = running.iter().find(|server| server.name == Name::Plexus) {
        let questions = directory.path().join("restless");
        std::fs::write(&questions, Mix::Addresses.questions(names)?)?;
        let mut of_prefix = RESTLESS.map(|(label, _)| (Name::Plexus, label, Vec::new()));
        for _ in 0..options.rounds {
            for ((_, prefix), (_, label, outcomes)) in RESTLESS.iter().zip(&mut of_prefix) {
                let restless = Restless::start(store.url(), prefix, names)?;
                outcomes.push(perf::ask(plexus, &questions, options.seconds)?);
                eprintln!("{label}: {:.0} changes a second", restless.stop()?);
            }
        }
        results.extend(of_prefix);
    }
    print(names, &results);
    Ok(())
}

/// Changes of the fleet, one after the other, at a rate.
struct Restless {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    began: (Instant, u64),
    thread: std::thread::JoinHandle<anyhow::Result<()>>,
}

impl Restless {
    fn start(url: &str, prefix: &'static str, names: usize) -> anyhow::Result<Self> {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ending, counted, url) = (Arc::clone(&stop), Arc::clone(&done), url.to_owned());
        let thread = std::thread::Builder::new().spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let store = etcd::open(&url, prefix)?;
                let mut tick = tokio::time::interval(Duration::from_millis(10));
                while !ending.load(Ordering::Relaxed) {
                    tick.tick().await;
                    let from = counted.load(Ordering::Relaxed);
                    let batch = (from..from + RATE / 100).map(|number| change(&store, number, names));
                    futures_util::future::try_join_all(batch).await?;
                    counted.fetch_add(RATE / 100, Ordering::Relaxed);
                }
                store.shutdown().await;
                Ok(())
            })
        })?;
        while done.load(Ordering::Relaxed) == 0 && !thread.is_finished() {
            plexus_tests::pause(Duration::from_millis(1));
        }
        let began = (Instant::now(), done.load(Ordering::Relaxed));
        Ok(Self { stop, done, began, thread })
    }

    /// Tells how many there were a second.
    fn stop(self) -> anyhow::Result<f64> {
        let (began, first) = self.began;
        let seconds = began.elapsed().as_secs_f64();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        #[allow(clippy::cast_precision_loss, reason = "thousands")]
        let rate = (self.done.load(Ordering::Relaxed) - first) as f64 / seconds;
        ensure!(rate > 0.8 * 1e3, "the store took no more than {rate:.0} changes a second");
        Ok(rate)
    }
}

async fn change(store: &Arc<dyn Store>, number: u64, names: usize) -> anyhow::Result<()> {
    let number = usize::try_from(number)?;
    let service = fleet::service_name(number * STEP % names)?;
    let weight = u16::try_from(1 + number % 1000)?;
    etcd::put(store, &fleet::instance(&service, number % ENDPOINTS, weight)?).await
}

fn print(names: usize, results: &[(Name, &str, Vec<Outcome>)]) {
    println!(
        "| {names} names | server | answers a second | of Knot's | µs of processor an answer | of Knot's | lost |"
    );
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    let median = |outcomes: &[Outcome], value: fn(&Outcome) -> f64| {
        let mut values: Vec<f64> = outcomes.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    for (name, mix, outcomes) in results {
        let of = |outcomes: &[Outcome]| [median(outcomes, |o| o.rate), median(outcomes, |o| o.micros)];
        // What is restless is held against Knot at rest, and who forwards against unbound.
        let plain = mix.split(',').next().unwrap_or(mix);
        let of_peer = |peer| results.iter().find(|(name, mix, _)| *name == peer && *mix == plain);
        let peer = of_peer(Name::Knot).or_else(|| of_peer(Name::Unbound));
        let [rate, micros] = of(outcomes);
        let ratio = |at: usize, value: f64| {
            peer.map_or("-".to_owned(), |(_, _, outcomes)| format!("{:.2}", value / of(outcomes)[at]))
        };
        let lost: u64 = outcomes.iter().map(|outcome| outcome.lost).sum();
        println!(
            "| {mix} | {} | {rate:.0} | {} | {micros:.2} | {} | {lost} |",
            name.as_str(),
            ratio(0, rate),
            ratio(1, micros)
        );
    }
    println!();
}
