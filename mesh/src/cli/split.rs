//! `plexus split`: how much of a service's traffic each version of it gets.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use nerve::model::ServiceName;

use super::output::Output;
use super::settings::change;
use super::{Reach, Result};
use crate::api::SettingsRequest;

const AFTER_HELP: &str = "\
A group is the endpoints with a tag, or with a value of a label (LABEL=VALUE). What the shares leave of 100 % is for the
endpoints of no group. A group without endpoints loses its share to the others: nobody is lost to a split.

Examples:
  plexus split web v1=95 v2=5
  plexus split web version=canary=5       by label
  plexus split web --clear";

/// Share out a service's traffic by tag or label
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Split {
    /// The service
    service: ServiceName,
    /// The shares: TAG=PERCENT or LABEL=VALUE=PERCENT
    #[arg(required_unless_present = "clear", conflicts_with = "clear", value_name = "TAG=PERCENT")]
    shares: Vec<String>,
    /// Share out by weight alone again
    #[arg(long)]
    clear: bool,
    #[command(flatten)]
    reach: Reach,
}

impl Split {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("splitting the traffic of {}", self.service);
        let name = || "split".to_owned();
        let request = if self.clear {
            SettingsRequest { unset: BTreeSet::from([name()]), ..Default::default() }
        } else {
            let set = BTreeMap::from([(name(), self.shares.join(","))]);
            SettingsRequest { set, ..Default::default() }
        };
        change(&self.service, &what, request, &self.reach, out).await
    }
}
