//! `plexus why SVC`: which endpoints get traffic from this node, which not, and why.

use std::io;

use clap::Args;
use nerve::model::ServiceName;

use super::endpoints::reason;
use super::output::{Cell, Output, Table, Tone};
use super::services::addresses;
use super::{Reach, Result, stale_banner};
use crate::api::{self, WhyEndpoint, WhyListener};

const AFTER_HELP: &str = "\
TRAFFIC is `yes`, or `no` with the word for why. IN FLIGHT, CONNECTIONS and FAILURES count what the asked node itself has
sent to the endpoint; a failure is a connection that could not be established (it was retried elsewhere).

Examples:
  plexus why web
  plexus why web --admin http://192.0.2.12:7070     as another node sees it";

/// Explain which endpoints of a service get traffic, and why
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Why {
    /// The service
    service: ServiceName,
    #[command(flatten)]
    reach: Reach,
}

impl Why {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("explaining {}", self.service);
        let path = api::path::WHY.replace("{service}", self.service.as_str());
        let answer: api::Why = self.reach.admin.get(&what, &path).await?;
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
    let mut table =
        Table::new(&["ID", "NODE", "ADDRESS", "TRAFFIC", "IN FLIGHT", "CONNECTIONS", "FAILURES", "REASON"]);
    answer.endpoints.iter().for_each(|endpoint| table.row(endpoint_row(endpoint)));
    if !table.is_empty() {
        out.line("")?;
        out.table(&table)?;
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

fn endpoint_row(endpoint: &WhyEndpoint) -> [Cell; 8] {
    let info = &endpoint.endpoint;
    let traffic = match &info.excluded {
        None => Cell::new("yes", Tone::Good),
        Some(word) => Cell::new(format!("no: {word}"), Tone::Bad),
    };
    let failures = if endpoint.connect_failures > 0 { Tone::Warning } else { Tone::Plain };
    [
        Cell::from(&info.id),
        Cell::from(&info.node),
        Cell::from(info.address),
        traffic,
        Cell::from(endpoint.in_flight),
        Cell::from(endpoint.connections),
        Cell::new(endpoint.connect_failures, failures),
        Cell::from(reason(info)),
    ]
}

fn listener_row(listener: &WhyListener) -> [Cell; 5] {
    let state =
        if listener.listening { Cell::new("listening", Tone::Good) } else { Cell::new("closed", Tone::Bad) };
    let port = listener.target.as_ref().map_or_else(|| "main port".to_owned(), |port| format!("port {port}"));
    let leads_to = if listener.this_node_only { format!("{port}, this node") } else { port };
    [
        Cell::from(&listener.kind),
        Cell::from(format!("{}/{}", listener.address, listener.protocol)),
        Cell::from(leads_to),
        state,
        Cell::from(listener.problem.as_deref().unwrap_or_default()),
    ]
}
