//! The task that keeps the open listeners equal to what is wanted.
//!
//! Wanted are published ports (by [`Claims`]), localhost ports of the configuration, and the ports of virtual addresses.
//! What changes is closed before anything is opened, so that a port can move from one listener to another at once.
//!
//! A port may be published on all addresses of the node while a virtual address has the same port: the kernel gives a
//! connection to the socket whose address is the more specific one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nerve::model::{Address, NodeName, Prefix, Protocol, ServiceName, UnixPath};
use nerve::tasks::Tasks;
use synapse::catalog::{Catalog, Service, Subscription};
use tokio::sync::watch;

use super::desired::{Addresses, Claims, Holder, Port, Wants, seen, virtual_ports, watched_here};
use super::handle::Handle;
use super::slots::{Slot, SlotKey, State};
use super::status::conflict;
use super::{Config, ListenerKind, LocalListen, LocalPort, Metrics, addresses, occupant};
use crate::balance::{Balancer, Surroundings};
use crate::inherited::{Inherited, Transport};
use crate::proxy::{DataPlane, ListenerSpec, Sharing, UnixListenError, UnixListenerSpec};

/// How often ports that could not be opened are tried again, and the node's addresses are read.
const RETRY: Duration = Duration::from_secs(5);
/// How often balancers look at what no connection notices.
const TICK: Duration = Duration::from_secs(1);
/// How often, and for how many times, after a listener was closed: the data-plane threads let go of its sockets a moment
/// later, and whoever gets the port next should not wait for longer.
const RETRY_SOON: Duration = Duration::from_millis(10);
const SOON: u32 = 100;
/// A port that an instance of this node had is taken so long after it is gone: one that is replaced is followed by another within a moment,
/// whose need of the port is greater than ours.
const HOLD_OFF: Duration = Duration::from_secs(2);
/// So many services are taken at a stretch; then the rest of the control plane gets its turn.
const STRETCH: usize = 64;

/// The ranges of virtual addresses that are local on this node.
pub type VirtualRanges = watch::Receiver<Arc<[Prefix]>>;

/// What ingress works with.
pub struct Means {
    /// Carries the connections.
    pub plane: Arc<DataPlane>,
    /// What balancers are given.
    pub surroundings: Surroundings,
    /// Sockets of an earlier process, or of systemd.
    pub inherited: Inherited,
    /// What is counted.
    pub metrics: Metrics,
}

/// Starts the task. Of the `inherited` sockets it takes those of addresses that it is to listen on, now or later.
#[must_use]
pub fn start(config: Config, catalog: Catalog, ranges: VirtualRanges, means: Means, tasks: &Tasks) -> Handle {
    let Means { plane, surroundings, inherited, metrics } = means;
    let node = config.node.clone();
    let handle = Handle::of(config);
    let run = handle.clone();
    let owner = tasks.clone();
    // Once stopped, it opens nothing that a drain has just closed.
    tasks.spawn_until_stopped("ingress", move || {
        let controller = Controller {
            handle: run.clone(),
            catalog: catalog.clone(),
            ranges: ranges.clone(),
            plane: Arc::clone(&plane),
            surroundings: surroundings.clone(),
            inherited: inherited.clone(),
            held: BTreeSet::new(),
            metrics: metrics.clone(),
            tasks: owner.clone(),
            node: node.clone(),
            addresses: Addresses::default(),
            claims: Claims::default(),
            local: Vec::new(),
            virtuals: HashMap::new(),
            soon: 0,
            due: None,
        };
        controller.run()
    });
    handle
}

struct Controller {
    handle: Handle,
    catalog: Catalog,
    ranges: VirtualRanges,
    plane: Arc<DataPlane>,
    surroundings: Surroundings,
    inherited: Inherited,
    /// Services that changed while nothing was to be opened or closed.
    held: BTreeSet<ServiceName>,
    metrics: Metrics,
    tasks: Tasks,
    node: NodeName,
    addresses: Addresses,
    claims: Claims,
    local: Vec<LocalPort>,
    /// The wanted ports of virtual addresses.
    virtuals: HashMap<ServiceName, BTreeMap<SlotKey, Holder>>,
    /// So many times more what failed is tried again soon.
    soon: u32,
    /// When the first port is due that was an instance's.
    due: Option<Instant>,
}

/// Why a slot was not open.
struct Closed {
    why: String,
    said: bool,
    /// An instance of this node had it.
    was_occupied: bool,
    not_before: Option<Instant>,
}

/// What slots are to become: closed, or open for someone.
type Changes = Vec<(SlotKey, Option<Holder>)>;

impl Controller {
    async fn run(mut self) {
        self.look_up_addresses();
        let mut subscription: Subscription = self.catalog.subscribe();
        let (mut config, mut ranges) = (self.handle.config.subscribe(), self.ranges.clone());
        let mut frozen = self.handle.handover.changes();
        let wanted = config.borrow_and_update().localhost.clone();
        self.local_ports_changed(wanted);
        ranges.mark_unchanged();
        self.look_at_all().await;
        self.note_state();
        self.handle.handover.settle();
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                names = subscription.changed() => self.services_changed(names.into_iter().collect()).await,
                Ok(()) = frozen.changed() => {
                    let held = std::mem::take(&mut self.held);
                    self.services_changed(held.into_iter().collect()).await;
                }
                Ok(()) = config.changed(), if !self.is_frozen() => {
                    let wanted = config.borrow_and_update().localhost.clone();
                    self.local_ports_changed(wanted);
                }
                Ok(()) = ranges.changed(), if !self.is_frozen() => {
                    ranges.mark_unchanged();
                    self.look_at_all().await;
                }
                () = tokio::time::sleep(RETRY_SOON), if self.soon > 0 && !self.is_frozen() => {
                    self.soon -= 1;
                    // Files of sockets are gone at once: there is nothing to wait for.
                    self.retry_failed(|key| key.ip().is_some());
                }
                () = until(self.due), if !self.is_frozen() => {
                    self.retry_failed(|_| true);
                    self.due = self.handle.lock().slots.next_due();
                }
                _ = retry.tick(), if !self.is_frozen() => {
                    self.addresses_changed().await;
                    self.reopen_lost();
                    self.retry_failed(|_| true);
                }
                _ = tick.tick() => self.handle.all_balancers().iter().for_each(|balancer| balancer.tick()),
            }
            self.note_state();
        }
    }

    async fn services_changed(&mut self, names: Vec<ServiceName>) {
        for stretch in names.chunks(STRETCH) {
            stretch.iter().for_each(|name| self.service_changed(name));
            tokio::task::yield_now().await;
        }
    }

    async fn look_at_all(&mut self) {
        let services = self.catalog.services();
        self.services_changed(services.iter().map(|service| service.name.clone()).collect()).await;
    }

    /// An address that the node got or lost since may be published on.
    async fn addresses_changed(&mut self) {
        if self.look_up_addresses() {
            self.look_at_all().await;
        }
    }

    /// Are they other ones? Where the host does not say, they stay as they are.
    fn look_up_addresses(&mut self) -> bool {
        let found = addresses::published(&self.handle.config.borrow().listen);
        match found {
            Ok(now) => std::mem::replace(&mut self.addresses, now) != self.addresses,
            Err(error) => {
                tracing::debug!(%error, "the addresses of this host cannot be looked up; those known stay");
                false
            }
        }
    }

    fn service_changed(&mut self, name: &ServiceName) {
        let service = self.catalog.service(name.as_str());
        for (balancer, local) in self.handle.lock().slots.balancers(name) {
            balancer.update(seen(service.as_deref(), local, &self.node).as_deref());
        }
        if self.is_frozen() {
            self.held.insert(name.clone());
            return;
        }
        let wants = Wants::of(service.as_deref(), &self.node, &self.addresses);
        for port in self.claims.set(name, wants) {
            self.reconcile_port(port);
        }
        let wanted = self.virtual_slots(name, service.as_deref());
        self.virtual_slots_changed(name, wanted);
    }

    fn is_frozen(&self) -> bool {
        self.handle.handover.is_frozen()
    }

    fn reconcile_port(&mut self, port: Port) {
        let Port { protocol, port: number } = port;
        let key = |ip| SlotKey {
            kind: ListenerKind::Published,
            protocol,
            address: SocketAddr::new(ip, number.get()).into(),
        };
        let granted: BTreeMap<SlotKey, Holder> =
            self.claims.granted(port).map(|(ip, holder)| (key(ip), holder.clone())).collect();
        // Any address that is published on now or was; an address that went away is found by its slot.
        let known = self.handle.lock().slots.published_on(protocol, number);
        let gone = known.into_iter().filter(|key| !granted.contains_key(key)).map(|key| (key, None));
        let mut changes: Changes = gone.collect();
        changes.extend(granted.into_iter().map(|(key, holder)| (key, Some(holder))));
        self.reconcile(changes);
    }

    /// What is to be listened on for the virtual addresses of a service.
    fn virtual_slots(&self, name: &ServiceName, service: Option<&Service>) -> BTreeMap<SlotKey, Holder> {
        let ranges = self.ranges.borrow();
        let usable = |ip: &&IpAddr| ranges.iter().any(|range| range.contains(**ip));
        let wants = service.filter(|service| service.settings.wants_vip());
        let Some(service) = wants.filter(|service| service.vips.iter().any(|ip| usable(&ip))) else {
            return BTreeMap::new();
        };
        let (ports, watched) = (virtual_ports(service), &watched_here(service, &self.addresses));
        // All that are claimed, not the first alone: a client may know another, for as long as it is claimed.
        let addresses = service.vips.iter().filter(usable);
        addresses
            .flat_map(|ip| {
                ports.iter().map(move |(Port { protocol, port }, target)| {
                    let address = SocketAddr::new(*ip, port.get()).into();
                    let key = SlotKey { kind: ListenerKind::Virtual, protocol: *protocol, address };
                    // Who has the port on all addresses has it on this one, too, and leads to the same service.
                    let watcher = watched.get(port).cloned();
                    (key, Holder { watcher, ..Holder::of(name.clone(), target.clone(), false) })
                })
            })
            .collect()
    }

    fn virtual_slots_changed(&mut self, name: &ServiceName, wanted: BTreeMap<SlotKey, Holder>) {
        let before = match wanted.is_empty() {
            true => self.virtuals.remove(name),
            false => self.virtuals.insert(name.clone(), wanted.clone()),
        };
        let before = before.unwrap_or_default();
        let gone = before.into_keys().filter(|key| !wanted.contains_key(key)).map(|key| (key, None));
        let mut changes: Changes = gone.collect();
        changes.extend(wanted.into_iter().map(|(key, holder)| (key, Some(holder))));
        self.reconcile(changes);
    }

    fn local_ports_changed(&mut self, wanted: Vec<LocalPort>) {
        let key = |port: &LocalPort| SlotKey {
            kind: ListenerKind::Localhost,
            protocol: Protocol::Tcp,
            address: port.address(),
        };
        let kept: BTreeSet<SlotKey> = wanted.iter().map(key).collect();
        let gone = std::mem::replace(&mut self.local, wanted.clone());
        // Whoever may use a socket is decided when it is opened.
        let is_other = |port: &&LocalPort| {
            wanted.iter().any(|w| w.address() == port.address() && w.listen != port.listen)
        };
        for port in gone.iter().filter(is_other) {
            self.close(&key(port));
        }
        let mut changes: Changes =
            gone.iter().map(key).filter(|key| !kept.contains(key)).map(|key| (key, None)).collect();
        changes.extend(
            wanted
                .iter()
                .map(|port| (key(port), Some(Holder::of(port.service.clone(), port.target.clone(), false)))),
        );
        self.reconcile(changes);
    }

    /// Opens sockets anew whose file somebody has taken away.
    fn reopen_lost(&mut self) {
        let lost = self.handle.lock().slots.lost();
        for (key, holder) in lost {
            tracing::warn!(service = %holder.service, address = %key.address, "somebody has removed or replaced the file of this socket; it is opened anew");
            self.close(&key);
            self.reconcile(vec![(key, Some(holder))]);
        }
    }

    fn retry_failed(&mut self, which: impl Fn(&SlotKey) -> bool) {
        let failed = self.handle.lock().slots.closed();
        if failed.is_empty() {
            self.soon = 0;
        }
        let wanted =
            failed.into_iter().filter(|(key, _)| which(key)).map(|(key, holder)| (key, Some(holder)));
        self.reconcile(wanted.collect());
    }

    /// Makes slots what they are to be: first what goes, then what comes.
    fn reconcile(&mut self, changes: Changes) {
        let differs = |(key, wanted): &(SlotKey, Option<Holder>)| {
            let mut shared = self.handle.lock();
            let slot = shared.slots.get(key);
            let listens = slot.is_some_and(|slot| matches!(slot.state, State::Open(_)));
            let (Some(before), Some(wanted)) = (slot.map(|slot| &slot.holder), wanted) else { return true };
            if !listens || !before.leads_like(wanted) {
                return true;
            }
            if before != wanted {
                shared.slots.rename(key, wanted);
            }
            false
        };
        let changes: Changes = changes.into_iter().filter(differs).collect();
        let before: Vec<Option<Closed>> = changes.iter().map(|(key, _)| self.close(key)).collect();
        for ((key, wanted), before) in changes.into_iter().zip(before) {
            if let Some(holder) = wanted {
                self.open(key, holder, before);
            }
        }
    }

    /// Takes a slot out and lets its connections finish; tells why it was not open if it was not.
    fn close(&mut self, key: &SlotKey) -> Option<Closed> {
        let Slot { holder, state, said, not_before } = self.handle.lock().slots.remove(key)?;
        let was_occupied = holder.occupied.is_some();
        match state {
            State::Held(why) | State::Failed(why) => Some(Closed { why, said, was_occupied, not_before }),
            State::Open(listener) => {
                let drain = self.handle.drain_deadline();
                tracing::debug!(service = %holder.service, address = %key.address, protocol = %key.protocol, kind = %key.kind, "no longer listening; its connections may go on for {} s", drain.as_secs());
                // At once, so that the port is free soon for whoever gets it next.
                listener.stop_accepting();
                self.soon = SOON;
                let forced = self.metrics.forced.clone();
                self.tasks.spawn("listener drain", async move {
                    forced.inc_by(u64::from(listener.drain(drain).await));
                });
                None
            }
        }
    }

    fn open(&mut self, key: SlotKey, holder: Holder, before: Option<Closed>) {
        let now = Instant::now();
        let waits = before.as_ref().and_then(|before| match before.was_occupied {
            true => Some(now + HOLD_OFF),
            false => before.not_before.filter(|then| *then > now),
        });
        let not_before = waits.filter(|_| holder.occupied.is_none());
        self.due = self.due.into_iter().chain(not_before).min();
        let state = match (&holder.occupied, not_before) {
            (Some(instance), _) => State::Held(format!(
                "the instance {instance} has this port of this node itself; it is listened on when that one is gone"
            )),
            (None, Some(_)) => {
                State::Held("an instance had this port of this node until a moment ago".to_owned())
            }
            (None, None) => self.try_open(&key, &holder, before.as_ref().map(|before| before.why.as_str())),
        };
        let mut said = false;
        match &state {
            // Ten thousand virtual addresses are no ten thousand lines.
            State::Open(_) if key.kind == ListenerKind::Virtual => {
                tracing::debug!(service = %holder.service, address = %key.address, protocol = %key.protocol, "listening")
            }
            State::Open(_) => {
                tracing::info!(service = %holder.service, address = %key.address, protocol = %key.protocol, "listening")
            }
            State::Held(by) => {
                said = true;
                if before.is_none_or(|before| !before.said || before.why != *by) {
                    tracing::debug!(service = %holder.service, address = %key.address, protocol = %key.protocol, by, "not listened on here");
                }
            }
            // It is said when it lasts.
            State::Failed(_) if self.soon > 0 => {}
            State::Failed(error) => {
                said = true;
                if before.is_none_or(|before| !before.said || before.why != *error) {
                    tracing::error!(service = %holder.service, %error, "a port is not open; it is tried again every {} s", RETRY.as_secs());
                }
            }
        }
        self.handle.lock().slots.insert(key, Slot { holder, state, said, not_before });
    }

    fn try_open(&mut self, key: &SlotKey, holder: &Holder, last_error: Option<&str>) -> State {
        let balancer = self.balancer(holder);
        let (kind, protocol) = (key.kind, key.protocol);
        let address = match &key.address {
            Address::Ip(address) => *address,
            Address::Unix(path) => return self.try_open_unix(path, balancer, last_error),
        };
        // Virtual addresses are many: with a socket a thread they would be as many descriptors as connections may need.
        let sharing = if kind == ListenerKind::Virtual { Sharing::One } else { Sharing::PerThread };
        let inherited =
            |transport| self.inherited.take(transport, address).into_iter().map(Arc::new).collect();
        let overlaps = self.handle.lock().slots.stands_beside(key);
        let spec = |transport| {
            let inherited = inherited(transport);
            ListenerSpec { address, balancer, sharing, inherited, overlaps }
        };
        let opened = match protocol {
            Protocol::Tcp => self.plane.open(spec(Transport::Tcp)),
            Protocol::Udp => self.plane.open_udp(spec(Transport::Udp)),
        };
        match opened {
            Ok(listener) => State::Open(listener),
            Err(error) => {
                let taken = error.source.kind() == io::ErrorKind::AddrInUse;
                let who = || taken.then(|| occupant::of(protocol, address)).flatten();
                let why = occupant::named(error.to_string(), last_error, who);
                // What a watcher found published somewhere is published there by somebody.
                match taken && holder.watcher.is_some() && occupant::may_be_docker(&why) {
                    true => State::Held(why),
                    false => State::Failed(why),
                }
            }
        }
    }

    fn try_open_unix(&self, path: &UnixPath, balancer: Arc<Balancer>, last_error: Option<&str>) -> State {
        let access = self.local.iter().find_map(|port| match &port.listen {
            LocalListen::Unix(of, access) if of == path => Some(access.clone()),
            LocalListen::Unix(..) | LocalListen::Ip(_) => None,
        });
        let (inherited, is_lent) = self.inherited.take_unix(path);
        let inherited = inherited.into_iter().map(Arc::new).collect();
        let (path, access) = (path.clone(), access.unwrap_or_default());
        match self.plane.open_unix(UnixListenerSpec {
            path: path.clone(),
            access,
            balancer,
            inherited,
            is_lent,
        }) {
            Ok(listener) => State::Open(listener),
            Err(error) => {
                let taken = matches!(&error, UnixListenError::File(error) if error.is_in_use());
                let who = || taken.then(|| occupant::of_unix(&path)).flatten();
                State::Failed(occupant::named(error.to_string(), last_error, who))
            }
        }
    }

    /// The one balancer that all listeners for this service and target port share.
    fn balancer(&mut self, holder: &Holder) -> Arc<Balancer> {
        let mut shared = self.handle.lock();
        shared.slots.balancer(holder, || {
            let balancer = Balancer::new(holder.service.clone(), holder.target.clone(), &self.surroundings);
            let service = self.catalog.service(holder.service.as_str());
            balancer.update(seen(service.as_deref(), holder.local, &self.node).as_deref());
            balancer
        })
    }

    /// Conflicts and gauges follow from the claims and the slots.
    fn note_state(&self) {
        let mut shared = self.handle.lock();
        shared.conflicts = self.claims.refused().map(|(port, refused)| conflict(port, refused)).collect();
        let (open, held, failed) = shared.slots.counts();
        self.metrics.held.set(i64::try_from(held).unwrap_or(i64::MAX));
        self.metrics.open.set(i64::try_from(open).unwrap_or(i64::MAX));
        self.metrics.failed.set(i64::try_from(failed + shared.conflicts.len()).unwrap_or(i64::MAX));
    }
}

/// Never, where there is no time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
