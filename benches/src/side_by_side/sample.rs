//! One measurement: a lab is set up, one balancer serves one load in it for a while, and everything is taken down.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use plexus_tests::wait_until;
use serde::{Deserialize, Serialize};

use super::actor::Actor;
use super::balancer::{self, Peer, Setup, Unable};
use super::case::Case;
use super::churn::{self, Churn};
use super::interrupt;
use super::lab::{self, DATAGRAM_ENDPOINTS, Lab};
use super::plan::{Errors, Latency, Load, Plan, Served, Tally};
use super::probe;
use super::usage::{self, Used, Watched};

/// How long a balancer may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of descriptors, what is for neither connections nor listeners: plexus keeps 1024, HAProxy needs two for each pipe.
const RESERVED: usize = 1600;
/// More descriptors than this make no difference, and nginx allocates for each.
const MANY: u64 = 200_000;
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

/// What was measured.
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
    /// Throughput and what it cost.
    #[serde(flatten)]
    pub(crate) figures: Figures,
    /// By so much the balancer grew for each connection, in KiB; where connections are what is measured.
    pub(crate) memory: Option<f64>,
    /// Changes of endpoints a second, where there are any.
    pub(crate) changes: Option<f64>,
    /// How long operations took.
    pub(crate) latency: Latency,
    /// What failed, as the client and the backend saw it.
    pub(crate) errors: Errors,
}

/// Throughput and what it cost. Costs are seconds of processor time for one unit of work; of idle connections, for a
/// second of all of them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Units of work a second; of idle connections, how many.
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
    if case.load == Load::Idle && peer == Peer::Direct {
        return Ok(Err(Unable("nobody holds the connections".to_owned())));
    }
    let mut balancer = match balancer::start(peer, &lab, &setup)? {
        Ok(balancer) => balancer,
        Err(unable) => return Ok(Err(unable)),
    };
    probe::await_answer(&lab, &mut balancer, case.role(), setup.datagrams)?;
    await_quiet(terms.patience)?;

    let plan = Plan {
        load: case.load,
        targets: balancer.targets.clone(),
        concurrency: limits(case, threads)?.clients,
        warm_up: terms.warm_up,
        window: terms.window,
    };
    let pids = usage::processes_in(lab.balancer.name())?;
    let memory_before = usage::memory(&pids)?;
    let churn = if case.churns { Some(Churn::start(peer, &lab, setup.spares.clone())?) } else { None };
    let mut client = Actor::start("client", &lab.client, &["client".to_owned()])?;
    client.say(&serde_json::to_string(&plan)?)?;
    let watched = Watched::new(pids, client.id(), backend.id());
    let begin = client.line(terms.warm_up + PATIENCE)?;
    ensure!(begin == "begin", "the client said {begin:?}");
    let (served_before, before) = (served(&mut backend)?, watched.look()?);
    let line = client.line(terms.window + PATIENCE)?;
    let after = watched.look()?;
    let served_after = served(&mut backend)?;
    let memory_after = usage::memory(&watched.balancer)?;
    balancer.check()?;
    let changes = churn.map(Churn::finish).transpose()?;
    let tally: Tally = serde_json::from_str(&line).with_context(|| line.clone())?;
    let used = after.since(&before);
    let work = work(case, &tally, &served_before, &served_after, &used);
    let errors = tally.errors.and(&served_after.errors.since(&served_before.errors));
    ensure!(work > 0.0, "{peer} carried nothing in {case}: {errors:?}");
    #[allow(clippy::cast_precision_loss, reason = "some gigabytes")]
    let memory = (case.load == Load::Idle).then(|| (memory_after as f64 - memory_before as f64) / work);
    let names = (case.name.to_owned(), peer.name().to_owned());
    let figures = figures(case, &used, work, tally.window);
    Ok(Ok(Sample {
        case: names.0,
        peer: names.1,
        threads,
        round,
        figures,
        memory,
        changes,
        latency: tally.latency,
        errors,
    }))
}

fn figures(case: &Case, used: &Used, work: f64, window: Duration) -> Figures {
    // Idle connections are not work that is done but a state that lasts: their cost is that of a second.
    let is_state = case.load == Load::Idle;
    let rate = if is_state { work } else { work / window.as_secs_f64() };
    // The clocks were read a little after the window began and ended.
    let cost = |seconds: f64| seconds / used.elapsed / if is_state { 1.0 } else { rate };
    let whole = used.elapsed * used.processors;
    Figures {
        rate,
        balancer: cost(used.balancer.total),
        balancer_user: cost(used.balancer.user),
        machine: cost(used.busy - used.foreign),
        client: cost(used.client),
        backend: cost(used.backend),
        foreign: used.foreign / whole,
        busy: used.busy / whole,
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
    let limits = limits(case, threads)?;
    let spares = if case.churns { churn::SPARES } else { 0 };
    let endpoint = |index| lab::endpoint(index, port);
    Ok(Setup {
        threads,
        endpoints: (0..case.endpoints).map(endpoint).collect(),
        spares: (case.endpoints..case.endpoints + spares).map(endpoint).collect(),
        listeners: limits.listeners,
        datagrams: case.load == Load::Datagram,
        connections: limits.connections,
        plexus: terms.plexus.clone(),
    })
}

/// What the limit of open files leaves of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Ports that the balancer listens on.
    pub(crate) listeners: u16,
    /// Connections, or whatever the client has, at a time.
    pub(crate) clients: usize,
    /// Connections that a balancer is configured for.
    connections: usize,
}

/// The same for every peer: that of the one with the most descriptors for it. A listener is a socket for each thread with
/// `SO_REUSEPORT`, a connection is two.
pub(crate) fn limits(case: &Case, threads: usize) -> anyhow::Result<Limits> {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(MANY).min(MANY);
    let limit = usize::try_from(limit)?;
    ensure!(limit >= 4 * RESERVED, "the limit of open files, {limit}, is too low: raise ulimit -Hn");
    let left = limit - RESERVED;
    let for_listeners = left - 4 * case.concurrency.min(left / 8);
    let listeners = u16::try_from(usize::from(case.listeners).min(for_listeners / threads))?;
    let connections = (left - usize::from(listeners) * threads) / 2;
    Ok(Limits { listeners, clients: case.concurrency.min(connections), connections })
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
