//! `plexus why SVC`: which endpoints get traffic from this node, which not, and why.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use nerve::model::{Effect, ServiceName};

use super::endpoints::{listens_on, reason};
use super::output::{Cell, Output, Table, Tone};
use super::services::addresses;
use super::status::health;
use super::{Reach, Result, stale_banner};
use crate::api::{self, CheckInfo, WhyBalance, WhyEndpoint, WhyListener, WhyPick, WhyPlain, WhyRules};

const AFTER_HELP: &str = "\
TRAFFIC is `yes`, or `no` with the word for why. SHARE is what its weight comes to of new connections, LATENCY the
estimate of the time to its first byte (peak EWMA). IN FLIGHT, CONNECTIONS and FAILURES count what the asked node itself has
sent to the endpoint; a failure is a connection that could not be established (it was retried elsewhere).
Of instances that run on the asked node, each check is shown with its last probe.

Examples:
  plexus why web
  plexus why api --from web                          which rule decides whether `web` may talk to it
  plexus why web --admin http://192.0.2.12:7070     as another node sees it";

/// Explain which endpoints of a service get traffic, and why
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Why {
    /// The service
    service: ServiceName,
    /// The service of a client, to learn which rule decides about its connections
    #[arg(long, value_name = "SERVICE")]
    from: Option<ServiceName>,
    #[command(flatten)]
    reach: Reach,
}

impl Why {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("explaining {}", self.service);
        let mut path = api::path::WHY.replace("{service}", self.service.as_str());
        if let Some(from) = &self.from {
            path += &format!("?from={from}");
        }
        let answer: api::Why = self.reach.agent().get(&what, &path).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, human)?;
        Ok(())
    }
}

fn human(out: &mut Output<'_>, answer: &api::Why) -> io::Result<()> {
    stale_banner(out, answer.stale.as_ref())?;
    let serving = answer.endpoints.iter().filter(|e| e.endpoint.serving).count();
    out.line(format!(
        "{}: {serving} of {} endpoints get traffic, as node {} sees it",
        answer.service,
        answer.endpoints.len(),
        answer.seen_from
    ))?;
    if let Some(balance) = &answer.balance {
        balance_lines(out, balance)?;
    }
    let mut table = Table::new(&[
        "ID",
        "NODE",
        "ADDRESS",
        "TRAFFIC",
        "SHARE",
        "IN FLIGHT",
        "CONNECTIONS",
        "FAILURES",
        "LATENCY",
        "REASON",
    ]);
    answer.endpoints.iter().for_each(|endpoint| table.row(endpoint_row(endpoint)));
    if !table.is_empty() {
        out.line("")?;
        out.table(&table)?;
    }
    checks(out, &answer.endpoints)?;
    if let Some(rules) = &answer.rules {
        out.line("")?;
        rule_lines(out, &answer.service, rules)?;
    }
    if !answer.vips.is_empty() {
        out.line("")?;
        out.line(format!("its virtual address: {}", addresses(&answer.vips)))?;
    }
    let mut table = Table::new(&["LISTENER", "ADDRESS", "LEADS TO", "STATE", "PROBLEM"]);
    answer.listeners.iter().for_each(|listener| table.row(listener_row(listener)));
    out.line("")?;
    if table.is_empty() {
        return out.line(format!("node {} listens on no port for it", answer.seen_from));
    }
    out.table(&table)
}

/// Who may be connected, as far as was asked, and why.
fn rule_lines(out: &mut Output<'_>, service: &ServiceName, rules: &WhyRules) -> io::Result<()> {
    let WhyRules { about, default, verdict } = rules;
    out.line(format!("rules about connections to {service}: {about}; where none applies: {default}"))?;
    let from = match &verdict.from {
        Some(from) => from.to_string(),
        None => "clients that are no known instance".to_owned(),
    };
    let (word, tone) = match verdict.effect {
        Effect::Allow => ("allowed", Tone::Good),
        Effect::Deny => ("denied", Tone::Bad),
    };
    let by = match &verdict.rule {
        Some(rule) => format!("rule {} ({} {} -> {})", rule.name, rule.effect, rule.from, rule.to),
        None => "the default: no rule applies".to_owned(),
    };
    out.toned_line(tone, format!("{from} -> {service}: {word} by {by}"))
}

/// The checks of the instances that run on the asked node: others show only what is registered of theirs.
fn checks(out: &mut Output<'_>, endpoints: &[WhyEndpoint]) -> io::Result<()> {
    let mut table = Table::new(&["INSTANCE", "CHECK", "HEALTH", "LAST PROBE", "TOOK", "AT"]);
    for endpoint in endpoints {
        for check in &endpoint.checks {
            table.row(check_row(endpoint, check));
        }
    }
    if table.is_empty() {
        return Ok(());
    }
    out.line("")?;
    out.table(&table)
}

fn check_row(endpoint: &WhyEndpoint, check: &CheckInfo) -> [Cell; 6] {
    let (text, took, at) = match &check.last {
        None => ("none yet".to_owned(), String::new(), String::new()),
        Some(last) => {
            let at = UNIX_EPOCH + Duration::from_millis(last.at_unix_ms);
            let took = format!("{}.{:03}ms", last.latency_us / 1000, last.latency_us % 1000);
            let took = if check.kind == "ttl" { String::new() } else { took };
            (last.text.clone(), took, humantime::format_rfc3339_seconds(at).to_string())
        }
    };
    [
        Cell::from(&endpoint.endpoint.id),
        Cell::from(&check.description),
        health(check.health),
        Cell::from(text),
        Cell::from(took),
        Cell::from(at),
    ]
}

fn balance_lines(out: &mut Output<'_>, balance: &WhyBalance) -> io::Result<()> {
    let WhyBalance { policy, panic, connections, queue, serving, ejected } = balance;
    out.line(format!(
        "policy {policy}, {connections} connections, {queue} waiting, {ejected} of {serving} endpoints ejected"
    ))?;
    if *panic {
        let text = "PANIC: too few endpoints are available, all are balanced over, the unwell too";
        out.toned_line(Tone::Warning, text)?;
    }
    Ok(())
}

fn endpoint_row(endpoint: &WhyEndpoint) -> [Cell; 10] {
    let info = &endpoint.endpoint;
    let pick = endpoint.pick.clone().unwrap_or_default();
    let has_share = pick.share_permille > 0;
    let traffic = match (&info.excluded, &pick.ejected) {
        (Some(_), _) if has_share => Cell::new("yes: panic", Tone::Warning),
        (Some(word), _) => Cell::new(format!("no: {word}"), Tone::Bad),
        (None, Some(_)) if !has_share => Cell::new("no: ejected", Tone::Bad),
        (None, _) => Cell::new("yes", Tone::Good),
    };
    let share = match &endpoint.pick {
        Some(pick) => format!("{}.{}%", pick.share_permille / 10, pick.share_permille % 10),
        None => String::new(),
    };
    let latency = pick.latency_us.map_or_else(String::new, |us| format!("{}.{:03}ms", us / 1000, us % 1000));
    let failures = if endpoint.connect_failures > 0 { Tone::Warning } else { Tone::Plain };
    [
        Cell::from(&info.id),
        Cell::from(&info.node),
        Cell::from(listens_on(info.address, info.socket.as_ref())),
        traffic,
        Cell::from(share),
        Cell::from(endpoint.in_flight),
        Cell::from(endpoint.connections),
        Cell::new(endpoint.connect_failures, failures),
        Cell::from(latency),
        Cell::from(reasons(reason(info), &pick, &endpoint.shown)),
    ]
}

/// What the check saw, and what the balancer makes of the endpoint.
fn reasons(check: String, pick: &WhyPick, shown: &WhyPlain) -> String {
    let ejected = pick.ejected.as_ref().map(|word| match pick.ejected_for_ms {
        Some(left) if left > 0 => format!("ejected: {word}, for {}.{} s", left / 1000, left % 1000 / 100),
        _ => format!("ejected: {word}, the next connection tries it"),
    });
    let said = [
        (!check.is_empty()).then_some(check),
        ejected,
        pick.at_limit.then(|| "at its limit".to_owned()),
        pick.slow_start_percent.map(|percent| format!("slow start, {percent}%")),
        pick.group.as_ref().map(|group| format!("group {group}")),
        pick.other_zone.then(|| "another zone".to_owned()),
        pick.other_region.then(|| "another region".to_owned()),
        pick.backup.then(|| "a backup".to_owned()),
        pick.outside_subset.then(|| "outside of the subset".to_owned()),
        shown.plain.as_ref().map(|why| format!("sees this node's address: {why}")),
        plain_for(shown),
    ];
    said.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Of whom it sees the node's address, if it sees the addresses of others.
fn plain_for(shown: &WhyPlain) -> Option<String> {
    let clients: Vec<_> = shown.plain_for.iter().map(|some| some.clients.as_str()).collect();
    (!clients.is_empty()).then(|| format!("sees this node's address for clients {}", clients.join(", ")))
}

fn listener_row(listener: &WhyListener) -> [Cell; 5] {
    let state = match (listener.listening, listener.held) {
        (true, _) => Cell::new("listening", Tone::Good),
        (false, true) => Cell::new("held", Tone::Warning),
        (false, false) => Cell::new("closed", Tone::Bad),
    };
    let port = listener.target.as_ref().map_or_else(|| "main port".to_owned(), |port| format!("port {port}"));
    // `unix:/run/web.sock` says it already.
    let address = match listener.protocol.as_str() {
        "unix" => listener.address.clone(),
        protocol => format!("{}/{protocol}", listener.address),
    };
    let leads_to = if listener.this_node_only { format!("{port}, this node") } else { port };
    [
        Cell::from(&listener.kind),
        Cell::from(address),
        Cell::from(leads_to),
        state,
        Cell::from(listener.problem.as_deref().unwrap_or_default()),
    ]
}
