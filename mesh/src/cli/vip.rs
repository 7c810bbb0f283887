//! `plexus vip SVC on|off`: whether a service has a virtual address.

use clap::{Args, ValueEnum};
use hyper::Method;
use nerve::model::{ServiceName, VirtualIp};

use super::output::Output;
use super::{Reach, Result, print_change};
use crate::api::{self, Changed, VipRequest};

const AFTER_HELP: &str = "\
Services have a virtual address wherever nodes are configured with a range (`[vip] range`). Without one, the name of the
service is answered with its endpoints, and clients choose among them.

Examples:
  plexus vip database off
  plexus vip database on";

/// Switch the virtual address of a service on or off
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Vip {
    /// The service
    service: ServiceName,
    /// Is it to have one?
    #[arg(value_enum)]
    switch: Switch,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Vip {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("switching the virtual address of {}", self.service);
        let path = api::path::VIP.replace("{service}", self.service.as_str());
        let vip = match self.switch {
            Switch::On => VirtualIp::On,
            Switch::Off => VirtualIp::Off,
        };
        let changed: Changed =
            self.reach.agent().send(&what, Method::PUT, &path, &VipRequest { vip }).await?;
        print_change(out, self.reach.json, &changed)
    }
}
