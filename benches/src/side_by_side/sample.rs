//! One measurement: a lab is set up, one balancer serves one load in it for a while, and everything is taken down.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use plexus_tests::wait_until;
use serde::{Deserialize, Serialize};

use super::actor::Actor;
use super::backend::Role;
use super::balancer::{self, Balancer, Peer, Setup, Unable};
use super::case::Case;
use super::interrupt;
use super::lab::{self, DATAGRAM_ENDPOINTS, Lab};
use super::message::{self, LENGTH};
use super::plan::{Errors, Latency, Load, Plan, Served, Tally};
use super::usage::{self, Used, Watched};

/// How long a balancer may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of descriptors, what is not for connections: listeners aside.
const RESERVED: u64 = 1100;
/// The machine counts as quiet when so little of it is used.
const QUIET: f64 = 0.04;

/// What all measurements of a run have in common.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// Load that is not counted, before.
    pub(crate) warm_up: Duration,
    /// Load that is counted.
    pub(crate) window: Duration,
    /// The program of [`Peer::Plexus`].
    pub(crate) plexus: PathBuf,
    /// The backend makes mistakes, which must be found.
    pub(crate) faulty: bool,
    /// How long a quiet machine is waited for.
    pub(crate) patience: Duration,
}

/// What was measured. Costs are seconds of processor time for one unit of work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// The case.
    pub(crate) case: String,
    /// Who balanced.
    pub(crate) peer: String,
    /// With how many threads.
    pub(crate) threads: usize,
    /// Which round, from 0.
    pub(crate) round: usize,
    /// Units of work a second.
    pub(crate) rate: f64,
    /// The balancer's processes, kernel's work on their behalf included.
    pub(crate) balancer: f64,
    /// Of this, in their own code.
    pub(crate) balancer_user: f64,
    /// The whole machine: client, balancer, backend, kernel.
    pub(crate) machine: f64,
    /// The load generator.
    pub(crate) client: f64,
    /// The backend.
    pub(crate) backend: f64,
    /// Of the machine's processor time, the share of others; what was measured under much of it is worth little.
    pub(crate) foreign: f64,
    /// Of the machine's processor time, the share that was used.
    pub(crate) busy: f64,
    /// How long operations took.
    pub(crate) latency: Latency,
    /// What failed, as the client and the backend saw it.
    pub(crate) errors: Errors,
}

/// Measures, unless the peer has no part in this case.
pub(crate) fn take(
    case: &Case,
    peer: Peer,
    threads: usize,
    round: usize,
    terms: &Terms,
) -> anyhow::Result<Result<Sample, Unable>> {
    let lab = Lab::new()?;
    let mut backend = start_backend(&lab, case, terms)?;
    let setup = setup(case, threads, terms)?;
    let mut balancer = match balancer::start(peer, &lab, &setup)? {
        Ok(balancer) => balancer,
        Err(unable) => return Ok(Err(unable)),
    };
    if !setup.datagrams {
        await_answer(&lab, &mut balancer, case.role())?;
    }
    await_quiet(terms.patience)?;

    let plan = Plan {
        load: case.load,
        targets: balancer.targets.clone(),
        concurrency: case.concurrency,
        warm_up: terms.warm_up,
        window: terms.window,
    };
    let arguments = ["client".to_owned(), serde_json::to_string(&plan)?];
    let client = Actor::start("client", &lab.client, &arguments)?;
    let watched = Watched::new(usage::processes_in(lab.balancer.name())?, client.id(), backend.id());
    let begin = client.line(terms.warm_up + PATIENCE)?;
    ensure!(begin == "begin", "the client said {begin:?}");
    let (served_before, before) = (served(&mut backend)?, watched.look()?);
    let line = client.line(terms.window + PATIENCE)?;
    let after = watched.look()?;
    let served_after = served(&mut backend)?;
    balancer.check()?;
    let tally: Tally = serde_json::from_str(&line).with_context(|| line.clone())?;
    let used = after.since(&before);
    let work = work(case, &tally, &served_before, &served_after, &used);
    ensure!(work > 0.0, "{peer} carried nothing in {case}: {:?}", tally.errors);
    let errors = tally.errors.and(&served_after.errors.since(&served_before.errors));
    let sample = summary(&used, work, tally.window, tally.latency, errors);
    Ok(Ok(Sample { case: case.name.to_owned(), peer: peer.name().to_owned(), threads, round, ..sample }))
}

fn summary(used: &Used, work: f64, window: Duration, latency: Latency, errors: Errors) -> Sample {
    let rate = work / window.as_secs_f64();
    // The clocks were read a little after the window began and ended.
    let cost = |seconds: f64| seconds / used.elapsed / rate;
    let whole = used.elapsed * used.processors;
    Sample {
        case: String::new(),
        peer: String::new(),
        threads: 0,
        round: 0,
        rate,
        balancer: cost(used.balancer.total),
        balancer_user: cost(used.balancer.user),
        machine: cost(used.busy - used.foreign),
        client: cost(used.client),
        backend: cost(used.backend),
        foreign: used.foreign / whole,
        busy: used.busy / whole,
        latency,
        errors,
    }
}

/// Units of work in the client's window.
fn work(case: &Case, tally: &Tally, before: &Served, after: &Served, used: &Used) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "less than 2^52 bytes in some seconds")]
    let float = |count: u64| count as f64;
    let counted = match case.load {
        // Counted by the backend between the looks at the clocks.
        Load::Up => float(after.bytes - before.bytes) / used.elapsed * tally.window.as_secs_f64(),
        Load::Down => float(tally.bytes),
        Load::Close | Load::Keep | Load::Datagram => float(tally.operations),
        Load::Idle => float(tally.open),
    };
    counted / case.unit().size
}

fn start_backend(lab: &Lab, case: &Case, terms: &Terms) -> anyhow::Result<Actor> {
    let mut arguments = vec!["backend".to_owned()];
    if case.load == Load::Datagram {
        let addresses = (0..DATAGRAM_ENDPOINTS).map(|index| lab::endpoint(index, 0).ip().to_string());
        arguments.extend(addresses.flat_map(|address| ["--datagrams".to_owned(), address]));
    }
    if terms.faulty {
        arguments.push("--faulty".to_owned());
    }
    let backend = Actor::start("backend", &lab.backend, &arguments)?;
    let ready = backend.line(PATIENCE)?;
    ensure!(ready == "ready", "the backend said {ready:?}");
    Ok(backend)
}

fn served(backend: &mut Actor) -> anyhow::Result<Served> {
    let line = backend.ask("served")?;
    serde_json::from_str(&line).with_context(|| line.clone())
}

fn setup(case: &Case, threads: usize, terms: &Terms) -> anyhow::Result<Setup> {
    let port = case.role().port();
    Ok(Setup {
        threads,
        endpoints: (0..case.endpoints).map(|index| lab::endpoint(index, port)).collect(),
        listeners: case.listeners,
        datagrams: case.load == Load::Datagram,
        connections: most_connections(case.listeners)?,
        plexus: terms.plexus.clone(),
    })
}

/// Connections that the limit of open files allows a balancer: two descriptors each, and pipes of a few.
pub(crate) fn most_connections(listeners: u16) -> anyhow::Result<usize> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(1 << 20);
    let left = limit.saturating_sub(RESERVED + u64::from(listeners));
    ensure!(left >= 2000, "the limit of open files, {limit}, is too low; ulimit -Hn");
    // A quarter for pipes, as HAProxy reckons: a connection may have one, of two descriptors, in each direction.
    Ok(usize::try_from(left.min(200_000) / 5 * 2)?)
}

/// Waits until a client is answered through the balancer, so that nothing of its start is measured.
fn await_answer(lab: &Lab, balancer: &mut Balancer, role: Role) -> anyhow::Result<()> {
    let Some(&target) = balancer.targets.last() else { bail!("no targets") };
    let answered = wait_until(
        PATIENCE,
        || {
            interrupt::check()?;
            balancer.check()?;
            Ok(lab.client.enter(move || probe(target, role).map_err(|error| error.to_string())))
        },
        |outcome: &anyhow::Result<Result<(), String>>| !matches!(outcome, Ok(Err(_))),
    );
    match answered {
        Ok(outcome) => outcome?.map_err(anyhow::Error::msg),
        Err(Ok(Err(problem))) => bail!("no answer through {target}: {problem}"),
        Err(_) => bail!("no answer through {target}"),
    }
}

fn probe(target: SocketAddrV4, role: Role) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(target), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    match role {
        Role::Close | Role::Keep => {
            stream.write_all(&message::request(0))?;
            let mut response = [0; LENGTH];
            stream.read_exact(&mut response)?;
            ensure!(message::is_response(&response, 0), "not the response");
        }
        Role::Source => stream.read_exact(&mut [0])?,
        Role::Sink => {
            // The end comes back when it has arrived there.
            stream.shutdown(Shutdown::Write)?;
            ensure!(stream.read(&mut [0])? == 0, "a sink that speaks");
        }
    }
    Ok(())
}

/// Waits until the machine has nothing else to do, or for as long as is worth it.
fn await_quiet(patience: Duration) -> anyhow::Result<()> {
    let quiet = wait_until(
        patience,
        || {
            interrupt::check()?;
            usage::load(Duration::from_millis(200))
        },
        |load: &anyhow::Result<f64>| load.as_ref().map_or(true, |load| *load < QUIET),
    );
    // One that does not become quiet is measured all the same; the sample says how much of it others had.
    quiet.map_or(Ok(()), |load| load.map(drop))
}
