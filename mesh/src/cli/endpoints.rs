//! `plexus endpoints SVC`: every endpoint of one service.

use std::net::SocketAddr;

use clap::Args;
use nerve::model::{ListensOn, Region, ServiceName, UnixPath, Zone};

use super::output::{Cell, Output, Table, Tone};
use super::{Reach, Result, stale_banner};
use crate::api::{self, EndpointInfo};

const AFTER_HELP: &str = "\
Examples:
  plexus endpoints web
  plexus endpoints web --json | jq -r '.endpoints[] | select(.serving).address'";

/// List the endpoints of a service
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Endpoints {
    /// The service
    service: ServiceName,
    #[command(flatten)]
    reach: Reach,
}

impl Endpoints {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("listing the endpoints of {}", self.service);
        let path = api::path::SERVICE.replace("{service}", self.service.as_str());
        let answer: api::Endpoints = self.reach.agent().get(&what, &path).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, |out, answer| {
            stale_banner(out, answer.stale.as_ref())?;
            let mut table =
                Table::new(&["ID", "NODE", "ADDRESS", "STATUS", "WEIGHT", "ZONE", "TAGS", "REASON"]);
            answer.endpoints.iter().for_each(|endpoint| table.row(row(endpoint)));
            if table.is_empty() {
                return out.line(format!("service {} has no endpoint", answer.service));
            }
            out.table(&table)
        })?;
        Ok(())
    }
}

fn row(endpoint: &EndpointInfo) -> [Cell; 8] {
    let tags: Vec<&str> = endpoint.tags.iter().map(AsRef::as_ref).collect();
    [
        Cell::from(&endpoint.id),
        Cell::from(&endpoint.node),
        Cell::from(listens_on(endpoint.address, endpoint.socket.as_ref())),
        status(endpoint),
        Cell::from(endpoint.weight.0),
        Cell::from(stands_in(endpoint.region.as_ref(), endpoint.zone.as_ref())),
        Cell::from(tags.join(",")),
        Cell::from(reason(endpoint)),
    ]
}

/// Where an instance listens, in one cell.
pub(super) fn listens_on(address: SocketAddr, socket: Option<&UnixPath>) -> ListensOn {
    ListensOn { socket: socket.cloned(), ..address.into() }
}

/// Its zone, with the region before it where that is known: `eu-1/eu-1a`.
pub(super) fn stands_in(region: Option<&Region>, zone: Option<&Zone>) -> String {
    let parts = [region.map(Region::as_str), zone.map(Zone::as_str)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("/")
}

/// One word: `serving`, or why not.
fn status(endpoint: &EndpointInfo) -> Cell {
    match &endpoint.excluded {
        None if endpoint.unconfirmed => Cell::new("unconfirmed", Tone::Warning),
        None => Cell::new("serving", Tone::Good),
        Some(word) => Cell::new(word, if word == "critical" { Tone::Bad } else { Tone::Warning }),
    }
}

/// A sentence for whoever asks why; empty when there is nothing to say.
pub(super) fn reason(endpoint: &EndpointInfo) -> String {
    let unconfirmed =
        endpoint.unconfirmed.then(|| "kept although the store no longer confirms it".to_owned());
    let watcher = endpoint.watcher.as_ref().map(|watcher| format!("found by the watcher {watcher}"));
    let backup = endpoint.backup.then(|| "a backup".to_owned());
    let health = Some(endpoint.health_reason.clone()).filter(|reason| !reason.is_empty());
    [health, unconfirmed, backup, watcher].into_iter().flatten().collect::<Vec<_>>().join("; ")
}
