//! An agent with a virtual address for each of ten thousand services: seconds to start, memory, descriptors.
//!
//! Runs in a network namespace of its own (as root): an etcd, a fleet of services with one instance each, and the agent
//! that ships (`target/release/plexus`). It is started twice: the first start claims every address, the second finds
//! them claimed. Prints the table of `benches/README.md`.
#![allow(clippy::print_stdout, reason = "a program whose result is a table")]

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::{StreamExt, TryStreamExt};
use nerve::store::Key;
use plexus_benches::{etcd, fleet};
use serde_json::Value;

const SERVICES: usize = 10_000;
const RANGE: &str = "10.96.0.0/16";
const ADMIN: &str = "127.0.0.1:7070";
/// Set in the process that runs inside the namespace.
const INSIDE: &str = "PLEXUS_BENCH_INSIDE";
const LONGEST: Duration = Duration::from_secs(180);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    if env::var_os(INSIDE).is_none() {
        let script = "ip link set lo up && exec \"$0\"";
        let status = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .arg(env::current_exe()?)
            .env(INSIDE, "1")
            .status()?;
        ensure!(status.success(), "it needs root, to have a network namespace of its own");
        return Ok(());
    }
    let program = env::current_exe()?.with_file_name("plexus");
    ensure!(program.exists(), "{} is not there: cargo build --release -p mesh", program.display());
    let server = etcd::Etcd::start()?;
    server.ready().await?;
    register(server.url()).await?;
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("plexus.toml");
    fs::write(&config, configuration(server.url()))?;
    let (first, bare) = (run(&program, &config, directory.path())?, run_bare(&program, &config)?);
    let second = run(&program, &config, directory.path())?;
    println!(
        "| {SERVICES} services, one port each | with virtual addresses | without |\n| --- | ---: | ---: |"
    );
    println!("| first start → every address claimed and open | {:.1} s | – |", first.seconds);
    println!(
        "| later start → every address open | {:.1} s | {:.1} s (catalog) |",
        second.seconds, bare.seconds
    );
    println!("| resident memory | {:.0} MiB | {:.0} MiB |", second.mebibytes, bare.mebibytes);
    println!("| open descriptors | {} | {} |", second.descriptors, bare.descriptors);
    println!("| one connection to each of 100 addresses, all answered in | {:.0} ms | – |", second.asked_ms);
    Ok(())
}

/// Services whose only instance is the agent's own admin interface, so that there is something to connect to.
async fn register(url: &str) -> anyhow::Result<()> {
    let store = etcd::open(url, nerve::store::DEFAULT_PREFIX)?;
    let instances = (0..SERVICES).map(|number| {
        let store = Arc::clone(&store);
        async move {
            let mut instance = fleet::instance(&fleet::service_name(number)?, 0, 100)?;
            let admin: SocketAddr = ADMIN.parse()?;
            instance.address = admin.ip();
            instance.port = Some(admin.port().try_into()?);
            let path = Key::Instance(instance.service.clone(), instance.id.clone()).path();
            store.put(&path, serde_json::to_vec(&instance)?, None).await?;
            anyhow::Ok(())
        }
    });
    futures_util::stream::iter(instances).buffer_unordered(128).try_collect::<()>().await?;
    store.shutdown().await;
    Ok(())
}

fn configuration(url: &str) -> String {
    format!(
        "state_dir = \"state\"\n[node]\nname = \"bench\"\naddress = \"127.0.0.1\"\n[store]\nurl = \"{url}\"\n\
         [dns]\nenabled = false\n[log]\nlevel = \"warn\"\n[drain]\nnotice = \"1ms\"\n[vip]\nrange = [\"{RANGE}\"]\n"
    )
}

struct Figures {
    seconds: f64,
    mebibytes: f64,
    descriptors: usize,
    asked_ms: f64,
}

/// The agent until all is open, and what it takes then.
fn run(program: &Path, config: &Path, directory: &Path) -> anyhow::Result<Figures> {
    let (mut agent, started) = (start(program, config)?, Instant::now());
    let figures = (|| {
        // Counted from outside: asking the agent for the metrics of ten thousand services 50 times a second is work as well.
        wait(started, || descriptors(&agent).ok(), SERVICES)?;
        let (seconds, mebibytes) = (started.elapsed().as_secs_f64(), resident(&agent)?);
        wait(started, || metric("plexus_listeners_open"), SERVICES)?;
        ensure!(
            metric("plexus_listeners_failed") == Some(0),
            "some are not open: see {}",
            directory.display()
        );
        let asked = Instant::now();
        for address in addresses()? {
            ensure!(get(address, "/healthz")?.contains("ok"), "no answer from {address}");
        }
        let asked_ms = asked.elapsed().as_secs_f64() * 1e3;
        Ok(Figures { seconds, asked_ms, mebibytes, descriptors: descriptors(&agent)? })
    })();
    end(&mut agent)?;
    figures
}

/// The same without ranges: what the catalog alone costs.
fn run_bare(program: &Path, config: &Path) -> anyhow::Result<Figures> {
    let bare = config.with_file_name("bare.toml");
    fs::write(&bare, fs::read_to_string(config)?.replace(&format!("\"{RANGE}\""), ""))?;
    fs::remove_dir_all(config.with_file_name("state"))?;
    let (mut agent, started) = (start(program, &bare)?, Instant::now());
    let waited = wait(started, || metric("plexus_catalog_services"), SERVICES);
    let seconds = started.elapsed().as_secs_f64();
    let figures = (|| {
        Ok(Figures {
            seconds,
            asked_ms: 0.0,
            mebibytes: resident(&agent)?,
            descriptors: descriptors(&agent)?,
        })
    })();
    end(&mut agent)?;
    waited.and(figures)
}

fn start(program: &Path, config: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new(program);
    command.arg("agent").arg("--config").arg(config).stdin(Stdio::null());
    command.spawn().context("start the agent")
}

fn end(agent: &mut Child) -> anyhow::Result<()> {
    // As a crash would end it: the next start is to be the same as after one.
    agent.kill()?;
    agent.wait()?;
    Ok(())
}

fn wait(started: Instant, mut value: impl FnMut() -> Option<usize>, least: usize) -> anyhow::Result<()> {
    loop {
        let now = value();
        if now.is_some_and(|now| now >= least) {
            return Ok(());
        }
        if started.elapsed() > LONGEST {
            bail!("{now:?} of {least} after {LONGEST:?}");
        }
        #[allow(
            clippy::disallowed_methods,
            reason = "a poll of a condition with a deadline, in a program of its own"
        )]
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn metric(name: &str) -> Option<usize> {
    let text = get(ADMIN.parse().ok()?, "/metrics").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// A hundred of the virtual addresses, with the port.
fn addresses() -> anyhow::Result<Vec<SocketAddr>> {
    let answer = get(ADMIN.parse()?, "/v1/plexus/services")?;
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").context("no answer")?.1)?;
    let services = body["services"].as_array().context("no services")?;
    let port = ADMIN.parse::<SocketAddr>()?.port();
    let of = |service: &Value| {
        let ip: IpAddr = service["vips"][0].as_str().context("a service without an address")?.parse()?;
        anyhow::Ok(SocketAddr::new(ip, port))
    };
    services.iter().step_by(SERVICES / 100).map(of).collect()
}

fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn resident(agent: &Child) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

fn descriptors(agent: &Child) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", agent.id()))?.count())
}
