//! Tables of medians, as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::balancer::Peer;
use super::case::Case;
use super::plan::Load;
use super::sample::Sample;

/// A row: what it says of a sample.
struct Row {
    label: String,
    value: fn(&Sample) -> f64,
    /// From the value to what is shown.
    factor: f64,
    decimals: usize,
    is_ratio_shown: bool,
}

/// The samples of one case with one number of threads, by peer.
pub(crate) type Columns = BTreeMap<Peer, Vec<Sample>>;

/// The table of one case.
pub(crate) fn table(case: &Case, threads: usize, columns: &Columns) -> String {
    let mut text = String::new();
    let reference = reference(columns);
    let names: Vec<&str> = columns.keys().map(|peer| peer.name()).collect();
    let ratio = reference.map(|peer| format!(" plexus ÷ {peer} |")).unwrap_or_default();
    let rounds = columns.values().map(Vec::len).max().unwrap_or(0);
    let threads = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
    // Writing to a string does not fail.
    let _ = writeln!(text, "\n**{case}**, {threads}, median of {rounds}\n");
    let _ = writeln!(text, "| | {} |{ratio}", names.join(" | "));
    let _ = writeln!(
        text,
        "| --- |{}{}",
        " ---: |".repeat(names.len()),
        if ratio.is_empty() { "" } else { " ---: |" }
    );
    for row in rows(case) {
        let medians: Vec<(Peer, f64)> =
            columns.iter().map(|(peer, samples)| (*peer, median(samples, row.value))).collect();
        let shown = medians.iter().map(|(_, value)| format!(" {:.*} |", row.decimals, value * row.factor));
        let _ = write!(text, "| {} |{}", row.label, shown.collect::<String>());
        if reference.is_some() {
            let of = |wanted| medians.iter().find(|(peer, _)| Some(*peer) == wanted).map(|(_, value)| *value);
            let ratio = of(ours(columns)).zip(of(reference)).filter(|_| row.is_ratio_shown);
            let ratio = ratio.map(|(plexus, other)| format!("{:.2}", plexus / other)).unwrap_or_default();
            let _ = write!(text, " {ratio} |");
        }
        text.push('\n');
    }
    text
}

/// One line a case: how plexus stands to the better HAProxy.
pub(crate) fn summary(results: &[(Case, usize, Columns)]) -> String {
    let mut text = String::from(
        "\n| case | threads | throughput | CPU: balancer | CPU: machine | p99 | memory | errors |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for (case, threads, columns) in results {
        let Some(peer) = reference(columns) else { continue };
        let Some(plexus) = ours(columns).map(|ours| &columns[&ours]) else { continue };
        let other = &columns[&peer];
        let ratio = |value: fn(&Sample) -> f64| {
            let ratio = median(plexus, value) / median(other, value);
            if ratio.is_finite() { format!("{ratio:.2}") } else { "–".to_owned() }
        };
        // Connections that do nothing have no throughput, and what they cost is near nothing: see the table.
        let of_work = |value: fn(&Sample) -> f64| {
            if case.load == Load::Idle { "–".to_owned() } else { ratio(value) }
        };
        let errors = |samples: &[Sample]| samples.iter().map(|sample| sample.errors.total()).sum::<u64>();
        let _ = writeln!(
            text,
            "| {case} | {threads} | {} | {} | {} | {} | {} | {} : {} |",
            of_work(|sample| sample.figures.rate),
            of_work(|sample| sample.figures.balancer),
            of_work(|sample| sample.figures.machine),
            of_work(|sample| sample.latency.p99.as_secs_f64()),
            ratio(|sample| sample.memory.unwrap_or(f64::NAN)),
            errors(plexus),
            errors(other),
        );
    }
    text.push_str(
        "\nEach is plexus ÷ HAProxy, of HAProxy's two the one that carries more; errors are sums.\n",
    );
    text
}

/// What of ours is compared with others: a tunnel, where there is one, with another pair.
fn ours(columns: &Columns) -> Option<Peer> {
    [Peer::Tunnel, Peer::Plexus].into_iter().find(|peer| columns.contains_key(peer))
}

/// Whom it is compared with: the HAProxy that carries more.
fn reference(columns: &Columns) -> Option<Peer> {
    if ours(columns)? == Peer::Tunnel {
        return Some(Peer::HaproxyTls).filter(|peer| columns.contains_key(peer));
    }
    let rate = |peer: &Peer| columns.get(peer).map(|samples| median(samples, |sample| sample.figures.rate));
    let found = [Peer::Haproxy, Peer::HaproxyCopy].into_iter().filter(|peer| columns.contains_key(peer));
    found.max_by(|a, b| rate(a).partial_cmp(&rate(b)).unwrap_or(std::cmp::Ordering::Equal))
}

fn rows(case: &Case) -> Vec<Row> {
    let unit = case.unit();
    #[allow(clippy::cast_precision_loss, reason = "some errors")]
    let errors = || Row {
        label: "errors, median".to_owned(),
        value: |sample| sample.errors.total() as f64,
        factor: 1.0,
        decimals: 0,
        is_ratio_shown: false,
    };
    let row = |label: String, value: fn(&Sample) -> f64, factor, decimals, is_ratio_shown| Row {
        label,
        value,
        factor,
        decimals,
        is_ratio_shown,
    };
    if case.load == Load::Idle {
        return vec![
            row("connections".to_owned(), |sample| sample.figures.rate, 1.0, 0, false),
            row("KiB a connection".to_owned(), |sample| sample.memory.unwrap_or(f64::NAN), 1.0, 2, true),
            row(
                "CPU of the balancer, % of one".to_owned(),
                |sample| sample.figures.balancer,
                100.0,
                3,
                false,
            ),
            errors(),
        ];
    }
    let streams = case.streams();
    let (factor, name, decimals) = if streams { (1e3, "ms", 1) } else { (1e6, "µs", 2) };
    let cost = |what: &str| format!("CPU {name} a {}: {what}", unit.single);
    let mut rows = vec![
        row(unit.plural.to_owned(), |sample| sample.figures.rate, 1.0, if streams { 2 } else { 0 }, true),
        row(cost("balancer"), |sample| sample.figures.balancer, factor, decimals, true),
        row(cost("… of which user"), |sample| sample.figures.balancer_user, factor, decimals, true),
        row(cost("whole machine"), |sample| sample.figures.machine, factor, decimals, true),
        row(cost("client"), |sample| sample.figures.client, factor, decimals, false),
        row(cost("backend"), |sample| sample.figures.backend, factor, decimals, false),
    ];
    if !streams {
        rows.extend([
            row("latency p50, µs".to_owned(), |sample| sample.latency.p50.as_secs_f64(), 1e6, 0, true),
            row("latency p99, µs".to_owned(), |sample| sample.latency.p99.as_secs_f64(), 1e6, 0, true),
            row("latency p99.9, µs".to_owned(), |sample| sample.latency.p999.as_secs_f64(), 1e6, 0, true),
        ]);
    }
    if case.churns {
        let changes = |sample: &Sample| sample.changes.unwrap_or(f64::NAN);
        rows.push(row("changes/s".to_owned(), changes, 1.0, 0, false));
    }
    rows.extend([
        errors(),
        row("machine busy, %".to_owned(), |sample| sample.figures.busy, 100.0, 0, false),
        row("… by others, %".to_owned(), |sample| sample.figures.foreign, 100.0, 1, false),
    ]);
    rows
}

fn median(samples: &[Sample], value: fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}
