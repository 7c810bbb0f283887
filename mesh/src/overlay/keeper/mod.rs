//! The task that makes the kernel what the plan says.
//!
//! A change of one peer is a comparison of that peer's entries, and a few messages. What else changes, in the catalog or in the kernel,
//! makes that part due to be compared which it is about ([`Part`]); on a slow tick, and when the kernel tells more than can be read, all
//! of them are. Parts are compared one after the other, and between two of them whatever else has happened has its turn.

mod filters;
mod networks;
mod sealing;
mod short_way;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nerve::model::{NetworkName, NodeKey, Prefix, Vni};
use nerve::tasks::Tasks;
use synapse::catalog::{Catalog, NetworkChange, NetworkChanges};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::due::{Due, Part, Reason, concerned};
use super::events::{Event, Events};
use super::here::Here;
use super::netlink::Netlink;
use super::programs::Programs;
use super::sealed::Sealed;
use super::underlay::Underlay;
use super::ways::Ways;
use super::{
    Config, FastPath, Handle, Held, Metrics, Problems, fast_path, firewall, foreign, returns, send_if_new,
    veth,
};
use crate::nft;
use networks::{count_peers, follow_peers};

/// How often it is looked whether everything is there, whatever the kernel told.
const TICK: Duration = Duration::from_secs(30);
/// What failed is tried again after this.
const PAUSE: Duration = Duration::from_secs(2);
/// The kernel's events come in bursts: what they are about is compared this long after the first.
const SETTLE: Duration = Duration::from_millis(100);
/// The same of containers that come and go: until then their packets take the usual way.
const SETTLE_FAST_PATH: Duration = Duration::from_secs(1);
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
    listen: Listen,
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
            held: listen.held.clone(),
            usual_way: listen.usual_way.clone(),
            handle: handle.clone(),
            metrics: metrics.clone(),
            due: Due::default(),
            host: None,
            here: BTreeMap::new(),
            filter: nft::Kept::new([firewall::TABLE]),
            passed: None,
            returns: nft::Kept::new([returns::INSIDE, returns::OUTSIDE]),
            routing: None,
            fast_path: nft::Kept::new([fast_path::TABLE]),
            programs: Programs::default(),
            sealed: Sealed::new(metrics.clone()),
            refused: None,
            problems: BTreeMap::new(),
            narrowest: None,
            asked: None,
            tell: tell.clone(),
        };
        keeper.run()
    });
}

/// The networks that containers here can be attached to.
pub(super) type Ready = BTreeMap<NetworkName, Place>;

/// What the keeper is told of, besides the catalog and the kernel. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Listen {
    pub(super) held: watch::Receiver<Held>,
    /// What arrives by tunnels is to take the usual way.
    pub(super) usual_way: watch::Receiver<bool>,
}

/// Where it is told how the kernel stands. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Tell {
    pub(super) ready: Arc<watch::Sender<Ready>>,
    /// `None`: not known yet.
    pub(super) returning: Arc<watch::Sender<Option<Returning>>>,
    /// The range of the link that this node's address is on.
    pub(super) link: Arc<watch::Sender<Option<Prefix>>>,
    /// What arrives by tunnels takes the usual way.
    pub(super) usual_way: Arc<watch::Sender<bool>>,
    /// What others are to know of this node's keys; `None`: not known yet, or not needed.
    pub(super) keys: Arc<watch::Sender<Option<Keys>>>,
    /// How packets to peers are encrypted.
    pub(super) ways: Arc<watch::Sender<Arc<Ways>>>,
}

/// This node's keys for encrypted networks, or why it has none.
pub(super) type Keys = Result<Vec<NodeKey>, String>;

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
    /// Programs are to see what containers of it send.
    pub(super) programs: bool,
}

struct Keeper {
    config: Arc<Config>,
    catalog: Catalog,
    held: watch::Receiver<Held>,
    /// What arrives by tunnels is to take the usual way.
    usual_way: watch::Receiver<bool>,
    handle: Handle,
    metrics: Metrics,
    due: Due,
    /// As it was looked at last.
    host: Option<Host>,
    here: BTreeMap<NetworkName, Here>,
    filter: nft::Kept<1>,
    /// What others' packet filters were made to know: whether there are networks here.
    passed: Option<bool>,
    returns: nft::Kept<2>,
    routing: Option<Routing>,
    fast_path: nft::Kept<1>,
    programs: Programs,
    sealed: Sealed,
    /// Why the kernel took no programs the last time.
    refused: Option<String>,
    /// What fails, by what it is a part of.
    problems: BTreeMap<Part, String>,
    /// The least that the way to a peer was ever known to pass, and to which. It never grows while the agent runs: what the kernel
    /// knows of ways it forgets after some minutes, and networks are not to go up and down with that.
    narrowest: Option<(u32, IpAddr)>,
    /// When that was asked for.
    asked: Option<Instant>,
    tell: Tell,
}

/// This host, as far as networks depend on it.
struct Host {
    underlay: Underlay,
    /// The addresses that its packets come from elsewhere with, but for that which other nodes know.
    own: BTreeSet<IpAddr>,
}

/// The routing rules of answers to clients elsewhere.
struct Routing {
    /// As they were set last: of which networks, each with whether it is of IPv4.
    set: BTreeSet<(Vni, bool)>,
    /// Somebody may have changed them since.
    is_in_doubt: bool,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let opened = Netlink::open().and_then(|opened| Ok((opened, Events::open()?)));
            match opened {
                Ok(((connection, netlink), mut events)) => tokio::select! {
                    () = connection => tracing::warn!("the kernel ended the netlink connection; it is opened again"),
                    error = self.follow(&netlink, &mut events) => {
                        tracing::warn!(%error, "what changes of links and routes is not told; it is asked for again");
                    }
                },
                Err(error) => self.say(vec![format!("overlay networks are off here: {error}")]),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Ends when the kernel tells nothing any more.
    async fn follow(&mut self, netlink: &Netlink, events: &mut Events) -> io::Error {
        let mut rules = nft::Events::open()
            .inspect_err(|error| tracing::debug!(%error, "changes of packet filter rules are not told"))
            .ok();
        let mut changes = self.catalog.subscribe_networks();
        let (mut held, mut usual_way) = (self.held.clone(), self.usual_way.clone());
        let mut tick = tokio::time::interval_at(Instant::now() + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.expect_all(Reason::Start, Duration::ZERO);
        loop {
            tokio::select! {
                changed = changes.changed() => self.follow_catalog(netlink, changed).await,
                told = events.next() => match told {
                    Ok(event) => self.note_event(&event),
                    Err(error) => return error,
                },
                changed = told(&mut rules) => self.note_rules(&changed),
                Ok(()) = held.changed() => self.note_held(),
                Ok(()) = usual_way.changed() => self.expect(Part::FastPath, Reason::Follows, Duration::ZERO),
                _ = tick.tick() => self.expect_all(Reason::Tick, Duration::ZERO),
                () = until(self.due.next()) => self.compare_next(netlink, &mut rules).await,
            }
        }
    }

    /// A part is to be compared within that time.
    fn expect(&mut self, part: Part, reason: Reason, within: Duration) {
        if reason.is_doubt() {
            match &part {
                Part::Filter => self.filter.doubt(),
                Part::Sealed => self.sealed.doubt(),
                Part::FastPath => {
                    self.fast_path.doubt();
                    self.programs.doubt();
                }
                Part::Returns => {
                    self.returns.doubt();
                    self.routing.iter_mut().for_each(|routing| routing.is_in_doubt = true);
                }
                _ => {}
            }
        }
        let labels = [part.as_str(), reason.as_str()];
        if self.due.add(part, Instant::now() + within) {
            self.metrics.comparisons.with_label_values(&labels).inc();
        }
    }

    fn expect_all(&mut self, reason: Reason, within: Duration) {
        let names: BTreeSet<NetworkName> =
            self.here.keys().chain(self.held.borrow().keys()).cloned().collect();
        let rest = [
            Part::Host,
            Part::Sealed,
            Part::Others,
            Part::Filter,
            Part::Returns,
            Part::FastPath,
            Part::Obsolete,
        ];
        for part in names.into_iter().map(Part::Network).chain(rest) {
            self.expect(part, reason, within);
        }
    }

    fn note_event(&mut self, event: &Event) {
        if *event == Event::Overrun {
            self.metrics.overruns.with_label_values(&["routing"]).inc();
            return self.expect_all(Reason::Overrun, SETTLE);
        }
        if let Event::Link { index, name, now: None } = event
            && name.starts_with(veth::LINK)
            && let Err(error) = self.programs.forget(*index)
        {
            tracing::debug!(%error, link = index, "a container that is gone is still known to programs");
            self.expect(Part::FastPath, Reason::Failed, SETTLE);
        }
        let nothing = BTreeSet::new();
        let own = self.host.as_ref().map_or(&nothing, |host| &host.own);
        for part in concerned(event, &self.here, own) {
            tracing::debug!(?part, ?event, "to be compared");
            let within = if part == Part::FastPath { SETTLE_FAST_PATH } else { SETTLE };
            self.expect(part, Reason::Kernel, within);
        }
    }

    fn note_rules(&mut self, changed: &nft::Changed) {
        let reason = if changed.overrun { Reason::Overrun } else { Reason::Kernel };
        if changed.overrun {
            self.metrics.overruns.with_label_values(&["filter"]).inc();
        }
        let parts = [
            (Part::Sealed, self.sealed.is_changed(changed)),
            (Part::Filter, self.filter.is_changed(changed)),
            (Part::Others, foreign::TABLES.into_iter().any(|table| changed.concerns(table))),
            (Part::Returns, self.returns.is_changed(changed)),
            (Part::FastPath, self.fast_path.is_changed(changed)),
        ];
        for (part, _) in parts.into_iter().filter(|(_, is_concerned)| *is_concerned) {
            self.expect(part, reason, SETTLE);
        }
    }

    /// This node has a part of other networks, or another part of one.
    fn note_held(&mut self) {
        let held = self.held.borrow().clone();
        let failing = self.problems.keys().filter_map(|part| match part {
            Part::Network(name) => Some(name),
            _ => None,
        });
        let names: BTreeSet<NetworkName> =
            self.here.keys().chain(held.keys()).chain(failing).cloned().collect();
        for name in names {
            if self.here.get(&name).map(|here| here.slot) != held.get(&name).copied()
                || !held.contains_key(&name)
            {
                self.expect(Part::Network(name), Reason::Catalog, Duration::ZERO);
            }
        }
    }

    /// Where peers changed, their entries alone are changed.
    async fn follow_catalog(&mut self, netlink: &Netlink, changed: NetworkChanges) {
        for (name, NetworkChange { record, slots }) in changed {
            if self.concerns_sealed(&name, record) {
                // A peer's keys may be others. Whoever changed, the ways come first and then what follows from them.
                self.expect(Part::Sealed, Reason::Catalog, Duration::ZERO);
                self.expect(Part::Network(name.clone()), Reason::Catalog, Duration::ZERO);
                if !record {
                    continue;
                }
            }
            if record {
                self.expect(Part::Network(name), Reason::Catalog, Duration::ZERO);
                self.expect(Part::Obsolete, Reason::Catalog, Duration::ZERO);
                continue;
            }
            // Of a network that is not here, or another one by now, all peers are looked at once it is.
            let known = self.here.get_mut(&name).zip(self.catalog.network(name.as_str()));
            let Some((here, view)) = known.filter(|(here, view)| here.network == view.network) else {
                continue;
            };
            let followed = follow_peers(netlink, &self.metrics, here, &view, slots).await;
            let followed = followed.and_then(|peers| self.programs.change_peers(here.links.vni, &peers));
            let is_direct = here.links.beneath.is_some();
            count_peers(&self.metrics, &name, here);
            if let Err(error) = followed {
                tracing::debug!(%error, network = %name, "a peer's entries; the network is compared now");
                self.expect(Part::Network(name), Reason::Failed, Duration::ZERO);
            } else if is_direct {
                // There the packet filter knows peers as well.
                self.expect(Part::Filter, Reason::Follows, Duration::ZERO);
            }
        }
    }

    /// Compares the first part that is due with what is wanted and puts it right.
    async fn compare_next(&mut self, netlink: &Netlink, rules: &mut Option<nft::Events>) {
        let Some(part) = self.due.take(Instant::now()) else { return };
        let done = match &part {
            Part::Host => self.look_at_host(netlink).await,
            Part::Sealed => self.seal(netlink, rules).await,
            Part::Network(name) => self.compare_network(netlink, name).await,
            Part::Others => self.pass_others().await,
            Part::Filter => {
                let allowed = self.allow(rules).await;
                // Now they reach each other, or it is said why not.
                self.tell_ready();
                allowed
            }
            Part::Returns => self.lead_back(netlink, rules).await,
            Part::FastPath => self.shorten(netlink, rules).await,
            Part::Obsolete => {
                let removed = self.remove_obsolete(netlink).await;
                if removed.is_ok() && self.sealed.ways().is_some() {
                    // What kept packets of networks that are gone now has served.
                    self.expect(Part::Sealed, Reason::Follows, Duration::ZERO);
                }
                removed
            }
        };
        match done {
            Ok(()) => drop(self.problems.remove(&part)),
            Err(error) => {
                self.problems.insert(part.clone(), self.fails(&part, &error));
                // Containers lack little by these, and a kernel does not learn them by being asked often.
                if !matches!(part, Part::Returns | Part::FastPath) {
                    self.expect(part, Reason::Failed, PAUSE);
                }
            }
        }
        self.say(self.problems.values().cloned().collect());
    }

    fn fails(&self, part: &Part, error: &io::Error) -> String {
        let what = match part {
            Part::Host => &format!("the link of {} cannot be read", self.config.address),
            Part::Sealed => "what encrypts networks is not as it should be on this node",
            Part::Network(name) => &format!("network {name} is not as it should be on this node"),
            Part::Filter => "containers cannot reach beyond this node",
            Part::Others => "what iptables forwards of overlay networks cannot be seen to",
            Part::Returns => "containers here are not shown clients' own addresses by other nodes",
            Part::FastPath => {
                "packets between containers take the long way through this host's packet filter"
            }
            Part::Obsolete => "links of networks that are no more stay behind",
        };
        format!("{what}: {error}")
    }

    /// What depends on all networks.
    fn expect_following(&mut self) {
        for part in [Part::Filter, Part::Returns, Part::FastPath] {
            self.expect(part, Reason::Follows, Duration::ZERO);
        }
        if self.passed != Some(!self.here.is_empty()) {
            self.expect(Part::Others, Reason::Follows, Duration::ZERO);
        }
    }

    fn say(&self, problems: Vec<String>) {
        Problems::set(&self.handle.problems.kernel, problems);
    }
}

fn place(here: &Here, fast_path: FastPath) -> Place {
    let subnets = here.links.subnets.clone();
    let programs = fast_path == FastPath::Programs;
    Place { bridge: here.indexes.bridge, subnets, mtu: here.links.mtu, programs }
}

/// Which tables of the packet filter have changed, if that is told.
async fn told(rules: &mut Option<nft::Events>) -> nft::Changed {
    match rules {
        Some(rules) => rules.next().await,
        None => std::future::pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
