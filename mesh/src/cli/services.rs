//! `plexus services`: every service on one line.

use clap::Args;

use super::output::{Cell, Output, Table, Tone};
use super::{Reach, Result, stale_banner};
use crate::api::{self, ServiceSummary};

const AFTER_HELP: &str = "\
SERVING is how many endpoints get traffic, of how many there are. UNCONFIRMED ones are kept from before the store was
lost, and get traffic. VIRTUAL are the addresses that lead to the service from the asked node.

Examples:
  plexus services
  plexus services --json | jq -r '.services[] | select(.serving == 0).name'";

/// List the services of the fleet
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Services {
    #[command(flatten)]
    reach: Reach,
}

impl Services {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let answer: api::Services =
            self.reach.agent().get("listing the services", api::path::SERVICES).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, |out, answer| {
            stale_banner(out, answer.stale.as_ref())?;
            let mut table = Table::new(&["NAME", "SERVING", "UNCONFIRMED", "VIRTUAL", "PUBLISHED"]);
            answer.services.iter().for_each(|service| table.row(row(service)));
            if table.is_empty() {
                return out.line("no service is registered yet: see `plexus register --help`");
            }
            out.table(&table)
        })?;
        Ok(())
    }
}

fn row(service: &ServiceSummary) -> [Cell; 5] {
    let tone = match (service.serving, service.endpoints) {
        (0, _) => Tone::Bad,
        (serving, endpoints) if serving < endpoints => Tone::Warning,
        _ => Tone::Good,
    };
    let unconfirmed = if service.unconfirmed > 0 { Tone::Warning } else { Tone::Plain };
    [
        Cell::from(&service.name),
        Cell::new(format!("{}/{}", service.serving, service.endpoints), tone),
        Cell::new(service.unconfirmed, unconfirmed),
        Cell::from(addresses(&service.vips)),
        Cell::from(ports(&service.published)),
    ]
}

/// Virtual addresses in one cell.
pub(super) fn addresses(vips: &[std::net::IpAddr]) -> String {
    vips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Published ports in one cell.
pub(super) fn ports(published: &[nerve::model::PublishedPort]) -> String {
    published.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
