//! Whom there is to probe, and which probes tell what.
//!
//! Of each peer: small and large packets beneath the networks, and through each of them small ones with and without a checksum
//! and those of full size. Which of them pass tells causes apart.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use nerve::model::{NetworkName, NodeName, Prefix, Subnet};
use synapse::catalog::{Catalog, NetworkView};
use tokio::sync::{Semaphore, watch};

use super::super::Config;
use super::super::keeper::{Place, Ready};
use super::super::plan::{self, gateway};
use super::ask::{Outcome, Probe, answers, ask, ask_by, heard, largest, token};
use super::port;

/// What every network passes (RFC 791: 576 bytes for IPv4; a probe has less).
const SMALL: u32 = 128;
/// So many peers are probed at once.
const AT_ONCE: usize = 32;
/// Of so many at once it is searched what passes; each of these takes a score of sockets.
const SEARCHES: usize = 8;

/// Asks peers. Clones are the same.
#[derive(Debug, Clone)]
pub struct Prober {
    config: Arc<Config>,
    catalog: Catalog,
    ready: watch::Receiver<Ready>,
    /// The range of the link that this node's address is on.
    link: watch::Receiver<Option<Prefix>>,
    searches: Arc<Semaphore>,
}

/// A node, and what came back from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Which.
    pub node: NodeName,
    /// Its address beneath the networks.
    pub address: IpAddr,
    /// What passes there.
    pub underlay: Underlay,
    /// What passes on each network that it shares with this node.
    pub paths: Vec<Path>,
}

/// What passes beneath the networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// A small packet.
    pub small: Outcome,
    /// A packet of `size` bytes, as full ones of networks are there.
    pub large: Outcome,
    /// How large that was.
    pub size: u32,
    /// The largest that passes, where that one did not and there was time to search.
    pub largest: Option<u32>,
    /// Does the node answer anything else? Asked where probes are not answered.
    pub answers: bool,
}

/// How a network reaches a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In VXLAN.
    Tunnel,
    /// As they are, over the link that both nodes are on.
    Direct,
}

/// What passes on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Which network.
    pub network: NetworkName,
    /// How.
    pub way: Way,
    /// Its MTU on this node.
    pub mtu: u32,
    /// What a packet of that size has beneath.
    pub outside: u32,
    /// A small packet.
    pub small: Outcome,
    /// A small packet without a UDP checksum, asked where the one with it was lost, and where IPv4 allows it.
    pub bare: Option<Outcome>,
    /// Did the small one that was lost come to the other node? `None`: nobody says.
    pub arrived: Option<bool>,
    /// A packet of the MTU's size.
    pub full: Outcome,
    /// The largest that passes, where that one did not and there was time to search.
    pub largest: Option<u32>,
}

/// What is to be probed of a peer.
struct Target {
    node: NodeName,
    address: IpAddr,
    ways: Vec<Ahead>,
}

/// A path that is to be probed.
struct Ahead {
    network: NetworkName,
    way: Way,
    mtu: u32,
    outside: u32,
    from: IpAddr,
    to: IpAddr,
}

impl Prober {
    pub(in crate::overlay) fn new(
        config: &Arc<Config>,
        catalog: &Catalog,
        ready: watch::Receiver<Ready>,
        link: watch::Receiver<Option<Prefix>>,
    ) -> Self {
        Self {
            config: Arc::clone(config),
            catalog: catalog.clone(),
            ready,
            link,
            searches: Arc::new(Semaphore::new(SEARCHES)),
        }
    }

    /// The UDP port of the tunnels.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.config.port
    }

    /// The ranges of the networks that this node has a part of.
    #[must_use]
    pub fn ranges(&self) -> Vec<(NetworkName, Vec<Prefix>)> {
        let ready = self.ready.borrow().clone();
        let views = ready.keys().filter_map(|name| self.catalog.network(name.as_str()));
        views.map(|view| (view.name.clone(), view.network.pools.iter().map(|p| p.cidr()).collect())).collect()
    }

    /// Probes every peer within `within`; tells how many there was no time for besides.
    pub async fn probe(&self, within: Duration) -> (Vec<Peer>, usize) {
        let targets = self.targets();
        let count = targets.len();
        let mut probed =
            stream::iter(targets.into_iter().map(|target| self.probe_one(target))).buffer_unordered(AT_ONCE);
        let mut peers = Vec::new();
        let all = async {
            while let Some(peer) = probed.next().await {
                peers.push(peer);
            }
        };
        // What is there by then is told.
        let _ = tokio::time::timeout(within, all).await;
        peers.sort_by(|one, other| one.node.cmp(&other.node));
        let left = count - peers.len();
        (peers, left)
    }

    fn targets(&self) -> Vec<Target> {
        let (ready, link) = (self.ready.borrow().clone(), *self.link.borrow());
        let mut targets: BTreeMap<NodeName, Target> = BTreeMap::new();
        for (name, place) in &ready {
            let Some(view) = self.catalog.network(name.as_str()) else { continue };
            for (slot, peer) in view.subnets.all() {
                if peer.node == self.config.node {
                    continue;
                }
                let new = Target { node: peer.node.clone(), address: peer.address, ways: Vec::new() };
                let target = targets.entry(peer.node.clone()).or_insert(new);
                let is_near = plan::is_direct(&view.network, link, &peer);
                target.ways.extend(ahead(&view, place, &view.network.subnets(slot), (&peer, is_near)));
            }
        }
        targets.into_values().collect()
    }

    async fn probe_one(&self, target: Target) -> Peer {
        let Target { node, address, ways } = target;
        let port = port(self.config.port);
        let size = ways.iter().map(|ahead| ahead.outside).max().unwrap_or(SMALL);
        let paths = futures_util::future::join_all(
            ways.into_iter().map(|ahead| self.probe_path(ahead, SocketAddr::new(address, port))),
        );
        let underlay = self.probe_underlay(self.config.address, SocketAddr::new(address, port), size);
        let (underlay, paths) = tokio::join!(underlay, paths);
        Peer { node, address, underlay, paths }
    }

    async fn probe_underlay(&self, from: IpAddr, to: SocketAddr, size: u32) -> Underlay {
        let probe = Probe { from, to, size: SMALL, checksum: true };
        let (small, large) = tokio::join!(ask(probe), ask(Probe { size, ..probe }));
        let largest = self.search(probe, &small, &large, size).await;
        let answers = small.passed() || answers(to).await;
        Underlay { small, large, size, largest, answers }
    }

    /// `beneath` is where the peer answers without the network.
    async fn probe_path(&self, ahead: Ahead, beneath: SocketAddr) -> Path {
        let Ahead { network, way, mtu, outside, from, to } = ahead;
        let (of_small, checksum) = (token(), true);
        let probe = Probe { from, to: SocketAddr::new(to, beneath.port()), size: SMALL, checksum };
        let (small, full) = tokio::join!(ask_by(probe, of_small), ask(Probe { size: mtu, ..probe }));
        let (mut bare, mut arrived) = (None, None);
        if small == Outcome::Lost {
            let without = async {
                if to.is_ipv4() { Some(ask(Probe { checksum: false, ..probe }).await) } else { None }
            };
            let inquiry = Probe { from: self.config.address, to: beneath, size: SMALL, checksum };
            (bare, arrived) = tokio::join!(without, heard(inquiry, of_small));
        }
        let largest = self.search(probe, &small, &full, mtu).await;
        Path { network, way, mtu, outside, small, bare, arrived, full, largest }
    }

    /// How large a packet may be, where a small one passed and one of that size did not.
    async fn search(&self, probe: Probe, small: &Outcome, large: &Outcome, size: u32) -> Option<u32> {
        let is_between = matches!((small, large), (Outcome::Answered(_), Outcome::Lost | Outcome::TooLarge));
        // Where very many have the same trouble, a few of them tell how large.
        let _permit = is_between.then(|| self.searches.try_acquire().ok())??;
        Some(largest(probe, SMALL, size).await)
    }
}

/// The ways of a network to a peer with these subnets, of which one family may need no tunnel.
fn ahead(
    view: &NetworkView,
    place: &Place,
    theirs: &[Prefix],
    (peer, is_near): (&Subnet, bool),
) -> Vec<Ahead> {
    let ahead = |subnet: &Prefix, way| {
        let own = place.subnets.iter().find(|own| own.is_ipv4() == subnet.is_ipv4())?;
        let (from, to) = (gateway(*own)?, gateway(*subnet)?);
        let outside = match way {
            Way::Tunnel if view.network.is_encrypted() => {
                place.mtu + plan::overhead(peer.address) + plan::encryption(peer.address)
            }
            Way::Tunnel => place.mtu + plan::overhead(peer.address),
            Way::Direct => place.mtu,
        };
        Some(Ahead { network: view.name.clone(), way, mtu: place.mtu, outside, from, to })
    };
    let is_direct = |subnet: &&Prefix| is_near && subnet.is_ipv4() == peer.address.is_ipv4();
    // Families share a tunnel: one of them is enough, and IPv4 tells more.
    let tunnelled = || theirs.iter().filter(|subnet| !is_direct(subnet));
    let by_tunnel = tunnelled().find(|subnet| subnet.is_ipv4()).or_else(|| tunnelled().next());
    let direct = theirs.iter().find(is_direct).and_then(|subnet| ahead(subnet, Way::Direct));
    direct.into_iter().chain(by_tunnel.and_then(|subnet| ahead(subnet, Way::Tunnel))).collect()
}
