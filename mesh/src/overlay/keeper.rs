//! The task that makes the kernel what the plan says.
//!
//! A change of one peer is a comparison of that peer's entries, and a few messages. When the kernel tells that something of ours was
//! removed, and on a slow tick, everything is listed and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nerve::model::{Network, NetworkName, Pool, Prefix, Slot};
use nerve::tasks::Tasks;
use synapse::catalog::{Catalog, Freshness, NetworkChange, NetworkChanges, NetworkView};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::firewall::{self, Direct, Zone, ruleset};
use super::netlink::{Indexes, Netlink};
use super::plan::{self, Entry, Links, difference};
use super::underlay::Underlay;
use super::{Config, Handle, Held, Metrics, Problems, foreign, names, returns, sysctl};
use crate::nft;

/// How often it is looked whether everything is there, whatever the kernel told.
const TICK: Duration = Duration::from_secs(30);
/// What failed is tried again after this.
const PAUSE: Duration = Duration::from_secs(2);
/// Events that come within this are one.
const SETTLE: Duration = Duration::from_millis(100);
/// Others are told so many addresses of this host.
const MOST_ADDRESSES: usize = 64;
/// How often it is asked what packets pass to peers.
const ASK: Duration = Duration::from_secs(25);
/// A network has that at least, whatever a router says of the way to a peer (RFC 8200, section 5).
const LEAST_MTU: u32 = 1280;

/// Starts it.
pub(super) fn start(
    config: &Arc<Config>,
    catalog: &Catalog,
    held: watch::Receiver<Held>,
    tell: Tell,
    handle: &Handle,
    metrics: &Metrics,
    tasks: &Tasks,
) {
    let (config, catalog) = (Arc::clone(config), catalog.clone());
    let (handle, metrics) = (handle.clone(), metrics.clone());
    tasks.spawn_until_stopped("overlay", move || {
        let keeper = Keeper {
            config: Arc::clone(&config),
            catalog: catalog.clone(),
            held: held.clone(),
            handle: handle.clone(),
            metrics: metrics.clone(),
            here: BTreeMap::new(),
            filter: nft::Kept::new([firewall::TABLE]),
            returns: nft::Kept::new([returns::INSIDE, returns::OUTSIDE]),
            narrowest: None,
            asked: None,
            tell: tell.clone(),
        };
        keeper.run()
    });
}

/// The networks that containers here can be attached to.
pub(super) type Ready = BTreeMap<NetworkName, Place>;

/// Where it is told how the kernel stands. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Tell {
    pub(super) ready: Arc<watch::Sender<Ready>>,
    /// `None`: not known yet.
    pub(super) returning: Arc<watch::Sender<Option<Returning>>>,
    /// The range of the link that this node's address is on.
    pub(super) link: Arc<watch::Sender<Option<Prefix>>>,
}

/// What other nodes may know of the answers of containers here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Returning {
    /// The networks in which clients elsewhere are answered by the node that they came by.
    pub(super) networks: BTreeSet<NetworkName>,
    /// This node's addresses: clients that have one are answered here.
    pub(super) own: BTreeSet<IpAddr>,
}

/// What a container is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) bridge: u32,
    pub(super) subnets: Vec<Prefix>,
    pub(super) mtu: u32,
}

struct Keeper {
    config: Arc<Config>,
    catalog: Catalog,
    held: watch::Receiver<Held>,
    handle: Handle,
    metrics: Metrics,
    here: BTreeMap<NetworkName, Here>,
    filter: nft::Kept<1>,
    returns: nft::Kept<2>,
    /// The least that the way to a peer was ever known to pass, and to which. It never grows while the agent runs: what the kernel
    /// knows of ways it forgets after some minutes, and networks are not to go up and down with that.
    narrowest: Option<(u32, IpAddr)>,
    /// When that was asked for.
    asked: Option<Instant>,
    tell: Tell,
}

/// A network on this node.
struct Here {
    slot: Slot,
    network: Arc<Network>,
    links: Links,
    indexes: Indexes,
    peers: BTreeMap<Slot, Vec<Entry>>,
}

impl Here {
    fn place(&self) -> Place {
        Place { bridge: self.indexes.bridge, subnets: self.links.subnets.clone(), mtu: self.links.mtu }
    }

    /// Where packets of peers come without a tunnel, and from which subnets.
    fn direct(&self) -> Option<Direct> {
        let subnet = |entry: &Entry| match entry {
            Entry::Direct { subnet, .. } => Some(*subnet),
            _ => None,
        };
        let sources = self.peers.values().flatten().filter_map(subnet).collect();
        self.links.beneath.as_ref().map(|beneath| Direct { link: beneath.name.clone(), sources })
    }
}

impl Keeper {
    async fn run(mut self) {
        loop {
            match Netlink::open() {
                Ok((connection, mut netlink)) => tokio::select! {
                    () = connection => tracing::warn!("the kernel ended the netlink connection; it is opened again"),
                    () = self.follow(&mut netlink) => {}
                },
                Err(error) => self.note(&[format!("overlay networks are off here: {error}")]),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&mut self, netlink: &mut Netlink) {
        let mut rules = nft::Events::open()
            .inspect_err(|error| tracing::debug!(%error, "changes of packet filter rules are not told"))
            .ok();
        let mut changes = self.catalog.subscribe_networks();
        let mut tick = tokio::time::interval_at(Instant::now() + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_well = self.reconcile(netlink).await;
        loop {
            let mut held = self.held.clone();
            tokio::select! {
                changed = changes.changed() => if is_well && self.follow_peers(netlink, changed).await {
                    continue;
                },
                told = netlink.changed() => {
                    if !told { return; }
                    self.settle(netlink, &mut rules).await;
                }
                () = told(&mut rules), if !self.here.is_empty() => self.settle(netlink, &mut rules).await,
                Ok(()) = held.changed() => {}
                _ = tick.tick() => {}
                () = tokio::time::sleep(PAUSE), if !is_well => {}
            }
            is_well = self.reconcile(netlink).await;
        }
    }

    /// Events come in bursts: takes those of this one.
    async fn settle(&self, netlink: &mut Netlink, rules: &mut Option<nft::Events>) {
        let burst = async {
            loop {
                tokio::select! {
                    is_open = netlink.changed() => if !is_open { return },
                    () = told(rules) => {}
                }
            }
        };
        // That it times out is the usual end.
        let _ = tokio::time::timeout(SETTLE, burst).await;
    }

    /// Where peers changed and nothing else did, their entries alone are changed. `false`: more is to be done.
    async fn follow_peers(&mut self, netlink: &Netlink, changed: NetworkChanges) -> bool {
        for (name, NetworkChange { record, slots }) in changed {
            let view = self.catalog.network(name.as_str());
            let Some((here, view)) = self.here.get_mut(&name).zip(view) else { return false };
            // Where packets come without a tunnel, the packet filter knows peers as well.
            if record || slots.contains(&here.slot) || here.links.beneath.is_some() {
                return false;
            }
            for slot in slots {
                let peer = view.subnets.get(slot);
                let after = peer.map_or_else(Vec::new, |peer| here.links.entries(&view.network, slot, &peer));
                let before = here.peers.get(&slot).cloned().unwrap_or_default();
                let (wanted, there) = (after.iter().copied().collect(), before.into_iter().collect());
                if let Err(error) = apply(netlink, &self.metrics, here.indexes.vxlan, &wanted, &there).await {
                    tracing::debug!(%error, network = %name, "a peer's entries; everything is compared now");
                    return false;
                }
                if after.is_empty() {
                    here.peers.remove(&slot)
                } else {
                    here.peers.insert(slot, after)
                };
            }
            count_peers(&self.metrics, &name, here);
        }
        true
    }

    /// Compares everything with what is wanted and puts it right. Tells whether that worked.
    async fn reconcile(&mut self, netlink: &mut Netlink) -> bool {
        let held = self.held.borrow_and_update().clone();
        let mut problems = Vec::new();
        let underlay = match self.underlay(netlink, &held).await {
            Ok(underlay) => underlay,
            Err(error) => {
                self.note(&[format!("the link of {} cannot be read: {error}", self.config.address)]);
                return false;
            }
        };
        for (name, slot) in &held {
            let Some(view) = self.catalog.network(name.as_str()) else { continue };
            match self.ensure(netlink, &view, *slot, &underlay).await {
                Ok(here) => {
                    count_peers(&self.metrics, name, &here);
                    self.here.insert(name.clone(), here);
                }
                Err(error) => {
                    problems.push(format!("network {name} is not as it should be on this node: {error}"))
                }
            }
        }
        for name in self.here.keys().filter(|name| !held.contains_key(*name)).cloned().collect::<Vec<_>>() {
            self.here.remove(&name);
            let _ = self.metrics.peers.remove_label_values(&[name.as_str()]);
        }
        if let Err(error) = self.remove_obsolete(netlink, &held).await {
            problems.push(format!("links of networks that are no more stay behind: {error}"));
        }
        if let Err(error) = self.pass_others().await {
            problems.push(format!("what iptables forwards of overlay networks cannot be seen to: {error}"));
        }
        if let Err(error) = self.allow().await {
            problems.push(format!("containers cannot reach beyond this node: {error}"));
        }
        let links = self.here.values().flat_map(|here| {
            let beneath = here.links.beneath.as_ref().map(|beneath| beneath.index);
            [here.indexes.bridge, here.indexes.vxlan].into_iter().chain(beneath)
        });
        netlink.watch(links.collect());
        let ready: Ready = self.here.iter().map(|(name, here)| (name.clone(), here.place())).collect();
        send_if_new(&self.tell.ready, ready);
        self.metrics.networks.set(i64::try_from(self.here.len()).unwrap_or(i64::MAX));
        let is_well = problems.is_empty();
        let returning = self.lead_back(netlink).await.unwrap_or_else(|error| {
            // Containers lack nothing by it but their clients' addresses, and a kernel does not learn it by being asked often.
            problems.push(format!(
                "containers here are not shown clients' own addresses by other nodes: {error}"
            ));
            Returning::default()
        });
        send_if_new(&self.tell.returning, Some(returning));
        self.note(&problems);
        is_well
    }

    /// The network beneath, with what packets to every peer may have.
    async fn underlay(&mut self, netlink: &Netlink, held: &Held) -> io::Result<Underlay> {
        let address = self.config.address;
        let underlay = netlink.underlay(address).await?;
        let range = underlay.beneath.as_ref().map(|beneath| beneath.range);
        send_if_new(&self.tell.link, range);
        if self.asked.is_none_or(|asked| asked.elapsed() >= ASK) {
            self.asked = Some(Instant::now());
            let views = held.keys().filter_map(|name| self.catalog.network(name.as_str()));
            let peers = views.flat_map(|view| view.subnets.all()).map(|(_, peer)| peer.address);
            let known = netlink.narrowest(peers.filter(|peer| *peer != address).collect()).await?;
            let before = self.narrowest.map_or(underlay.mtu, |(mtu, _)| mtu);
            if let Some((mtu, peer)) = known.filter(|(mtu, _)| *mtu < before) {
                tracing::warn!(
                    %peer, mtu, before,
                    "the way to a node passes smaller packets than this node's link; networks whose MTU was not set have less from now \
                     on, until the agent is restarted"
                );
                self.narrowest = Some((mtu, peer));
            }
        }
        let least = LEAST_MTU + plan::overhead(address);
        let mtu = self.narrowest.map_or(underlay.mtu, |(mtu, _)| underlay.mtu.min(mtu.max(least)));
        Ok(Underlay { mtu, ..underlay })
    }

    async fn ensure(
        &self,
        netlink: &Netlink,
        view: &NetworkView,
        slot: Slot,
        underlay: &Underlay,
    ) -> io::Result<Here> {
        let Config { address, port, .. } = &*self.config;
        let beneath = (underlay.mtu, underlay.beneath.as_ref());
        let links = Links::new(&view.network, slot, (*address, *port), beneath)
            .ok_or_else(|| io::Error::other(format!("it has no subnet {slot}")))?;
        let was = self.here.get(&view.name).filter(|here| here.links == links);
        let indexes = netlink.ensure_links(&links).await?;
        let peers: BTreeMap<Slot, Vec<Entry>> = view
            .subnets
            .all()
            .into_iter()
            .filter(|(peer, _)| *peer != slot)
            .map(|(slot, peer)| (slot, links.entries(&view.network, slot, &peer)))
            .filter(|(_, entries)| !entries.is_empty())
            .collect();
        sysctl::accept_any_source(&links.vxlan())?;
        let wanted: BTreeSet<Entry> = peers.values().flatten().copied().chain(links.own_entries()).collect();
        let mut there = netlink.entries(indexes.vxlan).await?;
        if view.network.direct {
            let is_of_network = |entry: &Entry| matches!(entry, Entry::Direct { subnet, .. } if view.network.pools.iter().any(|pool| pool.cidr().overlaps(subnet)));
            there.extend(netlink.direct_routes().await?.into_iter().filter(is_of_network));
        }
        apply(netlink, &self.metrics, indexes.vxlan, &wanted, &there).await?;
        if let Some(was) = was {
            let was_set = was.peers.values().flatten().copied().chain(was.links.own_entries());
            let lost = was_set.filter(|entry| wanted.contains(entry) && !there.contains(entry)).count();
            if was.indexes != indexes || lost > 0 {
                self.metrics.repairs.inc();
                tracing::warn!(network = %view.name, entries = lost, "links or entries of the network were taken away by somebody else; they are put back");
            }
        }
        Ok(Here { slot, network: Arc::clone(&view.network), links, indexes, peers })
    }

    /// Removes the links of networks that this node has no part in any more.
    async fn remove_obsolete(&self, netlink: &Netlink, held: &Held) -> io::Result<()> {
        let networks = self.catalog.networks();
        // While the store does not say what there is, nothing is obsolete.
        let are_known = held.keys().all(|name| networks.iter().any(|view| view.name == *name));
        if !are_known || *self.catalog.freshness() != Freshness::Live {
            return Ok(());
        }
        // Nor is what a network has that is there and that this node has no part of yet, as after a restart.
        let vnis = networks.iter().map(|view| view.network.vni);
        let names: BTreeSet<String> = vnis.flat_map(|vni| [names::bridge(vni), names::vxlan(vni)]).collect();
        for (name, link) in netlink.links().await? {
            if !names.contains(&name) {
                netlink.remove_link(link.index).await?;
                tracing::info!(link = name, "removed a link of a network that is no more");
            }
        }
        let awaited = networks.iter().filter(|view| !self.here.contains_key(&view.name));
        let awaited: Vec<Prefix> =
            awaited.flat_map(|view| view.network.pools.iter().map(Pool::cidr)).collect();
        let known: BTreeSet<Entry> =
            self.here.values().flat_map(|here| here.peers.values().flatten()).copied().collect();
        for route in netlink.direct_routes().await?.difference(&known) {
            let is_awaited = |subnet: &Prefix| awaited.iter().any(|range| range.overlaps(subnet));
            if matches!(route, Entry::Direct { subnet, .. } if is_awaited(subnet)) {
                continue;
            }
            netlink.remove(0, &[*route]).await?;
            tracing::info!(%route, "removed what led to a peer of a network that is no more");
        }
        Ok(())
    }

    /// Has others let packets pass.
    async fn pass_others(&self) -> io::Result<()> {
        let has_networks = !self.here.is_empty();
        if (has_networks || self.filter.is_set()) && foreign::pass(has_networks).await? {
            tracing::info!(
                has_networks,
                "changed what the chain FORWARD of iptables lets pass of overlay networks"
            );
        }
        Ok(())
    }

    /// Lets packets pass, and only those that may.
    async fn allow(&mut self) -> io::Result<()> {
        if self.here.is_empty() && !self.filter.is_set() {
            return Ok(());
        }
        let ranges = || self.here.values().flat_map(|here| &here.network.pools);
        sysctl::forward(
            ranges().any(|pool| pool.cidr().is_ipv4()),
            ranges().any(|pool| !pool.cidr().is_ipv4()),
        )?;
        if self.filter.ensure(ruleset(&self.zones())).await.map_err(io::Error::other)? {
            self.put_back(
                "packet filter rules of overlay networks were changed by somebody else; they are put back",
            );
        }
        Ok(())
    }

    /// Makes answers to clients elsewhere go back by the node that they came by. Tells what others may know of it.
    async fn lead_back(&mut self, netlink: &Netlink) -> io::Result<Returning> {
        let networks = self.here.iter().filter(|(_, here)| returns::is_possible(&here.network));
        let names: BTreeSet<NetworkName> = networks.clone().map(|(name, _)| name.clone()).collect();
        if names.is_empty() && !self.returns.is_set() {
            return Ok(Returning::default());
        }
        let mut own = netlink.own_addresses().await?;
        own.remove(&self.config.address);
        if own.len() > MOST_ADDRESSES {
            return Err(io::Error::other(format!("the host has more than {MOST_ADDRESSES} addresses")));
        }
        let vnis = networks.clone().map(|(_, here)| here.links.vni).collect();
        let of_families = |here: &Here| {
            let families: BTreeSet<bool> = here.links.subnets.iter().map(Prefix::is_ipv4).collect();
            families.into_iter().map(|v4| (here.links.vni, v4)).collect::<Vec<_>>()
        };
        let rules = networks.flat_map(|(_, here)| of_families(here)).collect();
        let was_set = self.returns.is_set();
        let lacking = netlink.ensure_rules(&rules).await?;
        let changed = self.returns.ensure(returns::ruleset(&vnis)).await.map_err(io::Error::other)?;
        if changed || was_set && lacking > 0 {
            self.put_back("rules that lead answers back to clients elsewhere were changed by somebody else; they are put back");
        }
        Ok(Returning { networks: names, own })
    }

    fn put_back(&self, what: &str) {
        self.metrics.repairs.inc();
        tracing::warn!("{what}");
    }

    fn zones(&self) -> BTreeSet<Zone> {
        let vni = |name: &NetworkName| self.here.get(name).map(|here| here.network.vni);
        let zone = |here: &Here| Zone {
            vni: here.network.vni,
            ranges: here.network.pools.iter().map(|pool| pool.cidr()).collect(),
            reaches: here.network.reaches.iter().filter_map(vni).collect(),
            direct: here.direct(),
        };
        self.here.values().map(zone).collect()
    }

    fn note(&self, problems: &[String]) {
        Problems::set(&self.handle.problems.kernel, problems.to_vec());
    }
}

/// Makes what is there what is wanted.
async fn apply(
    netlink: &Netlink,
    metrics: &Metrics,
    vxlan: u32,
    wanted: &BTreeSet<Entry>,
    there: &BTreeSet<Entry>,
) -> io::Result<()> {
    let (add, remove) = difference(wanted, there);
    // What leads to a peer goes before what its packets need.
    netlink.remove(vxlan, &remove).await?;
    netlink.add(vxlan, &add).await?;
    metrics.entries.with_label_values(&["set"]).inc_by(add.len() as u64);
    metrics.entries.with_label_values(&["removed"]).inc_by(remove.len() as u64);
    Ok(())
}

fn send_if_new<T: PartialEq>(to: &watch::Sender<T>, value: T) {
    to.send_if_modified(|known| {
        let is_new = *known != value;
        *known = value;
        is_new
    });
}

fn count_peers(metrics: &Metrics, name: &NetworkName, here: &Here) {
    let count = i64::try_from(here.peers.len()).unwrap_or(i64::MAX);
    metrics.peers.with_label_values(&[name.as_str()]).set(count);
}

/// Something has changed among the packet filter rules, if that is told.
async fn told(rules: &mut Option<nft::Events>) {
    match rules {
        Some(rules) => rules.next().await,
        None => std::future::pending().await,
    }
}
