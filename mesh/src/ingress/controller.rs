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
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nerve::model::{Address, NodeName, Prefix, Protocol, ServiceName, UnixPath, VirtualIp};
use nerve::tasks::Tasks;
use synapse::catalog::{Catalog, Service, Subscription};
use tokio::sync::watch;

use super::desired::{Addresses, Claims, Holder, Port, Wants, seen, virtual_ports};
use super::handover::Handover;
use super::slots::{Slot, SlotKey, Slots, State};
use super::status::conflict;
use super::{Config, ListenerKind, ListenerStatus, LocalListen, LocalPort, Metrics, addresses, occupant};
use crate::balance::{Balancer, Surroundings};
use crate::inherited::{Inherited, Transport};
use crate::proxy::{DataPlane, Listener, ListenerSpec, Sharing, UnixListenError, UnixListenerSpec};

/// How often ports that could not be opened are tried again, and the node's addresses are read.
const RETRY: Duration = Duration::from_secs(5);
/// How often balancers look at what no connection notices.
const TICK: Duration = Duration::from_secs(1);
/// How often, and for how many times, after a listener was closed: the data-plane threads let go of its sockets a moment
/// later, and whoever gets the port next should not wait for longer.
const RETRY_SOON: Duration = Duration::from_millis(10);
const SOON: u32 = 100;
/// So many services are taken at a stretch; then the rest of the control plane gets its turn.
const STRETCH: usize = 64;

/// The ranges of virtual addresses that are local on this node.
pub type VirtualRanges = watch::Receiver<Arc<[Prefix]>>;

/// What ingress is up to, for readers and for a reload. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Mutex<Shared>>,
    config: Arc<watch::Sender<Config>>,
    handover: Handover,
}

#[derive(Debug, Default)]
struct Shared {
    slots: Slots,
    conflicts: Vec<ListenerStatus>,
}

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
    let config = Arc::new(watch::Sender::new(config));
    let handle = Handle { shared: Arc::default(), config, handover: Handover::default() };
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
        };
        controller.run()
    });
    handle
}

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic while it was held left a slot out at worst; the restarted task makes it anew.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn some_listeners(&self, of: impl Fn(&ServiceName) -> bool) -> Vec<ListenerStatus> {
        let shared = self.lock();
        let mut listed = shared.slots.statuses(|slot| of(&slot.holder.service));
        listed.extend(shared.conflicts.iter().filter(|conflict| of(&conflict.service)).cloned());
        listed
    }

    /// Every listener that is wanted here, in the order of kind, transport and address; at the end what another service
    /// stands in the way of.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        self.some_listeners(|_| true)
    }

    /// Those of one service.
    #[must_use]
    pub fn listeners_of(&self, service: &ServiceName) -> Vec<ListenerStatus> {
        self.some_listeners(|of| of == service)
    }

    /// Those that do not listen.
    #[must_use]
    pub fn failures(&self) -> Vec<ListenerStatus> {
        let shared = self.lock();
        let mut failed = shared.slots.statuses(|slot| matches!(slot.state, State::Failed(_)));
        failed.extend(shared.conflicts.iter().cloned());
        failed
    }

    /// How many ports this node listens on.
    #[must_use]
    pub fn open(&self) -> usize {
        self.lock().slots.counts().0
    }

    /// The balancers of a service: one for each port of the instances that something here leads to.
    #[must_use]
    pub fn balancers(&self, service: &ServiceName) -> Vec<Arc<Balancer>> {
        self.lock().slots.balancers(service).into_iter().map(|(balancer, _)| balancer).collect()
    }

    fn all_balancers(&self) -> Vec<Arc<Balancer>> {
        self.lock().slots.all_balancers()
    }

    /// Takes over what a reload of the configuration may change: localhost ports and the drain's deadline.
    pub fn reload(&self, config: &Config) {
        self.config.send_if_modified(|current| {
            let Config { localhost, drain, .. } = config;
            let changed = current.localhost != *localhost || current.drain != *drain;
            current.localhost.clone_from(localhost);
            current.drain = *drain;
            changed
        });
    }

    fn drain_deadline(&self) -> Duration {
        self.config.borrow().drain
    }

    /// Opens and closes no port while `frozen`; what changes meanwhile is done afterwards. Endpoints are followed all the same:
    /// connections that are open may need another one, or to hear that theirs is dead.
    pub fn freeze(&self, frozen: bool) {
        self.handover.freeze(frozen);
    }

    /// Completes when every port that was wanted at the start is open, or has failed. Cancel-safe.
    pub async fn settled(&self) {
        self.handover.settled().await;
    }

    /// Every socket that is listened on.
    #[must_use]
    pub fn sockets(&self) -> Vec<Arc<OwnedFd>> {
        self.lock().slots.listeners().flat_map(Listener::sockets).collect()
    }

    /// Closes every listener and waits for their connections, at most for `deadline`. Call it after the task was stopped or
    /// frozen. Tells how many connections were reset.
    pub async fn drain(&self, deadline: Duration) -> u32 {
        self.drain_after(Listener::stop_accepting, deadline).await
    }

    /// The same where another process goes on with the sockets.
    pub async fn hand_over(&self, deadline: Duration) -> u32 {
        self.drain_after(Listener::hand_over, deadline).await
    }

    async fn drain_after(&self, stop: fn(&Listener), deadline: Duration) -> u32 {
        let listeners: Vec<Listener> = self.lock().slots.take_listeners();
        listeners.iter().for_each(stop);
        let drains = listeners.into_iter().map(|listener| listener.drain(deadline));
        futures_util::future::join_all(drains).await.into_iter().sum()
    }
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
}

/// Why a slot was not open.
struct Failure {
    error: String,
    said: bool,
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
        let wants = service.filter(|service| service.settings.vip == VirtualIp::On);
        let Some(service) = wants.filter(|service| service.vips.iter().any(|ip| usable(&ip))) else {
            return BTreeMap::new();
        };
        let ports = virtual_ports(service);
        // All that are claimed, not the first alone: a client may know another, for as long as it is claimed.
        let addresses = service.vips.iter().filter(usable);
        addresses
            .flat_map(|ip| {
                ports.iter().map(move |(Port { protocol, port }, target)| {
                    let address = SocketAddr::new(*ip, port.get()).into();
                    let key = SlotKey { kind: ListenerKind::Virtual, protocol: *protocol, address };
                    (key, Holder { service: name.clone(), target: target.clone(), local: false })
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
        changes.extend(wanted.iter().map(|port| {
            let holder = Holder { service: port.service.clone(), target: port.target.clone(), local: false };
            (key(port), Some(holder))
        }));
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
        let failed = self.handle.lock().slots.failed();
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
            let shared = self.handle.lock();
            let slot = shared.slots.get(key);
            let listens = slot.is_some_and(|slot| matches!(slot.state, State::Open(_)));
            slot.map(|slot| &slot.holder) != wanted.as_ref() || !listens
        };
        let changes: Changes = changes.into_iter().filter(differs).collect();
        let before: Vec<Option<Failure>> = changes.iter().map(|(key, _)| self.close(key)).collect();
        for ((key, wanted), failure) in changes.into_iter().zip(before) {
            if let Some(holder) = wanted {
                self.open(key, holder, failure);
            }
        }
    }

    /// Takes a slot out and lets its connections finish; tells why it was not open if it was not.
    fn close(&mut self, key: &SlotKey) -> Option<Failure> {
        let Slot { holder, state, said } = self.handle.lock().slots.remove(key)?;
        match state {
            State::Failed(error) => Some(Failure { error, said }),
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

    fn open(&mut self, key: SlotKey, holder: Holder, before: Option<Failure>) {
        let state = self.try_open(&key, &holder, before.as_ref().map(|before| before.error.as_str()));
        let mut said = false;
        match &state {
            // Ten thousand virtual addresses are no ten thousand lines.
            State::Open(_) if key.kind == ListenerKind::Virtual => {
                tracing::debug!(service = %holder.service, address = %key.address, protocol = %key.protocol, "listening")
            }
            State::Open(_) => {
                tracing::info!(service = %holder.service, address = %key.address, protocol = %key.protocol, "listening")
            }
            // It is said when it lasts.
            State::Failed(_) if self.soon > 0 => {}
            State::Failed(error) => {
                said = true;
                if before.is_none_or(|before| !before.said || before.error != *error) {
                    tracing::error!(service = %holder.service, %error, "a port is not open; it is tried again every {} s", RETRY.as_secs());
                }
            }
        }
        self.handle.lock().slots.insert(key, Slot { holder, state, said });
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
                State::Failed(occupant::named(error.to_string(), last_error, who))
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
        let (open, failed) = shared.slots.counts();
        self.metrics.open.set(i64::try_from(open).unwrap_or(i64::MAX));
        self.metrics.failed.set(i64::try_from(failed + shared.conflicts.len()).unwrap_or(i64::MAX));
    }
}
