//! The run: rounds in which every peer is measured once, so that a machine that changes its mind changes it for all.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use plexus_tests::{can_make_namespaces, missing_programs};

use super::ahead::Ahead;
use super::balancer::Peer;
use super::case::{CASES, Case};
use super::interrupt;
use super::options::Options;
use super::report::{self, Columns};
use super::sample::{self, Sample, Terms};
use super::save;

/// Measures what the options ask for; prints tables as it goes.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    interrupt::watch()?;
    let terms = terms(options)?;
    ensure!(options.rounds > 0, "--rounds 0 measures nothing");
    ensure!(
        can_make_namespaces(),
        "network namespaces cannot be made here: run it as root (sudo), or in a user namespace (unshare -Urnm)"
    );
    let _ahead = if options.ahead { Some(Ahead::new()?) } else { None };
    let cases = if options.cases.is_empty() { CASES.to_vec() } else { options.cases.clone() };
    let directory = options.save.as_deref().map(save::directory).transpose()?;
    let conditions = save::conditions(&terms.plexus)?;
    let (mut results, mut tables) = (Vec::new(), String::new());
    for case in &cases {
        for &threads in &options.threads {
            say_limits(case, threads)?;
            let columns = measure(case, threads, &peers(options, case)?, options.rounds, &terms)?;
            let table = report::table(case, threads, &columns);
            println!("{table}");
            tables.push_str(&table);
            results.push((*case, threads, columns));
            let samples: Vec<&Sample> =
                results.iter().flat_map(|(_, _, columns)| columns.values().flatten()).collect();
            if let Some(file) = &options.json {
                save::samples(file, &samples)?;
            }
            if let Some(directory) = &directory {
                save::samples(&directory.join("side-by-side.json"), &samples)?;
                let text = format!("{conditions}{tables}{}", report::summary(&results));
                let file = directory.join("side-by-side.md");
                std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            }
        }
    }
    println!("{}\n{conditions}", report::summary(&results));
    Ok(())
}

fn terms(options: &Options) -> anyhow::Result<Terms> {
    let seconds = |value: f64| Duration::try_from_secs_f64(value).context("not a number of seconds");
    let plexus = match &options.plexus {
        Some(given) => given.clone(),
        None => std::env::current_exe()?.with_file_name("plexus"),
    };
    let is_needed = options.peers.is_empty() || options.peers.contains(&Peer::Plexus);
    ensure!(
        !is_needed || plexus.is_file(),
        "no {}: cargo build --release -p mesh, or give --plexus",
        plexus.display()
    );
    Ok(Terms {
        warm_up: seconds(options.warm_up)?,
        window: seconds(options.seconds)?,
        plexus: if is_needed { plexus.canonicalize()? } else { plexus },
        faulty: options.faulty_backend,
        patience: seconds(options.patience)?,
    })
}

/// Who is measured in a case. What is not installed is left out, and said, unless it was asked for by name.
fn peers(options: &Options, case: &Case) -> anyhow::Result<Vec<Peer>> {
    let asked = !options.peers.is_empty();
    let mut peers = if asked { options.peers.clone() } else { Peer::USUAL.to_vec() };
    if !asked && !case.streams() {
        peers.retain(|peer| *peer != Peer::HaproxyCopy);
    }
    let missing: Vec<&str> = peers
        .iter()
        .filter_map(|peer| peer.program())
        .filter(|name| !missing_programs(&[name]).is_empty())
        .collect();
    ensure!(!asked || missing.is_empty(), "not installed: {}", missing.join(", "));
    for name in &missing {
        println!("{case}: {name} is not installed and left out");
    }
    peers.retain(|peer| peer.program().is_none_or(|name| !missing.contains(&name)));
    ensure!(!peers.is_empty(), "nobody to measure");
    Ok(peers)
}

fn measure(
    case: &Case,
    threads: usize,
    peers: &[Peer],
    rounds: usize,
    terms: &Terms,
) -> anyhow::Result<Columns> {
    let mut columns = Columns::new();
    let mut peers = peers.to_vec();
    for round in 0..rounds {
        for peer in peers.clone() {
            interrupt::check()?;
            let taken = sample::take(case, peer, threads, round, terms);
            match taken.with_context(|| format!("{case}, {peer}, {threads} threads, round {round}"))? {
                Ok(sample) => {
                    eprintln!("{}", progress(case, &sample));
                    columns.entry(peer).or_default().push(sample);
                }
                Err(unable) => {
                    println!("{case}: skipped {peer}: {}", unable.0);
                    peers.retain(|other| *other != peer);
                }
            }
        }
        // Whoever comes first in this round comes last in the next.
        if !peers.is_empty() {
            peers.rotate_left(1);
        }
    }
    Ok(columns)
}

/// Says where the limit of open files makes a case smaller than its name.
fn say_limits(case: &Case, threads: usize) -> anyhow::Result<()> {
    let limits = sample::limits(case, threads)?;
    if limits.clients < case.concurrency {
        println!("{case}: {} connections, as many as the limit of open files allows", limits.clients);
    }
    if limits.listeners < case.listeners {
        println!("{case}: {} listeners, as many as the limit of open files allows", limits.listeners);
    }
    Ok(())
}

/// One line for who waits, with the errors by kind.
fn progress(case: &Case, sample: &Sample) -> String {
    let (round, peer, errors) = (sample.round, &sample.peer, &sample.errors);
    let failed = if errors.total() == 0 { String::new() } else { format!(" {errors:?}") };
    format!("{case} round {round} {peer}: {:.2} {}{failed}", sample.figures.rate, case.unit().plural)
}
