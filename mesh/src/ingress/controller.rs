//! The task that keeps the open listeners equal to what is wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nerve::model::{PortName, Protocol, ServiceName};
use nerve::tasks::Tasks;
use synapse::catalog::{Catalog, Subscription};
use tokio::sync::watch;

use super::desired::{Claims, Holder, Port};
use super::{Config, ListenerState, ListenerStatus, LocalPort, Metrics};
use crate::balance::{Balancer, Surroundings};
use crate::proxy::{DataPlane, Listener, ListenerSpec, Sharing};

/// How often ports that could not be opened are tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often balancers look at what no connection notices.
const TICK: Duration = Duration::from_secs(1);

/// The balancers of one service, by the named port that they lead to.
type Balancers = HashMap<Option<PortName>, Arc<Balancer>>;

/// What ingress is up to, for readers and for a reload. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Mutex<Shared>>,
    config: Arc<watch::Sender<Config>>,
}

#[derive(Debug, Default)]
struct Shared {
    slots: BTreeMap<SlotKey, Slot>,
    conflicts: Vec<ListenerStatus>,
    balancers: HashMap<ServiceName, Balancers>,
}

/// One address on which something is to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct SlotKey {
    protocol: Protocol,
    address: SocketAddr,
    localhost: bool,
}

#[derive(Debug)]
struct Slot {
    holder: Holder,
    state: Result<Listener, String>,
}

/// Starts the task.
#[must_use]
pub fn start(
    config: Config,
    catalog: Catalog,
    plane: Arc<DataPlane>,
    surroundings: Surroundings,
    metrics: Metrics,
    tasks: &Tasks,
) -> Handle {
    let addresses = published_addresses(&config.listen);
    let handle = Handle { shared: Arc::default(), config: Arc::new(watch::Sender::new(config)) };
    let run = handle.clone();
    let (owner, stop) = (tasks.clone(), tasks.stop_token());
    tasks.spawn_restarted("ingress", move || {
        let controller = Controller {
            handle: run.clone(),
            catalog: catalog.clone(),
            plane: Arc::clone(&plane),
            surroundings: surroundings.clone(),
            metrics: metrics.clone(),
            tasks: owner.clone(),
            addresses: addresses.clone(),
            claims: Claims::default(),
            local: Vec::new(),
            touched: true,
        };
        let stop = stop.clone();
        async move {
            // Biased: once stopped, it opens nothing that a drain has just closed.
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = controller.run() => {}
            }
        }
    });
    handle
}

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic while it was held left a slot out at worst; the restarted task makes it anew.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every listener that is wanted here, in the order of transport and address.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        let shared = self.lock();
        let open = shared.slots.iter().map(|(key, slot)| ListenerStatus {
            service: slot.holder.service.clone(),
            target: slot.holder.target.clone(),
            address: key.address,
            protocol: key.protocol,
            localhost: key.localhost,
            state: match &slot.state {
                Ok(listener) => ListenerState::Open { connections: listener.connections() },
                Err(error) => ListenerState::Failed { error: error.clone() },
            },
        });
        open.chain(shared.conflicts.iter().cloned()).collect()
    }

    /// The balancers of a service: one for each port of the instances that something here leads to.
    #[must_use]
    pub fn balancers(&self, service: &ServiceName) -> Vec<Arc<Balancer>> {
        self.lock()
            .balancers
            .get(service)
            .map_or_else(Vec::new, |of_service| of_service.values().cloned().collect())
    }

    fn all_balancers(&self) -> Vec<Arc<Balancer>> {
        self.lock().balancers.values().flat_map(HashMap::values).cloned().collect()
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

    /// Closes every listener and waits for their connections, at most for the drain's deadline. Call it after the task
    /// was stopped. Tells how many connections were reset.
    pub async fn drain(&self) -> u32 {
        let listeners: Vec<Listener> =
            std::mem::take(&mut self.lock().slots).into_values().filter_map(|slot| slot.state.ok()).collect();
        for listener in &listeners {
            listener.stop_accepting();
        }
        let deadline = self.drain_deadline();
        let drains = listeners.into_iter().map(|listener| listener.drain(deadline));
        futures_util::future::join_all(drains).await.into_iter().sum()
    }
}

struct Controller {
    handle: Handle,
    catalog: Catalog,
    plane: Arc<DataPlane>,
    surroundings: Surroundings,
    metrics: Metrics,
    tasks: Tasks,
    addresses: Vec<IpAddr>,
    claims: Claims,
    local: Vec<LocalPort>,
    /// A slot or a claim changed since the gauges were set.
    touched: bool,
}

impl Controller {
    async fn run(mut self) {
        let mut subscription: Subscription = self.catalog.subscribe();
        let mut config = self.handle.config.subscribe();
        config.mark_changed();
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                names = subscription.changed() => names.iter().for_each(|name| self.service_changed(name)),
                Ok(()) = config.changed() => {
                    let wanted = config.borrow_and_update().localhost.clone();
                    self.local_ports_changed(wanted);
                }
                _ = retry.tick() => self.retry_failed(),
                _ = tick.tick() => self.handle.all_balancers().iter().for_each(|balancer| balancer.tick()),
            }
            if std::mem::take(&mut self.touched) {
                self.note_state();
            }
        }
    }

    fn service_changed(&mut self, name: &ServiceName) {
        let service = self.catalog.service(name.as_str());
        for balancer in self.handle.balancers(name) {
            balancer.update(service.as_deref());
        }
        for port in self.claims.set(name, service.as_deref().map(|service| &*service.settings)) {
            self.reconcile_port(port);
        }
    }

    fn reconcile_port(&mut self, port: Port) {
        self.touched = true;
        let holder = self.claims.holder(port);
        for address in self.addresses.clone() {
            let address = SocketAddr::new(address, port.port.get());
            self.reconcile(SlotKey { protocol: port.protocol, address, localhost: false }, holder.clone());
        }
    }

    fn local_ports_changed(&mut self, wanted: Vec<LocalPort>) {
        let key =
            |port: &LocalPort| SlotKey { protocol: Protocol::Tcp, address: port.listen, localhost: true };
        let kept: BTreeSet<SlotKey> = wanted.iter().map(key).collect();
        for gone in std::mem::take(&mut self.local).iter().map(key).filter(|key| !kept.contains(key)) {
            self.reconcile(gone, None);
        }
        for port in &wanted {
            let holder = Holder { service: port.service.clone(), target: port.target.clone() };
            self.reconcile(key(port), Some(holder));
        }
        self.local = wanted;
    }

    fn retry_failed(&mut self) {
        let failed: Vec<(SlotKey, Holder)> = {
            let shared = self.handle.lock();
            shared
                .slots
                .iter()
                .filter(|(_, s)| s.state.is_err())
                .map(|(k, s)| (*k, s.holder.clone()))
                .collect()
        };
        for (key, holder) in failed {
            self.reconcile(key, Some(holder));
        }
    }

    /// Makes one slot what it is to be: closed, or open for `wanted`.
    fn reconcile(&mut self, key: SlotKey, wanted: Option<Holder>) {
        let old = self.handle.lock().slots.remove(&key);
        let open_as_wanted =
            old.as_ref().is_some_and(|slot| slot.state.is_ok() && Some(&slot.holder) == wanted.as_ref());
        self.touched |= !open_as_wanted;
        if open_as_wanted {
            self.handle.lock().slots.extend(old.map(|slot| (key, slot)));
            return;
        }
        let last_error = match old {
            Some(Slot { state: Ok(listener), holder }) => {
                self.close(key, holder, listener);
                None
            }
            Some(Slot { state: Err(error), .. }) => Some(error),
            None => None,
        };
        let Some(holder) = wanted else {
            return;
        };
        let state = self.open(key, &holder);
        match &state {
            Ok(_) => {
                tracing::info!(service = %holder.service, address = %key.address, protocol = %key.protocol, "listening")
            }
            Err(error) if last_error.as_ref() != Some(error) => {
                tracing::error!(service = %holder.service, %error, "a port is not open; it is tried again every {} s", RETRY.as_secs());
            }
            Err(_) => {}
        }
        self.handle.lock().slots.insert(key, Slot { holder, state });
    }

    fn open(&mut self, key: SlotKey, holder: &Holder) -> Result<Listener, String> {
        let balancer = self.balancer(holder);
        let spec = ListenerSpec {
            address: key.address,
            balancer,
            sharing: Sharing::PerThread,
            inherited: Vec::new(),
        };
        let opened = match key.protocol {
            Protocol::Tcp => self.plane.open(spec),
            Protocol::Udp => self.plane.open_udp(spec),
        };
        opened.map_err(|error| error.to_string())
    }

    /// The one balancer that all listeners for this service and target port share.
    fn balancer(&mut self, holder: &Holder) -> Arc<Balancer> {
        let Holder { service, target } = holder;
        let mut shared = self.handle.lock();
        let balancers = shared.balancers.entry(service.clone()).or_default();
        let balancer = balancers.entry(target.clone()).or_insert_with(|| {
            let balancer = Balancer::new(service.clone(), target.clone(), &self.surroundings);
            balancer.update(self.catalog.service(service.as_str()).as_deref());
            Arc::new(balancer)
        });
        Arc::clone(balancer)
    }

    fn close(&mut self, key: SlotKey, holder: Holder, listener: Listener) {
        tracing::info!(service = %holder.service, address = %key.address, protocol = %key.protocol, "no longer listening; its connections may go on for {} s", self.handle.drain_deadline().as_secs());
        let (deadline, forced) = (self.handle.drain_deadline(), self.metrics.forced.clone());
        // At once, so that the port is free for whoever gets it next.
        listener.stop_accepting();
        self.tasks.spawn("listener drain", async move {
            forced.inc_by(u64::from(listener.drain(deadline).await));
        });
        let mut shared = self.handle.lock();
        let Shared { slots, balancers, .. } = &mut *shared;
        if !slots.values().any(|slot| slot.holder == holder) {
            let left = balancers.get_mut(&holder.service).is_some_and(|of_service| {
                of_service.remove(&holder.target);
                !of_service.is_empty()
            });
            if !left {
                balancers.remove(&holder.service);
            }
        }
    }

    /// Conflicts and gauges follow from the claims and the slots.
    fn note_state(&self) {
        let mut shared = self.handle.lock();
        shared.conflicts = self
            .claims
            .losers()
            .flat_map(|(port, service, holder)| {
                self.addresses.iter().map(move |address| conflict(*address, port, service, holder))
            })
            .collect();
        let open = shared.slots.values().filter(|slot| slot.state.is_ok()).count();
        let failed = shared.slots.len() - open + shared.conflicts.len();
        self.metrics.open.set(i64::try_from(open).unwrap_or(i64::MAX));
        self.metrics.failed.set(i64::try_from(failed).unwrap_or(i64::MAX));
    }
}

fn conflict(address: IpAddr, port: Port, service: &ServiceName, holder: &ServiceName) -> ListenerStatus {
    let Port { protocol, port } = port;
    ListenerStatus {
        service: service.clone(),
        target: None,
        address: SocketAddr::new(address, port.get()),
        protocol,
        localhost: false,
        state: ListenerState::Failed {
            error: format!(
                "port {port}/{protocol} is published by {holder} too, which has it; \
                 `plexus unpublish {holder} {port}/{protocol}` or `plexus unpublish {service} {port}/{protocol}`"
            ),
        },
    }
}

/// All addresses of this host by one socket: `[::]` takes IPv4 as well; without IPv6 it is `0.0.0.0`.
fn published_addresses(configured: &[IpAddr]) -> Vec<IpAddr> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    let has_ipv6 = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).is_ok();
    vec![if has_ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) }]
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;
    use std::num::NonZeroU16;

    use nerve::model::{Instance, ServiceSettings};
    use synapse::catalog::{Change, Writer};

    use super::*;
    use crate::balance::{self, Place};
    use crate::proxy;

    struct World {
        writer: Writer,
        handle: Handle,
        tasks: Tasks,
    }

    fn world(localhost: Vec<LocalPort>) -> World {
        let (catalog, writer) = Catalog::new();
        let plane = DataPlane::start(
            proxy::Config { threads: NonZeroU16::new(2).map(Into::into), ..Default::default() },
            proxy::Metrics::new().unwrap(),
        );
        let config =
            Config { listen: vec![Ipv4Addr::LOCALHOST.into()], localhost, drain: Duration::from_millis(200) };
        let tasks = Tasks::new();
        let surroundings = Surroundings {
            place: Place::default(),
            metrics: balance::Metrics::new().unwrap(),
            on_closing: Arc::new(|_, _| {}),
        };
        let (plane, metrics) = (Arc::new(plane.unwrap()), Metrics::new().unwrap());
        let handle = start(config, catalog, plane, surroundings, metrics, &tasks);
        World { writer, handle, tasks }
    }

    fn free_port() -> NonZeroU16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap()
    }

    fn publish(service: &str, ports: &[NonZeroU16]) -> Change {
        let published = ports.iter().map(|port| port.to_string().parse().unwrap()).collect();
        let settings = ServiceSettings { published, ..Default::default() };
        Change::PutSettings(ServiceName::new(service).unwrap(), Arc::new(settings))
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Twice what the slow tick takes.
        tokio::time::timeout(2 * RETRY, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    fn greeter(text: &'static str) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = std::io::Write::write_all(&mut stream, text.as_bytes());
            }
        });
        address
    }

    fn instance(service: &str, address: SocketAddr) -> Change {
        let json = serde_json::json!({"service": service, "id": "1", "node": "a", "address": address.ip(), "port": address.port()});
        Change::PutInstance(Arc::new(serde_json::from_value::<Instance>(json).unwrap()))
    }

    fn ask(port: NonZeroU16) -> std::io::Result<String> {
        let mut text = String::new();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port.get()))?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[tokio::test]
    async fn a_published_port_opens_serves_and_closes() {
        let mut world = world(Vec::new());
        let port = free_port();
        world.writer.apply([instance("web", greeter("hello")), publish("web", &[port])]);
        until("open", || ask(port).is_ok_and(|text| text == "hello")).await;
        world.writer.apply([publish("web", &[])]);
        until("closed", || TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).is_err()).await;
        assert!(world.handle.listeners().is_empty());
        world.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_localhost_port_is_open_before_its_service_is_known() {
        let (service, port) = (ServiceName::new("web").unwrap(), free_port());
        let listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.get());
        let mut world = world(vec![LocalPort { service, listen, target: None }]);
        until("open", || TcpStream::connect(listen).is_ok()).await;
        world.writer.apply([instance("web", greeter("local"))]);
        until("served", || ask(port).is_ok_and(|text| text == "local")).await;
        world.handle.reload(&Config::default());
        until("closed", || TcpStream::connect(listen).is_err()).await;
        world.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_said_and_tried_again() {
        let mut world = world(Vec::new());
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = NonZeroU16::new(taken.local_addr().unwrap().port()).unwrap();
        world.writer.apply([publish("web", &[port])]);
        until("said", || {
            world.handle.listeners().iter().any(|l| {
                matches!(&l.state, ListenerState::Failed { error } if error.contains("another program listens there"))
            })
        })
        .await;
        drop(taken);
        let opened = async {
            until("open", || matches!(world.handle.listeners()[0].state, ListenerState::Open { .. })).await;
        };
        tokio::join!(opened);
        world.tasks.shutdown().await;
    }

    #[tokio::test]
    async fn of_two_services_on_one_port_the_loser_is_told() {
        let mut world = world(Vec::new());
        let port = free_port();
        world.writer.apply([publish("web", &[port])]);
        until("open", || world.handle.listeners().len() == 1).await;
        world.writer.apply([publish("api", &[port])]);
        until("told", || world.handle.listeners().len() == 2).await;
        let loser = &world.handle.listeners()[1];
        assert_eq!(loser.service.as_str(), "api");
        assert!(
            matches!(&loser.state, ListenerState::Failed { error } if error.contains("is published by web too"))
        );
        world.tasks.shutdown().await;
    }
}
