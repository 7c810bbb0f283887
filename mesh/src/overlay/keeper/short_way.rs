//! The short way of packets between containers: rules of the packet filter, and programs before them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use nerve::model::{Mac, Vni};

use super::{Keeper, send_if_new};
use crate::nft;
use crate::overlay::FastPath;
use crate::overlay::fast_path::{self, Lane};
use crate::overlay::here::{Here, behind_tunnel};
use crate::overlay::netlink::Netlink;
use crate::overlay::programs::{Container, Programs, Range, Shape, Wanted};
use crate::overlay::veth::{ContainerLink, ContainerLinks};

impl Keeper {
    /// Has packets between containers take the short way, where they can.
    pub(super) async fn shorten(
        &mut self,
        netlink: &Netlink,
        rules: &mut Option<nft::Events>,
    ) -> io::Result<()> {
        if self.here.is_empty() && !self.fast_path.is_set() {
            return Ok(());
        }
        let links = netlink.container_links().await?;
        let is_wanted = self.config.fast_path != FastPath::Off;
        let lanes: Vec<Lane> = if is_wanted { self.lanes(&links).collect() } else { Vec::new() };
        let containers: usize = lanes.iter().map(|lane| lane.containers.len()).sum();
        let inward = !*self.usual_way.borrow_and_update();
        if inward {
            send_if_new(&self.tell.usual_way, false);
        }
        // What is told to take the usual way takes it by the time that this is known.
        self.install(netlink, &links, inward).await?;
        let text = fast_path::ruleset(&lanes, inward);
        match self.fast_path.ensure(text, rules).await {
            // Links go with their containers, and what is said of them with them.
            Ok(_) => {
                self.metrics.fast_path.set(i64::try_from(containers).unwrap_or(i64::MAX));
                send_if_new(&self.tell.usual_way, !inward);
                Ok(())
            }
            Err(error) => {
                self.metrics.fast_path.set(0);
                // Without any of it everything takes the usual way; that is known once nothing is left of an agent before either.
                if fast_path::TABLE.remove().await.is_ok() {
                    self.fast_path = nft::Kept::new([fast_path::TABLE]);
                    send_if_new(&self.tell.usual_way, true);
                }
                Err(io::Error::other(error))
            }
        }
    }

    fn lanes<'a>(&'a self, links: &'a ContainerLinks) -> impl Iterator<Item = Lane> + 'a {
        self.here.values().map(|here| Lane {
            vni: here.links.vni,
            pools: here.network.pools.clone(),
            own: here.links.subnets.clone(),
            mtu: here.links.mtu,
            containers: fitting(here, links).map(|(name, _)| name.clone()).collect(),
        })
    }

    /// Has the programs do what the rules do, for what they know of it. Without them the rules do it.
    async fn install(&mut self, netlink: &Netlink, links: &ContainerLinks, inward: bool) -> io::Result<()> {
        let wanted =
            if self.config.fast_path == FastPath::Programs { self.wanted(links) } else { BTreeMap::new() };
        let tunnels = self.here.values().map(|here| here.indexes.vxlan);
        let ours: BTreeSet<u32> = links.values().map(|link| link.index).chain(tunnels).collect();
        let is_off = wanted.is_empty();
        let mut installed = self.programs.ensure(netlink, wanted, inward, &ours).await;
        if installed.is_err() && !is_off {
            // Half of it is worse than the rules alone.
            self.programs = Programs::default();
            self.programs.ensure(netlink, BTreeMap::new(), inward, &ours).await?;
        } else if is_off {
            // A kernel that knows nothing of it has nothing of it either.
            installed = installed.or(Ok(0));
        }
        let count = *installed.as_ref().unwrap_or(&0);
        self.metrics.programs.set(i64::try_from(count).unwrap_or(i64::MAX));
        let refused = installed.err().map(|error| error.to_string());
        if let Some(error) = refused.as_ref().filter(|_| refused != self.refused) {
            tracing::info!(
                error,
                "this kernel takes no programs for packets between containers; they take the packet filter's short way, which is longer; \
                 give the agent CAP_BPF, or set overlay.fast_path to \"filter\""
            );
        }
        self.refused = refused;
        Ok(())
    }

    fn wanted(&self, links: &ContainerLinks) -> BTreeMap<Vni, Wanted> {
        let attached = self.handle.attached();
        let of_link: BTreeMap<&str, (Mac, &[IpAddr])> =
            attached.iter().map(|one| (one.link.as_str(), (one.mac, one.addresses.as_slice()))).collect();
        let wanted = |here: &Here| {
            let containers = fitting(here, links).filter(|(_, link)| link.leads_away && link.passes);
            let containers = containers.filter_map(|(name, link)| {
                let (mac, addresses) = of_link.get(name.as_str())?;
                Some((link.index, Container { mac: *mac, addresses: addresses.to_vec() }))
            });
            let ranges = here.network.pools.iter().filter_map(|pool| {
                let own = here.links.subnets.iter().copied().find(|own| pool.cidr().overlaps(own))?;
                Some(Range { whole: pool.cidr(), own })
            });
            let shape = Shape {
                tunnel: here.indexes.vxlan,
                mac: here.links.mac,
                ranges: ranges.collect(),
                mtu: here.links.mtu,
            };
            (
                here.links.vni,
                Wanted { shape, peers: behind_tunnel(&here.entries.all()), containers: containers.collect() },
            )
        };
        self.here.values().map(wanted).collect()
    }
}

/// The links to containers of a network that take no larger packets than it does.
fn fitting<'a>(
    here: &'a Here,
    links: &'a ContainerLinks,
) -> impl Iterator<Item = (&'a String, &'a ContainerLink)> {
    links.iter().filter(|(_, link)| link.bridge == Some(here.indexes.bridge) && link.mtu <= here.links.mtu)
}
