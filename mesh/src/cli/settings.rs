//! `plexus settings`, `plexus set` and `plexus unset`: how a service is balanced and limited, on every node.

use std::collections::BTreeMap;
use std::io;

use clap::Args;
use hyper::Method;
use nerve::model::ServiceName;

use super::output::{Cell, Output, Table, Tone};
use super::{Error, Reach, Result, print_change, stale_banner};
use crate::api::{self, Changed, SettingsRequest};

const SETTINGS_HELP: &str = "\
SET is `yes` where somebody set it, `here` where this node's own configuration says it (and nobody has set any), and otherwise the
default holds; `-` as a value is off.

Examples:
  plexus settings web";

const SET_HELP: &str = "\
All of them are set, or none. Every node follows at once, for new connections; nothing is restarted.

Examples:
  plexus set web policy=least_connections slow_start=30s
  plexus set web limits.endpoint_connections=100 limits.at_limit=queue limits.queue_timeout=2s
  plexus settings web                     what there is to set";

const UNSET_HELP: &str = "\
Examples:
  plexus unset web policy slow_start";

/// Show every setting of a service
#[derive(Debug, Args)]
#[command(after_help = SETTINGS_HELP)]
pub(super) struct Settings {
    /// The service
    service: ServiceName,
    #[command(flatten)]
    reach: Reach,
}

/// Change how a service is balanced and limited
#[derive(Debug, Args)]
#[command(after_help = SET_HELP)]
pub(super) struct Set {
    /// The service
    service: ServiceName,
    /// The settings: KEY=VALUE
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = assignment)]
    settings: Vec<(String, String)>,
    #[command(flatten)]
    reach: Reach,
}

/// Give settings of a service their default again
#[derive(Debug, Args)]
#[command(after_help = UNSET_HELP)]
pub(super) struct Unset {
    /// The service
    service: ServiceName,
    /// The settings
    #[arg(required = true, value_name = "KEY")]
    settings: Vec<String>,
    #[command(flatten)]
    reach: Reach,
}

fn assignment(text: &str) -> std::result::Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(key, value)| !key.is_empty() && !value.is_empty());
    let (key, value) = parts.ok_or("write KEY=VALUE; `plexus unset` gives a setting its default again")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Settings {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("reading the settings of {}", self.service);
        let path = api::path::SETTINGS.replace("{service}", self.service.as_str());
        let answer: api::Settings = self.reach.agent().get(&what, &path).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, human)?;
        Ok(())
    }
}

impl Set {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("changing the settings of {}", self.service);
        let mut set = BTreeMap::new();
        for (key, value) in self.settings {
            if set.insert(key.clone(), value).is_some() {
                return Err(Error::failed(what, format!("{key} is given twice")));
            }
        }
        change(&self.service, &what, SettingsRequest { set, ..Default::default() }, &self.reach, out).await
    }
}

impl Unset {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("changing the settings of {}", self.service);
        let request = SettingsRequest { unset: self.settings.into_iter().collect(), ..Default::default() };
        change(&self.service, &what, request, &self.reach, out).await
    }
}

/// Asks the agent for a change and prints what it did.
pub(super) async fn change(
    service: &ServiceName,
    what: &str,
    request: SettingsRequest,
    reach: &Reach,
    out: &mut Output<'_>,
) -> Result {
    let path = api::path::SETTINGS.replace("{service}", service.as_str());
    let changed: Changed = reach.agent().send(what, Method::PUT, &path, &request).await?;
    print_change(out, reach.json, &changed)
}

fn human(out: &mut Output<'_>, answer: &api::Settings) -> io::Result<()> {
    stale_banner(out, answer.stale.as_ref())?;
    let mut table = Table::new(&["SETTING", "VALUE", "SET", "MEANING"]);
    for setting in &answer.settings {
        let set = match (setting.default, answer.of_node) {
            (true, _) => Cell::from("default"),
            (false, true) => Cell::new("here", Tone::Good),
            (false, false) => Cell::new("yes", Tone::Good),
        };
        table.row([Cell::from(&setting.name), Cell::from(&setting.value), set, Cell::from(&setting.meaning)]);
    }
    out.table(&table)
}
