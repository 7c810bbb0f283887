//! The task that keeps the kernel's rules and routes, and the data plane's table, equal to what is wanted.
//!
//! While no service with an endpoint here asks for clients' addresses it only listens to the catalog. Else it looks at the kernel
//! whenever that tells of a change, and on a slow tick. What open connections need stays until the last has ended, those too that an
//! agent before finishes after this one took over: the kernel knows them by their mark.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nerve::model::ServiceName;
use nerve::tasks::Tasks;
use synapse::catalog::{Catalog, Freshness, NetworkChanges, Subscription};
use tokio::time::{Instant, MissedTickBehavior};

use super::netlink::{Family, Netlink};
use super::networks::Networks;
use super::plan::{Judged, Needs, judge};
use super::ruleset::{Marks, TABLE, ruleset};
use super::{Handle, Metrics, UsualWay, asks, sockets, words};
use crate::nft;
use crate::proxy::{Plain, Way, Ways};

/// How often it is looked whether everything is there, whatever the kernel told.
const TICK: Duration = Duration::from_secs(5);
/// Events that come within this are one.
const SETTLE: Duration = Duration::from_millis(200);

/// Starts it.
pub(super) fn start(handle: Handle, catalog: Catalog, usual_way: UsualWay, metrics: Metrics, tasks: &Tasks) {
    tasks.spawn_until_stopped("steering", move || {
        let keeper = Keeper {
            handle: handle.clone(),
            catalog: catalog.clone(),
            usual_way: usual_way.clone(),
            metrics: metrics.clone(),
            wanted: BTreeMap::new(),
            networks: Networks::default(),
            said: BTreeMap::new(),
            kernel: Kernel::Unknown,
        };
        keeper.run()
    });
}

/// Takes everything of ours out of the kernel.
pub(super) async fn clear() -> io::Result<()> {
    let (connection, netlink) = Netlink::open()?;
    while_open(connection, remove_all(&netlink)).await?;
    Ok(())
}

async fn while_open<T>(
    connection: impl Future<Output = ()>,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::select! {
        done = work => done,
        () = connection => Err(io::Error::other("the kernel ended the netlink connection")),
    }
}

/// Nothing is marked any more before what the mark leads to goes. Tells whether there was anything.
async fn remove_all(netlink: &Netlink) -> io::Result<bool> {
    let rules = TABLE.remove().await;
    let mut found = false;
    for family in Family::BOTH {
        found |= netlink.remove(family).await?;
    }
    match rules {
        Ok(()) => Ok(found),
        // Where it never was installed, there never were rules.
        Err(nft::Error::Missing) if !found => Ok(false),
        Err(error) => Err(io::Error::other(error)),
    }
}

struct Keeper {
    handle: Handle,
    catalog: Catalog,
    usual_way: UsualWay,
    metrics: Metrics,
    /// The services that ask.
    wanted: BTreeMap<ServiceName, Wanted>,
    networks: Networks,
    /// What was logged of each.
    said: BTreeMap<ServiceName, BTreeSet<Plain>>,
    kernel: Kernel,
}

/// A service that asks for clients' addresses.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// The addresses of its endpoints on this node.
    here: BTreeSet<IpAddr>,
    /// Those of the others.
    elsewhere: BTreeSet<IpAddr>,
    /// Some of those on this node are reached by a unix socket.
    sockets: bool,
}

/// What the kernel has of ours.
#[derive(Debug, PartialEq, Eq)]
enum Kernel {
    /// Perhaps what an earlier agent left.
    Unknown,
    Nothing,
    /// What serves these needs; the table as nft prints it.
    Set(Needs, String),
}

/// Of the catalog: its services', and its networks'.
type Changes = (Subscription, Subscription<NetworkChanges>);

type Verdicts = BTreeMap<IpAddr, Result<Judged, Plain>>;

impl Keeper {
    async fn run(mut self) {
        let mut changes = (self.catalog.subscribe(), self.catalog.subscribe_networks());
        loop {
            self.rest(&mut changes).await;
            match Netlink::open() {
                Ok((connection, mut netlink)) => {
                    let followed = while_open(connection, async {
                        self.follow(&mut netlink, &mut changes).await;
                        Ok(())
                    });
                    match followed.await {
                        Ok(()) => continue,
                        Err(error) => tracing::warn!(%error, "steering: it is opened again"),
                    }
                }
                Err(error) => self.off(&format!("the kernel's routes cannot be read ({error})")),
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Waits until something is wanted. What an earlier agent left goes, once it is known that nobody wants it.
    async fn rest(&mut self, (services, networks): &mut Changes) {
        while !self.is_wanted() {
            self.tell(&Verdicts::new(), false);
            self.ask_for_usual_way(self.kernel != Kernel::Nothing);
            // Asked first: what made it known is among the changes then.
            let is_known = *self.catalog.freshness() != Freshness::Awaiting;
            tokio::select! {
                biased;
                names = services.changed() => { self.note(names); }
                _ = networks.changed() => self.note_networks(),
                () = self.remove_left(), if is_known && self.kernel == Kernel::Unknown => {
                    self.kernel = Kernel::Nothing;
                }
                () = tokio::time::sleep(TICK), if self.kernel == Kernel::Unknown => {}
            }
        }
    }

    /// Does not complete while somebody else's connections need it: that is asked anew on the next tick.
    async fn remove_left(&self) {
        match sockets::destinations(self.marks()).await {
            Ok(open) if !open.is_empty() => {
                tracing::debug!("what steers answers stays: an agent before has connections that need it");
                return std::future::pending().await;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "cannot look whether an agent before has connections"),
        }
        let removed = match Netlink::open() {
            Ok((connection, netlink)) => while_open(connection, remove_all(&netlink)).await,
            Err(error) => Err(error),
        };
        match removed {
            Ok(true) => tracing::info!("removed what an agent before had left to steer answers by"),
            Ok(false) => {}
            // Who may not look has most likely left nothing either.
            Err(error) => tracing::debug!(%error, "cannot look for what an agent before may have left"),
        }
    }

    async fn follow(&mut self, netlink: &mut Netlink, (services, networks): &mut Changes) {
        let mut rules = nft::Events::open()
            .inspect_err(|error| tracing::debug!(%error, "changes of packet filter rules are not told"))
            .ok();
        let mut tick = tokio::time::interval_at(Instant::now() + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.ask_for_usual_way(true);
        let mut given = self.usual_way.given.clone();
        while self.is_wanted() || matches!(self.kernel, Kernel::Set(..)) {
            self.reconcile(netlink).await;
            if !self.is_wanted() && self.kernel == Kernel::Nothing {
                break;
            }
            loop {
                tokio::select! {
                    names = services.changed() => if self.note(names) { break },
                    _ = networks.changed() => {
                        self.note_networks();
                        break;
                    }
                    Ok(()) = given.changed() => {
                        self.note_networks();
                        break;
                    }
                    told = netlink.changed(self.handle.config.table) => {
                        if !told {
                            return;
                        }
                        tokio::time::sleep(SETTLE).await;
                        break;
                    }
                    () = told(&mut rules) => {
                        tokio::time::sleep(SETTLE).await;
                        break;
                    }
                    _ = tick.tick() => break,
                }
            }
            self.take_told(netlink, &mut rules).await;
        }
        self.note_lacks(None);
    }

    /// Events come in bursts: takes those that are there already.
    async fn take_told(&self, netlink: &mut Netlink, rules: &mut Option<nft::Events>) {
        loop {
            tokio::select! {
                biased;
                told = netlink.changed(self.handle.config.table) => if !told { return },
                () = told(rules) => {}
                () = std::future::ready(()) => return,
            }
        }
    }

    fn is_wanted(&self) -> bool {
        self.addresses().next().is_some()
    }

    /// The endpoints that may be shown clients' addresses.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.wanted.values().flat_map(|wanted| {
            let elsewhere = wanted.elsewhere.iter().filter(|address| self.networks.contain(**address));
            wanted.here.iter().chain(elsewhere).copied()
        })
    }

    /// Takes over what the catalog says of networks, where a service asks.
    fn note_networks(&mut self) {
        if !self.wanted.is_empty() {
            let given = *self.usual_way.given.borrow();
            self.networks = Networks::of(&self.catalog, &self.handle.config.node, given);
        }
    }

    /// Answers by tunnels are known by their sockets, which must be looked for.
    fn ask_for_usual_way(&self, asked: bool) {
        self.usual_way.asks.send_if_modified(|asks| std::mem::replace(asks, asked) != asked);
    }

    /// Takes over what the catalog says of these services. Tells whether that changes anything.
    fn note(&mut self, names: HashSet<ServiceName>) -> bool {
        let (mut changed, asked) = (false, !self.wanted.is_empty());
        for name in names {
            let service = self.catalog.service(name.as_str()).filter(|service| asks(service));
            let wanted = service.map(|service| {
                let node = &self.handle.config.node;
                let (here, elsewhere): (Vec<_>, Vec<_>) =
                    service.endpoints.iter().partition(|endpoint| endpoint.instance.node == *node);
                Wanted {
                    here: here.iter().map(|endpoint| endpoint.instance.address).collect(),
                    elsewhere: elsewhere.iter().map(|endpoint| endpoint.instance.address).collect(),
                    sockets: here.iter().any(|endpoint| endpoint.instance.socket.is_some()),
                }
            });
            if self.wanted.get(&name) == wanted.as_ref() {
                continue;
            }
            changed = true;
            match wanted {
                Some(wanted) => drop(self.wanted.insert(name, wanted)),
                None => {
                    self.wanted.remove(&name);
                    self.said.remove(&name);
                }
            }
        }
        if !asked {
            self.note_networks();
        }
        changed
    }

    async fn reconcile(&mut self, netlink: &Netlink) {
        let verdicts = match self.judge(netlink, self.addresses().collect()).await {
            Ok(verdicts) => verdicts,
            Err(error) => return self.off(&error.to_string()),
        };
        let needs = Needs::of(verdicts.iter());
        if needs.is_nothing() {
            // Nobody begins what the rules are needed for from here on.
            self.tell(&verdicts, false);
        }
        let needs = self.and_open(netlink, needs).await;
        let done =
            if needs.is_nothing() { self.withdraw(netlink).await } else { self.apply(netlink, needs).await };
        match done {
            Ok(()) => {
                self.tell(&verdicts, false);
                self.note_lacks(None);
            }
            Err(why) => {
                if self.kernel == Kernel::Nothing {
                    // A part of it may be there.
                    self.kernel = Kernel::Unknown;
                }
                self.off(&why);
            }
        }
        self.metrics.on.set(i64::from(matches!(self.kernel, Kernel::Set(..))));
    }

    /// These needs, and those of connections that are open.
    async fn and_open(&self, netlink: &Netlink, needs: Needs) -> Needs {
        match &self.kernel {
            Kernel::Nothing => return needs,
            Kernel::Set(before, _) if needs.and(*before) == needs => return needs,
            // Also of those that are about to be opened, which the kernel does not know.
            Kernel::Set(before, _) if self.handle.steering.open() > 0 => return needs.and(*before),
            // Something is to go, or what is there is an earlier agent's.
            Kernel::Set(..) | Kernel::Unknown => {}
        }
        let open = async {
            let open = sockets::destinations(self.marks()).await?;
            self.judge(netlink, open).await
        };
        match open.await {
            Ok(open) => needs.and(Needs::of(open.iter())),
            Err(error) => {
                // Who may not ask cannot steer either, and that is said.
                if error.kind() != io::ErrorKind::PermissionDenied {
                    tracing::warn!(%error, "cannot look which connections of an agent before need the steering of answers");
                }
                needs
            }
        }
    }

    fn marks(&self) -> Marks {
        Marks::new(self.handle.config.mark)
    }

    async fn judge(&self, netlink: &Netlink, addresses: BTreeSet<IpAddr>) -> io::Result<Verdicts> {
        let mut verdicts = Verdicts::new();
        if addresses.is_empty() {
            return Ok(verdicts);
        }
        let links = netlink.links().await?;
        for address in addresses {
            let route = netlink.route_to(address).await?;
            let (node, overlay) = (self.handle.config.address, self.networks.way(address));
            let judged = judge(address, route, &links, node, overlay, checks_source_by_mark);
            verdicts.insert(address, judged);
        }
        Ok(verdicts)
    }

    async fn withdraw(&mut self, netlink: &Netlink) -> Result<(), String> {
        if self.kernel == Kernel::Nothing {
            return Ok(());
        }
        remove_all(netlink).await.map_err(|error| error.to_string())?;
        if matches!(self.kernel, Kernel::Set(..)) {
            tracing::info!(
                "answers are no longer steered to clients' addresses: no service asks for it that has an endpoint which answers by here"
            );
        }
        self.kernel = Kernel::Nothing;
        self.handle.shared.applied.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Makes the kernel serve these needs.
    async fn apply(&mut self, netlink: &Netlink, needs: Needs) -> Result<(), String> {
        let (marks, table) = (self.marks(), self.handle.config.table);
        self.handle.shared.applied.store(true, Ordering::SeqCst);
        let mut mended = false;
        for (family, is_needed) in [(Family::V4, needs.v4), (Family::V6, needs.v6)] {
            if self.kernel == Kernel::Unknown {
                netlink.remove_from_other_tables(family, table).await.map_err(|error| error.to_string())?;
            }
            let changed = if is_needed {
                netlink.ensure(family, marks, table).await
            } else {
                netlink.remove(family).await
            };
            mended |= changed.map_err(|error| error.to_string())?;
        }
        let there = TABLE.list().await.map_err(|error| error.to_string())?;
        let (is_there, was_set) = match &self.kernel {
            Kernel::Set(before, listing) if *before == needs => (there.as_ref() == Some(listing), true),
            Kernel::Set(..) | Kernel::Unknown | Kernel::Nothing => (false, false),
        };
        if !is_there {
            nft::apply(&ruleset(marks, needs)).await.map_err(|error| error.to_string())?;
            let listing = TABLE.list().await.map_err(|error| error.to_string())?.unwrap_or_default();
            if !matches!(self.kernel, Kernel::Set(..)) {
                tracing::info!("answers to clients' addresses are steered to this agent");
            }
            self.kernel = Kernel::Set(needs, listing);
        }
        if was_set && (mended || !is_there) {
            self.metrics.repairs.inc();
            tracing::warn!(
                "rules or routes that steer answers were changed by somebody else; they are put back"
            );
        }
        Ok(())
    }

    /// Tells the data plane which endpoints can be shown clients' addresses, and the log what has changed for a service.
    fn tell(&mut self, verdicts: &Verdicts, off: bool) {
        let way = |judged: &Judged| match judged {
            Judged::Host => Way::default(),
            Judged::Behind(way) => way.clone(),
        };
        let endpoints: HashMap<_, _> = verdicts
            .iter()
            .map(|(address, judged)| (*address, judged.as_ref().map(way).map_err(|plain| *plain)))
            .collect();
        let ways = Ways { mark: self.marks().ours, endpoints, off };
        if *self.handle.steering.ways() != ways {
            self.handle.steering.set(ways);
        }
        for (service, wanted) in &self.wanted {
            let reasons = wanted.reasons(verdicts, off);
            if self.said.get(service) == Some(&reasons) {
                continue;
            }
            if reasons.is_empty() && !(wanted.here.is_empty() && wanted.elsewhere.is_empty()) {
                tracing::info!(%service, "every endpoint sees the clients' own addresses");
            }
            for plain in &reasons {
                tracing::info!(%service, reason = %plain, "endpoints see this node's address, not their clients': {}", words::of(*plain));
            }
            self.said.insert(service.clone(), reasons);
        }
    }

    /// Nothing is steered, and that is said once.
    fn off(&mut self, why: &str) {
        // Those of other nodes too that could be shown clients' addresses otherwise.
        let verdicts = self.addresses().map(|address| (address, Err(Plain::Off))).collect();
        self.tell(&verdicts, true);
        self.note_lacks(Some(why.to_owned()));
    }

    fn note_lacks(&self, lacks: Option<String>) {
        let mut known = self.handle.shared.lacks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = lacks.as_ref().filter(|why| known.as_ref() != Some(why)) {
            tracing::error!("{}", words::off(why));
        }
        *known = lacks;
    }
}

impl Wanted {
    /// Why some of its endpoints see this node's address.
    fn reasons(&self, verdicts: &Verdicts, off: bool) -> BTreeSet<Plain> {
        let here = self.here.iter().filter_map(|address| match verdicts.get(address) {
            _ if off => Some(Plain::Off),
            Some(Ok(_)) => None,
            Some(Err(plain)) => Some(*plain),
            None => Some(Plain::Off),
        });
        let elsewhere = self.elsewhere.iter().filter_map(|address| match verdicts.get(address) {
            Some(Ok(_)) => None,
            Some(Err(plain)) => Some(*plain),
            None => Some(Plain::Elsewhere),
        });
        here.chain(elsewhere).chain(self.sockets.then_some(Plain::UnixSocket)).collect()
    }
}

/// Something has changed among the packet filter rules, if that is told.
async fn told(rules: &mut Option<nft::Events>) {
    match rules {
        Some(rules) => drop(rules.next().await),
        None => std::future::pending().await,
    }
}

/// Does an interface look for the way back by the mark too (`src_valid_mark`)? It finds our route then, and takes what comes in
/// for an invention.
fn checks_source_by_mark(interface: &str) -> bool {
    ["all", interface].iter().any(|name| {
        let file = format!("/proc/sys/net/ipv4/conf/{name}/src_valid_mark");
        std::fs::read_to_string(file).is_ok_and(|value| value.trim() != "0")
    })
}
