//! What packet filters and routing rules let pass, and where to.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use nerve::model::{NetworkName, Prefix, Vni};

use super::{Keeper, MOST_ADDRESSES, Ready, Returning, Routing, place, send_if_new};
use crate::nft;
use crate::overlay::firewall::ruleset;
use crate::overlay::here::{Here, zones};
use crate::overlay::netlink::Netlink;
use crate::overlay::{foreign, returns, sysctl};

impl Keeper {
    /// Has others let packets pass.
    pub(super) async fn pass_others(&mut self) -> io::Result<()> {
        let has_networks = !self.here.is_empty();
        if (has_networks || self.filter.is_set()) && foreign::pass(has_networks).await? {
            tracing::info!(
                has_networks,
                "changed what the chain FORWARD of iptables lets pass of overlay networks"
            );
        }
        self.passed = Some(has_networks);
        Ok(())
    }

    /// Lets packets pass, and only those that may.
    pub(super) async fn allow(&mut self, rules: &mut Option<nft::Events>) -> io::Result<()> {
        if self.here.is_empty() && !self.filter.is_set() {
            return Ok(());
        }
        let ranges = || self.here.values().flat_map(|here| &here.network.pools);
        sysctl::forward(
            ranges().any(|pool| pool.cidr().is_ipv4()),
            ranges().any(|pool| !pool.cidr().is_ipv4()),
        )?;
        if self
            .filter
            .ensure(ruleset(&zones(&self.here), self.config.port), rules)
            .await
            .map_err(io::Error::other)?
        {
            self.put_back(
                "packet filter rules of overlay networks were changed by somebody else; they are put back",
            );
        }
        Ok(())
    }

    pub(super) fn tell_ready(&self) {
        let place = |here| place(here, self.config.fast_path);
        let ready = self.here.iter().map(|(name, here)| (name.clone(), place(here)));
        let ready: Ready = ready.collect();
        send_if_new(&self.tell.ready, ready);
        self.metrics.networks.set(i64::try_from(self.here.len()).unwrap_or(i64::MAX));
    }

    /// Makes answers to clients elsewhere go back by the node that they came by, and tells what others may know of it.
    pub(super) async fn lead_back(
        &mut self,
        netlink: &Netlink,
        rules: &mut Option<nft::Events>,
    ) -> io::Result<()> {
        // It is compared again once this host is known.
        let Some(own) = self.host.as_ref().map(|host| host.own.clone()) else { return Ok(()) };
        let led = self.ensure_returns(netlink, own, rules).await;
        let (returning, done) = match led {
            Ok(returning) => (returning, Ok(())),
            Err(error) => (Returning::default(), Err(error)),
        };
        send_if_new(&self.tell.returning, Some(returning));
        done
    }

    async fn ensure_returns(
        &mut self,
        netlink: &Netlink,
        own: BTreeSet<IpAddr>,
        rules: &mut Option<nft::Events>,
    ) -> io::Result<Returning> {
        let networks = self.here.iter().filter(|(_, here)| returns::is_possible(&here.network));
        let names: BTreeSet<NetworkName> = networks.clone().map(|(name, _)| name.clone()).collect();
        if names.is_empty() && !self.returns.is_set() {
            return Ok(Returning::default());
        }
        if own.len() > MOST_ADDRESSES {
            return Err(io::Error::other(format!("the host has more than {MOST_ADDRESSES} addresses")));
        }
        let vnis = networks.clone().map(|(_, here)| here.links.vni).collect();
        let of_families = |here: &Here| {
            let families: BTreeSet<bool> = here.links.subnets.iter().map(Prefix::is_ipv4).collect();
            families.into_iter().map(|v4| (here.links.vni, v4)).collect::<Vec<_>>()
        };
        let wanted: BTreeSet<(Vni, bool)> = networks.flat_map(|(_, here)| of_families(here)).collect();
        let mut lost = 0;
        let known = self.routing.take_if(|routing| routing.is_in_doubt || routing.set != wanted);
        if self.routing.is_none() {
            let lacking = netlink.ensure_rules(&wanted).await?;
            lost = if known.is_some_and(|known| known.set == wanted) { lacking } else { 0 };
            self.routing = Some(Routing { set: wanted, is_in_doubt: false });
        }
        let changed = self.returns.ensure(returns::ruleset(&vnis), rules).await.map_err(io::Error::other)?;
        if changed || lost > 0 {
            self.put_back("rules that lead answers back to clients elsewhere were changed by somebody else; they are put back");
        }
        Ok(Returning { networks: names, own })
    }

    fn put_back(&self, what: &str) {
        self.metrics.repairs.inc();
        tracing::warn!("{what}");
    }
}
