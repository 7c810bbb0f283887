//! The task that tells the data plane what holds: what this node shows, which nodes take tunnels, and where what arrives may go.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nerve::model::{MtlsMode, NodeName, ServiceName};
use synapse::catalog::{Catalog, Freshness};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::metrics::Metrics;
use super::targets::{Here, Targets, of_node};
use super::wall::Wanted;
use super::{Config, Handle, Problem, Registered};
use crate::identity;
use crate::inherited::{Inherited, Transport};
use crate::proxy::{DataPlane, TunnelCredentials, TunnelListenerSpec, TunnelPeer, TunnelTargets, TunnelWays};

/// What is spoken on the tunnel port (ALPN).
const PROTOCOL: &[u8] = b"plexus-tunnel/1";
/// How often an address that could not be listened on is tried again, and it is looked whether sessions have become too old.
const TICK: Duration = Duration::from_secs(5);
/// How long other nodes get to hear of another mode, before what they may still do is refused, or what they may still refuse is done.
const SETTLE: Duration = Duration::from_secs(2);
/// The longest that sessions are resumed: what was verified when they began is not verified anew. Part of what is left of this
/// node's own certificate, which is about what is left of others'.
const SESSIONS: u32 = 4;

pub(super) struct Keeper {
    pub(super) handle: Handle,
    pub(super) config: watch::Receiver<Config>,
    pub(super) plane: Arc<DataPlane>,
    pub(super) identity: identity::Handle,
    pub(super) catalog: Catalog,
    pub(super) registered: Registered,
    pub(super) offer: Arc<dyn Fn(Option<u16>) + Send + Sync>,
    pub(super) inherited: Inherited,
    pub(super) metrics: Metrics,
    pub(super) targets: Arc<Targets>,
    pub(super) wanted: Arc<watch::Sender<Option<Wanted>>>,
    /// Of the catalog's instances, those of this node.
    pub(super) known: Here,
    /// What services say themselves of how they are reached.
    pub(super) modes: HashMap<ServiceName, MtlsMode>,
    /// Who was revoked when that was looked at last.
    pub(super) revoked: HashSet<(NodeName, u64)>,
    /// When sessions are begun anew.
    pub(super) fresh_until: Option<Instant>,
    pub(super) force: Force,
}

/// What is in force of a mode. A connection between two nodes must be let in by the one for as long as the other may make it,
/// and they hear of another mode at different moments.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Force {
    /// How others' instances are reached.
    leads: MtlsMode,
    /// What is asked of those who come.
    walls: MtlsMode,
    /// When both are to be what was said last.
    settles: Option<Instant>,
}

impl Force {
    /// Another mode was said: what can be done at once is.
    fn turn(&mut self, mode: MtlsMode, now: Instant) {
        self.leads = self.leads.max(mode);
        self.walls = self.walls.min(mode);
        let is_settled = self.leads == mode && self.walls == mode;
        self.settles = (!is_settled).then(|| now + SETTLE);
    }

    /// The rest of it.
    fn settle(&mut self, mode: MtlsMode) {
        *self = Self { leads: mode, walls: mode, settles: None };
    }
}

impl Keeper {
    /// What can be known at once, so that nothing is refused that was let in before.
    pub(super) fn begin(&mut self) {
        self.revoked = self.identity.revoked().into_iter().collect();
        self.show();
        self.listen();
        let services = self.catalog.services();
        services.iter().for_each(|service| self.look_at(&service.name));
        self.handle.settle(self.catalog.rules().mtls);
        self.force.settle(self.handle.mode());
        self.lead();
        self.tell();
    }

    /// Does not end.
    pub(super) async fn run(mut self) {
        let mut services = self.catalog.subscribe();
        let mut nodes = self.catalog.subscribe_nodes();
        let mut rules = self.catalog.subscribe_rules();
        let mut identity = self.identity.changes();
        let mut local = self.registered.changes.clone();
        self.begin();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                names = services.changed() => {
                    names.iter().for_each(|name| self.look_at(name));
                    self.tell();
                }
                Ok(()) = local.changed() => self.tell(),
                _ = nodes.changed() => self.lead(),
                Ok(()) = identity.changed() => {
                    self.show();
                    self.cut();
                }
                Ok(()) = self.config.changed() => self.mode_changed(),
                _ = rules.changed() => self.mode_changed(),
                () = until(self.force.settles) => {
                    self.force.settle(self.handle.mode());
                    self.lead();
                    self.tell();
                }
                _ = tick.tick() => {
                    self.listen();
                    self.tell();
                    if self.fresh_until.is_some_and(|until| until <= Instant::now()) {
                        self.show();
                    }
                }
            }
        }
    }

    fn mode_changed(&mut self) {
        self.handle.settle(self.catalog.rules().mtls);
        self.force.turn(self.handle.mode(), Instant::now());
        self.lead();
        self.tell();
    }

    /// What this node shows and believes in handshakes from now on.
    fn show(&mut self) {
        let holds_for = self.identity.holds_for();
        let mutual = match holds_for.map(|_| self.identity.mutual(PROTOCOL)).transpose() {
            Ok(mutual) => mutual,
            Err(error) => {
                self.handle.note(Problem::Credentials, Some(format!("TLS between nodes: {error}")));
                None
            }
        };
        self.fresh_until = holds_for.map(|left| Instant::now() + left / SESSIONS);
        let credentials = mutual.map(|mutual| {
            let (client, server) = (mutual.client.clone(), mutual.server.clone());
            TunnelCredentials::new(&client, &server, Arc::new(move |shown| mutual.node_of(shown)))
        });
        self.plane.tunnels().set_credentials(credentials);
        self.offer();
    }

    /// Others are told of the tunnel port once it answers, and takes who comes.
    fn offer(&self) {
        let port = self.handle.port().filter(|_| self.identity.holds_for().is_some());
        (self.offer)(port);
    }

    /// Opens what is not open yet of what is to be listened on.
    fn listen(&mut self) {
        let (mut failed, config) = (Vec::new(), self.config.borrow().clone());
        for address in config.listen.iter().copied().filter(|_| self.identity.is_on()) {
            if self.handle.is_open(address) {
                continue;
            }
            let taken = self.inherited.take(Transport::Tcp, address).into_iter().map(Arc::new).collect();
            let targets = Arc::clone(&self.targets) as Arc<dyn TunnelTargets>;
            match self.plane.open_tunnel(TunnelListenerSpec { address, targets, inherited: taken }) {
                Ok(listener) => {
                    tracing::info!(%address, "other nodes' tunnels are taken");
                    self.handle.opened(listener);
                }
                Err(error) => failed.push(error.to_string()),
            }
        }
        self.handle.note(Problem::Listen, (!failed.is_empty()).then(|| failed.join("; ")));
        self.offer();
    }

    /// Which nodes are reached by their tunnels.
    fn lead(&self) {
        let config = self.config.borrow().clone();
        let nodes = self.catalog.nodes();
        let peers = nodes.iter().filter(|node| node.name != config.node).filter_map(|node| {
            let address = SocketAddr::new(node.address, node.tunnel_port?);
            Some(TunnelPeer { node: node.name.clone(), address })
        });
        let peers: Vec<_> = peers.collect();
        self.metrics.peers.set(i64::try_from(peers.len()).unwrap_or(i64::MAX));
        self.plane.tunnels().set_ways(TunnelWays::new(self.force.leads, Some(config.node), peers));
    }

    /// Who was revoked since loses what it has open.
    fn cut(&mut self) {
        let revoked: HashSet<_> = self.identity.revoked().into_iter().collect();
        for (node, _) in revoked.difference(&self.revoked) {
            tracing::info!(%node, "was revoked: what goes by tunnels to it or from it is broken off");
            self.plane.cut_tunnels(node);
        }
        self.revoked = revoked;
    }

    /// What the catalog says of a service.
    fn look_at(&mut self, name: &ServiceName) {
        let service = self.catalog.service(name.as_str());
        let instances = service.iter().flat_map(|service| &service.endpoints);
        let registered = instances.filter(|endpoint| endpoint.watcher.is_none());
        let registered = registered.map(|endpoint| Arc::clone(&endpoint.instance));
        let here = of_node(&self.config.borrow().node, registered);
        set_or_remove(&mut self.known, name, Some(here).filter(|here| !here.is_empty()));
        let mode = service.and_then(|service| service.settings.mtls);
        set_or_remove(&mut self.modes, name, mode);
    }

    /// Tells where what arrives may go, and what is strict. What this node is about to register is led to before others know of
    /// it, and what it has taken back for as long as they may not know of that.
    fn tell(&self) {
        let mut here = self.known.clone();
        let config = self.config.borrow().clone();
        for instance in (self.registered.instances)() {
            let of_service = here.entry(instance.service.clone()).or_default();
            of_service.extend(of_node(&config.node, [Arc::new(instance)]));
        }
        let mode = self.force.walls;
        let is_strict = |service: &ServiceName| *self.modes.get(service).unwrap_or(&mode) == MtlsMode::Strict;
        let strict = here.iter().filter(|(service, _)| is_strict(service));
        let strict: BTreeSet<_> = strict.flat_map(|(_, instances)| instances.keys().copied()).collect();
        let wanted = Wanted { addresses: strict, local_links: Arc::clone(&config.local_links) };
        self.targets.set(here);
        // What an agent before has walled in stays so until it is known that it need not be.
        if wanted.addresses.is_empty() && *self.catalog.freshness() == Freshness::Awaiting {
            return;
        }
        self.wanted.send_if_modified(|before| {
            let is_new = before.as_ref() != Some(&wanted);
            *before = Some(wanted);
            is_new
        });
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn set_or_remove<T>(map: &mut HashMap<ServiceName, T>, name: &ServiceName, value: Option<T>) {
    match value {
        Some(value) => drop(map.insert(name.clone(), value)),
        None => drop(map.remove(name)),
    }
}

#[cfg(test)]
mod tests {
    use MtlsMode::{Off, Permissive, Strict};

    use super::*;

    #[test]
    fn nobody_refuses_what_another_may_still_do() {
        let now = Instant::now();
        for (before, after, leads, walls) in [
            (Off, Strict, Strict, Off),
            (Off, Permissive, Permissive, Off),
            (Permissive, Strict, Strict, Permissive),
            (Strict, Off, Strict, Off),
            (Strict, Permissive, Strict, Permissive),
        ] {
            let mut force = Force::default();
            force.settle(before);
            force.turn(after, now);
            assert_eq!((force.leads, force.walls), (leads, walls), "{before} to {after}");
            assert_eq!(force.settles, Some(now + SETTLE));
            force.turn(before, now);
            assert!(force.leads >= before && force.walls <= before);
            force.settle(after);
            assert_eq!((force.leads, force.walls, force.settles), (after, after, None));
            force.turn(after, now);
            assert_eq!(force.settles, None);
        }
    }
}
