//! The task that holds a subnet of each network for this node.
//!
//! The claims stand under a lease of their own, which lasts for minutes: containers live on while the agent is restarted, and no
//! other node may get their addresses meanwhile. An agent that starts takes its node's claims over into its own lease. Where the lease ended
//! and another node was faster, this node takes another subnet, and says which containers have addresses that are not its any more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nerve::model::{NetworkName, Pool, Prefix, Slot, Subnet, Transport};
use nerve::networks::{self, Draft};
use nerve::store::{self, Session, Store};
use nerve::subnets::{self, Claimed};
use nerve::tasks::Tasks;
use synapse::catalog::{Catalog, NetworkView};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::keeper::{Keys, Returning};
use super::names::mac;
use super::{Config, Handle, Held, LINKS, Metrics, PROTOCOL, Problems, send_if_new};
use crate::routes::{self, collision};

/// The pause after the store failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How often every claim is looked at, whatever the watch told.
const TICK: Duration = Duration::from_secs(30);
/// Claims that others may be faster for, before changes are looked at again.
const TRIES: usize = 16;
/// The network that configurations name the ranges of.
const DEFAULT: &str = "default";
/// Which subnets this node had last.
const FILE: &str = "subnets.json";

/// Starts it.
pub(super) fn start(
    config: &Arc<Config>,
    catalog: &Catalog,
    store: &Arc<dyn Store>,
    channels: Channels,
    handle: &Handle,
    metrics: &Metrics,
    tasks: &Tasks,
) {
    let Some(attachments) = &handle.attachments else { return };
    let used = attachments.used();
    let (config, catalog, store) = (Arc::clone(config), catalog.clone(), Arc::clone(store));
    let (handle, metrics) = (handle.clone(), metrics.clone());
    tasks.spawn_until_stopped("overlay claims", move || {
        let claims = Claims {
            preferred: Preferred::read(&config.state_dir.join(FILE)),
            config: Arc::clone(&config),
            catalog: catalog.clone(),
            store: Arc::clone(&store),
            channels: channels.clone(),
            handle: handle.clone(),
            metrics: metrics.clone(),
            used: used.clone(),
            collides: false,
            lapse: None,
            problems: BTreeMap::new(),
        };
        claims.run()
    });
}

/// What it is told, and where it tells what this node holds. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Channels {
    pub(super) held: Arc<watch::Sender<Held>>,
    /// The subnets that stand under the present lease, of which addresses may be given; `None`: there is no lease.
    pub(super) leased: Arc<watch::Sender<Option<Held>>>,
    pub(super) returning: watch::Receiver<Option<Returning>>,
    /// The range of the link that this node's address is on.
    pub(super) link: watch::Receiver<Option<Prefix>>,
    /// This node's keys for encrypted networks; `None`: not known yet.
    pub(super) keys: watch::Receiver<Option<Keys>>,
}

struct Claims {
    config: Arc<Config>,
    catalog: Catalog,
    store: Arc<dyn Store>,
    channels: Channels,
    handle: Handle,
    metrics: Metrics,
    preferred: Preferred,
    /// The networks that containers here are attached to.
    used: watch::Receiver<BTreeSet<NetworkName>>,
    /// This host uses addresses that the configuration has for a network: it is looked at again with each tick.
    collides: bool,
    /// Why there is no lease any more.
    lapse: Option<String>,
    problems: BTreeMap<NetworkName, String>,
}

impl Claims {
    async fn run(mut self) {
        self.recall();
        loop {
            let session = match self.store.open_session(self.config.lease).await {
                Ok(session) => session,
                Err(error) => {
                    tracing::debug!(%error, "no lease for subnets yet");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            self.lapse = None;
            self.show_problems();
            let lost = tokio::select! {
                lost = session.lost() => lost,
                () = self.serve(&session) => continue,
            };
            self.channels.leased.send_replace(None);
            self.metrics.leases_lost.inc();
            self.lapse = Some(format!(
                "the lease of this node's subnets has ended; containers go on, and none can be attached until the subnets are claimed \
                 again: {lost}"
            ));
            self.show_problems();
        }
    }

    /// What this node had when the catalog was last known: good until the store says otherwise.
    fn recall(&mut self) {
        let views = self.catalog.networks();
        let held = views.iter().filter_map(|view| Some((view.name.clone(), self.recorded(view)?)));
        self.channels.held.send_replace(held.collect());
    }

    /// Keeps a claim on each network under this session; ends with the catalog only.
    async fn serve(&mut self, session: &Session) {
        let mut confirmed = Held::new();
        let mut changes = self.catalog.subscribe_networks();
        let mut due: BTreeSet<NetworkName> = self.names();
        let mut tick = tokio::time::interval_at(Instant::now() + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut used, mut link, mut keys) =
            (self.used.clone(), self.channels.link.clone(), self.channels.keys.clone());
        let mut returning = self.channels.returning.clone();
        let mut lacks_default = !self.config.default.is_empty();
        loop {
            lacks_default = lacks_default && !self.make_default().await;
            let pause = self.settle(&mut due, &mut confirmed, session).await || lacks_default;
            send_if_new(&self.channels.leased, Some(confirmed.clone()));
            tokio::select! {
                changed = changes.changed() => due.extend(changed.into_iter().filter_map(|(name, change)| {
                    let is_ours = confirmed.get(&name).is_none_or(|slot| change.slots.contains(slot));
                    (change.record || is_ours).then_some(name)
                })),
                Ok(()) = used.changed() => due = self.names(),
                Ok(()) = returning.changed() => due = self.names(),
                Ok(()) = link.changed() => due = self.names(),
                Ok(()) = keys.changed() => due = self.names(),
                _ = tick.tick() => {
                    due = self.names();
                    lacks_default |= self.collides;
                }
                () = tokio::time::sleep(PAUSE), if pause => {}
            }
        }
    }

    /// The network of the configuration: whoever is first makes it. Tells whether nothing is left to do.
    async fn make_default(&mut self) -> bool {
        let Ok(name) = NetworkName::new(DEFAULT) else { return true };
        // One that is there has routes of its own.
        if self.catalog.network(DEFAULT).is_none()
            && let Some(used) = self.is_used_here().await
        {
            self.note(&name, Some(used));
            self.collides = true;
            return true;
        }
        self.collides = false;
        let pools =
            self.config.default.iter().map(|range| Pool::new(*range, Pool::usual_subnet_length(*range)));
        let pools = pools.filter_map(Result::ok).collect();
        let draft =
            Draft { pools, vni: None, mtu: None, reaches: BTreeSet::new(), transport: Transport::Tunnel };
        match networks::create(&*self.store, &name, draft).await {
            Ok(created) => {
                if created.new {
                    tracing::info!(network = %name, vni = %created.network.vni, "made the network of the configuration");
                }
                self.note(&name, None);
                true
            }
            Err(networks::Error::Store(error)) if error.is_retryable() => false,
            Err(error) => {
                self.note(&name, Some(format!("overlay.default: {error}")));
                true
            }
        }
    }

    /// What of this host has addresses of the ranges, in words. Networks that are made by hand are asked the same.
    async fn is_used_here(&self) -> Option<String> {
        let routes = routes::read()
            .await
            .inspect_err(|error| tracing::warn!(%error, "whether this host uses overlay.default"))
            .ok()?;
        // Left by a network of that range that is about to go, or to come back.
        let others = routes.iter().filter(|route| route.protocol != PROTOCOL && !route.is_on(LINKS));
        let collision = collision(&self.config.default, others)?;
        Some(format!(
            "overlay.default: network {DEFAULT} is not made with {}: {collision}; take a range that is free on every node, or remove \
             that (`{}` shows it)",
            collision.range,
            collision.shown_by()
        ))
    }

    fn names(&self) -> BTreeSet<NetworkName> {
        let known = self.catalog.networks();
        known
            .iter()
            .map(|view| view.name.clone())
            .chain(self.channels.held.borrow().keys().cloned())
            .collect()
    }

    /// Looks at the networks that are due; those for which the store failed stay due. Tells whether there are any.
    async fn settle(
        &mut self,
        due: &mut BTreeSet<NetworkName>,
        confirmed: &mut Held,
        session: &Session,
    ) -> bool {
        for name in std::mem::take(due) {
            let Some(view) = self.catalog.network(name.as_str()) else {
                self.forget(&name, confirmed).await;
                continue;
            };
            if view.network.is_encrypted() {
                let keys = self.channels.keys.borrow().clone();
                match keys {
                    // It is due again when they are known.
                    None => continue,
                    Some(Err(reason)) => {
                        self.forget(&name, confirmed).await;
                        self.note(&name, Some(cannot_encrypt(&name, &reason)));
                        continue;
                    }
                    Some(Ok(_)) => {}
                }
            }
            let is_confirmed = confirmed.get(&name).is_some_and(|slot| self.is_ours(&view, *slot));
            if is_confirmed {
                continue;
            }
            match self.claim(&view, confirmed.get(&name).copied(), session).await {
                Ok(Some(slot)) => {
                    confirmed.insert(name.clone(), slot);
                    self.hold(&view, slot);
                    self.note(&name, None);
                }
                Ok(None) => {
                    confirmed.remove(&name);
                    self.let_go(&view);
                    self.note(&name, Some(full(&view)));
                    due.insert(name);
                }
                Err(error) => {
                    self.metrics.claims.with_label_values(&["failed"]).inc();
                    if !error.is_retryable() {
                        self.note(
                            &name,
                            Some(format!("no subnet of network {name} can be claimed: {error}")),
                        );
                    }
                    due.insert(name);
                }
            }
        }
        !due.is_empty()
    }

    fn is_ours(&self, view: &NetworkView, slot: Slot) -> bool {
        view.subnets.get(slot).is_some_and(|subnet| *subnet == self.record(view, slot))
    }

    /// The subnet that this node has as far as the catalog knows.
    fn recorded(&self, view: &NetworkView) -> Option<Slot> {
        let all = view.subnets.all();
        all.into_iter().find(|(_, subnet)| subnet.node == self.config.node).map(|(slot, _)| slot)
    }

    /// What this node says of itself.
    fn record(&self, view: &NetworkView, slot: Slot) -> Subnet {
        let in_use = self.used.borrow().contains(&view.name);
        let Config { node, address, .. } = &*self.config;
        let (returns, own) = match &*self.channels.returning.borrow() {
            Some(Returning { networks, own }) => (networks.contains(&view.name), own.clone()),
            // Until it is known, what was true before the agent was restarted is.
            None => {
                let recorded = view.subnets.get(slot).filter(|subnet| subnet.node == *node);
                recorded.map(|subnet| (subnet.returns, subnet.own.clone())).unwrap_or_default()
            }
        };
        let link = self.channels.link.borrow().filter(|_| view.network.transport == Transport::Direct);
        let keys = match &*self.channels.keys.borrow() {
            Some(Ok(keys)) if view.network.is_encrypted() => keys.clone(),
            _ => Vec::new(),
        };
        Subnet { in_use, returns, own, link, keys, ..Subnet::new(node.clone(), *address, mac(slot)) }
    }

    /// Claims one; `None`: all are taken.
    async fn claim(
        &self,
        view: &NetworkView,
        before: Option<Slot>,
        session: &Session,
    ) -> store::Result<Option<Slot>> {
        let name = &view.name;
        let node = &self.config.node;
        let preferred = before.or_else(|| self.recorded(view)).or_else(|| self.preferred.of(name));
        let others = view.subnets.all().into_iter().filter(|(_, subnet)| subnet.node != *node);
        let mut taken: BTreeSet<Slot> = others.map(|(slot, _)| slot).collect();
        for _ in 0..TRIES {
            let choice =
                subnets::choose(node, name, view.network.slots(), |slot| taken.contains(&slot), preferred);
            let Some(slot) = choice else { return Ok(None) };
            match subnets::claim(&*self.store, session, name, slot, &self.record(view, slot)).await? {
                Claimed::Done => {
                    self.metrics.claims.with_label_values(&["done"]).inc();
                    return Ok(Some(slot));
                }
                Claimed::Taken(_) => {
                    self.metrics.claims.with_label_values(&["taken"]).inc();
                    taken.insert(slot);
                }
            }
        }
        Ok(None)
    }

    fn hold(&mut self, view: &NetworkView, slot: Slot) {
        let name = &view.name;
        let before = self.channels.held.borrow().get(name).copied();
        if before == Some(slot) {
            return;
        }
        if before.or(self.preferred.of(name)) != Some(slot) {
            self.let_go(view);
        }
        tracing::info!(network = %name, subnet = shown(view, slot), "this node has a subnet");
        self.channels.held.send_modify(|held| {
            held.insert(name.clone(), slot);
        });
        self.preferred.set(name, Some(slot));
    }

    /// Another node has what this one had of a network, in this life or the one before.
    fn let_go(&mut self, view: &NetworkView) {
        let name = &view.name;
        let mut before = None;
        self.channels.held.send_if_modified(|held| {
            before = held.remove(name);
            before.is_some()
        });
        if let Some(before) = before.or(self.preferred.of(name)) {
            self.preferred.set(name, None);
            tracing::error!(
                network = %name, before = shown(view, before),
                "another node has the subnet that this one had, whose lease had ended; containers with addresses of it must be \
                 attached again"
            );
        }
    }

    /// The network is no more: one that is made under its name later is another one.
    async fn forget(&mut self, name: &NetworkName, confirmed: &mut Held) {
        if let Some(slot) = confirmed.remove(name)
            && let Err(error) = subnets::release(&*self.store, name, slot, &self.config.node).await
        {
            tracing::debug!(network = %name, %error, "a subnet is not given back; it ends with its lease");
        }
        self.note(name, None);
        if self.channels.held.send_if_modified(|held| held.remove(name).is_some()) {
            tracing::info!(network = %name, "the network is no more");
            self.preferred.set(name, None);
        }
    }

    fn note(&mut self, name: &NetworkName, problem: Option<String>) {
        match problem {
            Some(problem) => self.problems.insert(name.clone(), problem),
            None => self.problems.remove(name),
        };
        self.show_problems();
    }

    fn show_problems(&self) {
        let all = self.lapse.iter().chain(self.problems.values()).cloned().collect();
        Problems::set(&self.handle.problems.claims, all);
    }
}

fn shown(view: &NetworkView, slot: Slot) -> String {
    view.network.subnets(slot).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn cannot_encrypt(name: &NetworkName, reason: &str) -> String {
    format!(
        "this node takes no part in network {name}, which is encrypted: its kernel encrypts by neither WireGuard nor IPsec ({reason}); load \
         the module wireguard, or esp4, esp6 and xfrm_interface, or run a kernel that has them"
    )
}

fn full(view: &NetworkView) -> String {
    format!(
        "this node has no subnet of network {}: all {} are taken; remove nodes that are no more, or make a network with a larger \
         range or longer subnets (--subnet-len)",
        view.name,
        view.network.slots()
    )
}

/// Which subnets this node had last: after an absence that its lease did not survive, it tries for them first.
#[derive(Debug)]
struct Preferred {
    file: PathBuf,
    slots: Held,
}

impl Preferred {
    fn read(file: &Path) -> Self {
        let read = std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { file: file.to_owned(), slots: read.unwrap_or_default() }
    }

    fn of(&self, network: &NetworkName) -> Option<Slot> {
        self.slots.get(network).copied()
    }

    /// A file that cannot be written costs a preference and nothing else.
    fn set(&mut self, network: &NetworkName, slot: Option<Slot>) {
        match slot {
            Some(slot) => self.slots.insert(network.clone(), slot),
            None => self.slots.remove(network),
        };
        let text = serde_json::to_vec(&self.slots).unwrap_or_default();
        if let Err(error) = std::fs::write(&self.file, text) {
            tracing::warn!(file = %self.file.display(), %error, "which subnets this node has is not kept");
        }
    }
}
