//! What is to be listened on (pure): what services publish on this node, and who holds which address and port.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use nerve::model::{
    InstanceId, NodeName, PortName, Prefix, Protocol, PublishMode, PublishedPort, ServiceName,
};
use synapse::catalog::Service;

/// A port over a transport, on whatever address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) protocol: Protocol,
    pub(super) port: NonZeroU16,
}

/// Where a listener leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Holder {
    pub(super) service: ServiceName,
    /// The port of the instances; their main port unless said.
    pub(super) target: Option<PortName>,
    /// Only instances of this node.
    pub(super) local: bool,
    /// The watcher that publishes it; `None`: the store does, or the configuration.
    pub(super) watcher: Option<Arc<str>>,
    /// An instance of the service that has this port at this address of the node. Nothing may listen there beside it: what would
    /// lead to the instance would lead to itself.
    pub(super) occupied: Option<InstanceId>,
}

impl Holder {
    /// What is published for everybody leads there.
    pub(super) fn of(service: ServiceName, target: Option<PortName>, local: bool) -> Self {
        Self { service, target, local, watcher: None, occupied: None }
    }

    /// Is a listener of the one as good as a listener of the other?
    pub(super) fn leads_like(&self, other: &Self) -> bool {
        let route = |holder: &Self| (holder.service.clone(), holder.target.clone(), holder.local);
        route(self) == route(other) && self.occupied.is_some() == other.occupied.is_some()
    }
}

/// What one service wants of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Want {
    addresses: BTreeSet<IpAddr>,
    target: Option<PortName>,
    local: bool,
    watcher: Option<Arc<str>>,
    /// The addresses where an instance has the port itself.
    occupied: BTreeMap<IpAddr, InstanceId>,
}

impl Want {
    fn holder(&self, service: &ServiceName, address: IpAddr) -> Holder {
        Holder {
            watcher: self.watcher.clone(),
            occupied: self.occupied.get(&address).cloned(),
            ..Holder::of(service.clone(), self.target.clone(), self.local)
        }
    }
}

/// What one service wants on this node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wants(BTreeMap<Port, Want>);

/// The addresses of this node that may be published on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    /// What publications that name no address are opened on.
    pub(super) usual: Vec<IpAddr>,
    /// Every address of this node that is one of the usual ones or covered by them.
    pub(super) own: Vec<IpAddr>,
}

/// Who wants which port and who has it. Two services may want one; one has it.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_port: HashMap<Port, BTreeMap<ServiceName, Want>>,
    by_service: HashMap<ServiceName, BTreeSet<Port>>,
    granted: HashMap<Port, BTreeMap<IpAddr, Holder>>,
    refused: BTreeMap<Port, Vec<Refused>>,
}

/// A want that another service stands in the way of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) address: IpAddr,
    pub(super) wanted: Holder,
    pub(super) holder: Holder,
}

/// Does a socket on `a` take what is for `b`? The wildcard of IPv6 takes both families.
pub(super) fn covers(a: IpAddr, b: IpAddr) -> bool {
    a == b || (a.is_unspecified() && (a.is_ipv6() || b.is_ipv4()))
}

fn overlap(a: IpAddr, b: IpAddr) -> bool {
    covers(a, b) || covers(b, a)
}

impl Addresses {
    /// Where a publication is opened that is limited to `prefixes`, or to none.
    fn within(&self, prefixes: &[Prefix]) -> BTreeSet<IpAddr> {
        if prefixes.is_empty() {
            return self.usual.iter().copied().collect();
        }
        self.own.iter().copied().filter(|own| prefixes.iter().any(|prefix| prefix.contains(*own))).collect()
    }
}

impl Wants {
    /// What a service publishes on `node`, or a watcher for it: nothing where it is gone, and what is of mode `host` only where an instance is.
    pub(super) fn of(service: Option<&Service>, node: &NodeName, addresses: &Addresses) -> Self {
        let Some(service) = service else { return Self::default() };
        let is_here = service.endpoints.iter().any(|endpoint| endpoint.instance.node == *node);
        let opens = |published: &PublishedPort| published.mode == PublishMode::Ingress || is_here;
        let mut wants = BTreeMap::new();
        if service.published().next().is_none() {
            return Self(wants);
        }
        let own = own_ports(service, addresses);
        for (published, watcher) in service.published().filter(|(published, _)| opens(published)) {
            let on = addresses.within(&published.addresses);
            for port in published.range().ports().filter(|_| !on.is_empty()) {
                let want = Want {
                    addresses: on.clone(),
                    target: published.target_of(port),
                    local: published.mode == PublishMode::Host,
                    watcher: watcher.cloned(),
                    occupied: occupied(&on, own.get(&port).map(Vec::as_slice).unwrap_or_default()),
                };
                wants.insert(Port { protocol: published.protocol, port }, want);
            }
        }
        Self(wants)
    }
}

/// The ports that instances of a service have at addresses of this node.
fn own_ports<'a>(
    service: &'a Service,
    addresses: &Addresses,
) -> HashMap<NonZeroU16, Vec<(IpAddr, &'a InstanceId)>> {
    let mut own: HashMap<NonZeroU16, Vec<_>> = HashMap::new();
    let here = service.endpoints.iter().map(|endpoint| &*endpoint.instance);
    for instance in here.filter(|instance| addresses.own.binary_search(&instance.address).is_ok()) {
        for port in instance.port.iter().chain(instance.ports.values()) {
            own.entry(*port).or_default().push((instance.address, &instance.id));
        }
    }
    own
}

/// The ports that watchers have found instances of a service to have at addresses of this node, each with who has.
pub(super) fn watched_here(service: &Service, addresses: &Addresses) -> HashMap<NonZeroU16, Arc<str>> {
    let watched = service.endpoints.iter().filter_map(|endpoint| {
        let (port, watcher) = (endpoint.instance.port?, endpoint.watcher.clone()?);
        addresses.own.binary_search(&endpoint.instance.address).is_ok().then_some((port, watcher))
    });
    watched.collect()
}

/// Of `addresses`, those where one of these instances is met.
fn occupied(addresses: &BTreeSet<IpAddr>, own: &[(IpAddr, &InstanceId)]) -> BTreeMap<IpAddr, InstanceId> {
    let by = |address: &IpAddr| own.iter().find(|(at, _)| covers(*address, *at)).map(|(_, id)| (*id).clone());
    addresses.iter().filter_map(|address| Some((*address, by(address)?))).collect()
}

impl Claims {
    /// Takes over what a service wants now and returns the ports that this touches.
    pub(super) fn set(&mut self, service: &ServiceName, Wants(wants): Wants) -> BTreeSet<Port> {
        let mut touched = self.by_service.remove(service).unwrap_or_default();
        // Of a service with a thousand ports whose endpoints change, no port is touched.
        let same = |port: &Port, want: &Want| {
            self.by_port.get(port).and_then(|claims| claims.get(service)) == Some(want)
        };
        let kept: BTreeSet<Port> =
            wants.iter().filter(|(port, want)| same(port, want)).map(|(port, _)| *port).collect();
        touched.retain(|port| !kept.contains(port));
        for port in &touched {
            if let Some(claims) = self.by_port.get_mut(port) {
                claims.remove(service);
            }
        }
        if !wants.is_empty() {
            self.by_service.insert(service.clone(), wants.keys().copied().collect());
        }
        for (port, want) in wants.into_iter().filter(|(port, _)| !kept.contains(port)) {
            touched.insert(port);
            self.by_port.entry(port).or_default().insert(service.clone(), want);
        }
        for port in &touched {
            self.elect(*port);
        }
        touched
    }

    /// The store goes before watchers. Whoever has an address keeps it while it wants it; what is left goes to the first by name.
    fn elect(&mut self, port: Port) {
        let before = self.granted.remove(&port).unwrap_or_default();
        self.refused.remove(&port);
        let Some(claims) = self.by_port.get(&port).filter(|claims| !claims.is_empty()) else {
            self.by_port.remove(&port);
            return;
        };
        let (mut granted, mut refused) = (BTreeMap::<IpAddr, Holder>::new(), Vec::new());
        for (of_watchers, keepers) in [(false, true), (false, false), (true, true), (true, false)] {
            for (service, want) in claims.iter().filter(|(_, want)| want.watcher.is_some() == of_watchers) {
                let had =
                    |address: &IpAddr| before.get(address).is_some_and(|holder| holder.service == *service);
                for &address in want.addresses.iter().filter(|address| had(address) == keepers) {
                    let wanted = want.holder(service, address);
                    let other = granted.iter().find(|(taken, _)| overlap(**taken, address));
                    match other.map(|(_, holder)| holder) {
                        None => drop(granted.insert(address, wanted)),
                        // Its own wildcard covers it.
                        Some(holder) if holder.service == *service => {}
                        Some(holder) => refused.push(Refused { address, wanted, holder: holder.clone() }),
                    }
                }
            }
        }
        self.granted.insert(port, granted);
        if !refused.is_empty() {
            self.refused.insert(port, refused);
        }
    }

    /// Who has which address of the port.
    pub(super) fn granted(&self, port: Port) -> impl Iterator<Item = (IpAddr, &Holder)> {
        self.granted.get(&port).into_iter().flatten().map(|(address, holder)| (*address, holder))
    }

    /// What services want and another one has.
    pub(super) fn refused(&self) -> impl Iterator<Item = (Port, &Refused)> {
        self.refused.iter().flat_map(|(port, refused)| refused.iter().map(move |refused| (*port, refused)))
    }
}

/// The ports that the virtual addresses of a service have: the instances' main ports, then their named ports, then those
/// that it publishes on every node. A number that is several of these is the first; of two names the earlier.
pub(super) fn virtual_ports(service: &Service) -> BTreeMap<Port, Option<PortName>> {
    let mut ports = BTreeMap::new();
    let tcp = |port: NonZeroU16| Port { protocol: Protocol::Tcp, port };
    for port in service.endpoints.iter().filter_map(|endpoint| endpoint.instance.port) {
        ports.entry(tcp(port)).or_insert(None);
    }
    let named: BTreeSet<(&PortName, NonZeroU16)> = service
        .endpoints
        .iter()
        .flat_map(|e| e.instance.ports.iter().map(|(name, port)| (name, *port)))
        .collect();
    for (name, port) in named {
        ports.entry(tcp(port)).or_insert_with(|| Some(name.clone()));
    }
    for (published, _) in service.published().filter(|(port, _)| port.mode == PublishMode::Ingress) {
        for port in published.range().ports() {
            ports
                .entry(Port { protocol: published.protocol, port })
                .or_insert_with(|| published.target_of(port));
        }
    }
    ports
}

/// The service as a balancer is to see it: whole, or the instances of this node alone.
pub(super) fn seen<'a>(
    service: Option<&'a Service>,
    local: bool,
    node: &NodeName,
) -> Option<Cow<'a, Service>> {
    let service = service?;
    if !local {
        return Some(Cow::Borrowed(service));
    }
    let mut of_node = service.clone();
    of_node.endpoints.retain(|endpoint| endpoint.instance.node == *node);
    Some(Cow::Owned(of_node))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nerve::model::ServiceSettings;
    use proptest::prelude::*;
    use synapse::catalog::{Catalog, Change};

    use super::*;

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    fn node() -> NodeName {
        NodeName::new("a").unwrap()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn everywhere() -> Addresses {
        Addresses { usual: ips(&["::"]), own: ips(&["192.0.2.1", "192.0.2.2", "198.51.100.1"]) }
    }

    fn publishes(ports: Vec<PublishedPort>, on_nodes: &[&str]) -> Arc<Service> {
        let (catalog, mut writer) = Catalog::new();
        let settings = ServiceSettings { published: ports, ..Default::default() };
        let instances = on_nodes.iter().map(|node| {
            let json = serde_json::json!({
                "service": "web", "id": node, "node": node, "address": "192.0.2.1", "port": 80, "ports": {"http": 80, "metrics": 9100},
            });
            Change::PutInstance(Arc::new(serde_json::from_value(json).unwrap()))
        });
        writer.apply(instances.chain([Change::PutSettings(name("web"), Arc::new(settings))]));
        catalog.service("web").unwrap()
    }

    fn wants(ports: &[&str]) -> Wants {
        let ports = ports.iter().map(|port| port.parse().unwrap()).collect();
        Wants::of(Some(&publishes(ports, &["b"])), &node(), &everywhere())
    }

    fn on(addresses: &[&str]) -> Wants {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let port = PublishedPort { addresses, ..port("8080") };
        Wants::of(Some(&publishes(vec![port], &["b"])), &node(), &everywhere())
    }

    fn port(text: &str) -> PublishedPort {
        text.parse().unwrap()
    }

    fn at(text: &str) -> Port {
        Port { protocol: port(text).protocol, port: port(text).port }
    }

    fn holders(claims: &Claims, text: &str) -> Vec<String> {
        claims.granted(at(text)).map(|(address, holder)| format!("{address} {}", holder.service)).collect()
    }

    #[test]
    fn a_port_stays_with_the_service_that_has_it() {
        let mut claims = Claims::default();
        claims.set(&name("web"), wants(&["8080"]));
        claims.set(&name("api"), wants(&["8080"]));
        assert_eq!(holders(&claims, "8080"), [":: web"]);
        let refused: Vec<_> = claims.refused().collect();
        assert!(
            refused.len() == 1
                && refused[0].1.holder.service == name("web")
                && refused[0].1.wanted.service == name("api")
        );
        assert_eq!(claims.set(&name("web"), Wants::default()), BTreeSet::from([at("8080")]));
        assert_eq!(holders(&claims, "8080"), [":: api"]);
        assert_eq!(claims.refused().count(), 0);
    }

    #[test]
    fn two_services_share_a_port_on_different_addresses() {
        let mut claims = Claims::default();
        claims.set(&name("web"), on(&["192.0.2.0/24"]));
        claims.set(&name("api"), on(&["198.51.100.1", "192.0.2.2"]));
        assert_eq!(holders(&claims, "8080"), ["192.0.2.1 web", "192.0.2.2 web", "198.51.100.1 api"]);
        assert_eq!(claims.refused().next().unwrap().1.address, ips(&["192.0.2.2"])[0]);
        // What covers both gets neither while they are there.
        claims.set(&name("all"), wants(&["8080"]));
        assert_eq!(holders(&claims, "8080").len(), 3);
    }

    #[test]
    fn a_port_whose_endpoints_change_is_not_touched() {
        let mut claims = Claims::default();
        assert_eq!(claims.set(&name("web"), wants(&["8000-8010"])).len(), 11);
        assert_eq!(claims.set(&name("web"), wants(&["8000-8010"])).len(), 0);
        assert_eq!(claims.set(&name("web"), wants(&["8000-8010", "9000"])), BTreeSet::from([at("9000")]));
    }

    #[test]
    fn a_host_port_is_there_only_where_an_instance_is() {
        let host = || vec![PublishedPort { mode: PublishMode::Host, ..port("8080") }];
        let elsewhere = Wants::of(Some(&publishes(host(), &["b"])), &node(), &everywhere());
        assert_eq!(elsewhere, Wants::default());
        let here = Wants::of(Some(&publishes(host(), &["a", "b"])), &node(), &everywhere());
        let mut claims = Claims::default();
        claims.set(&name("web"), here);
        assert!(claims.granted(at("8080")).next().unwrap().1.local);
    }

    #[test]
    fn an_address_that_the_node_has_not_is_opened_nowhere() {
        assert_eq!(on(&["203.0.113.1"]), Wants::default());
    }

    #[test]
    fn virtual_addresses_have_the_ports_of_instances_and_those_published_everywhere() {
        let host = PublishedPort { mode: PublishMode::Host, ..port("7000") };
        let service =
            publishes(vec![port("8000-8001"), port("80:metrics"), port("53/udp"), host], &["a", "b"]);
        let ports = virtual_ports(&service);
        let target = |text: &str| ports.get(&at(text)).map(|target| target.as_ref().map(ToString::to_string));
        assert_eq!(target("80"), Some(None));
        assert_eq!(target("9100"), Some(Some("metrics".to_owned())));
        assert_eq!(target("8001"), Some(Some("8001".to_owned())));
        assert_eq!(target("53/udp"), Some(None));
        assert_eq!((target("7000"), ports.len()), (None, 5));
    }

    fn published() -> impl Strategy<Value = PublishedPort> {
        let addresses = ["192.0.2.0/24", "192.0.2.2", "198.51.100.1", "203.0.113.9"];
        let addresses = proptest::sample::subsequence(addresses.to_vec(), 0..3);
        (1..6_u16, 0..3_u16, addresses, any::<bool>()).prop_map(|(first, more, addresses, host)| {
            let range = format!("{first}-{}", first + more).parse().unwrap();
            PublishedPort {
                addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
                mode: if host { PublishMode::Host } else { PublishMode::Ingress },
                ..PublishedPort::new(range, Protocol::Tcp)
            }
        })
    }

    proptest! {
        #[test]
        fn each_address_of_a_port_has_one_holder_and_each_other_claim_is_refused_with_its_name(
            ops in proptest::collection::vec((0..4_u8, proptest::collection::vec(published(), 0..3), any::<bool>()), 1..20),
        ) {
            let mut claims = Claims::default();
            let mut latest: BTreeMap<ServiceName, BTreeMap<Port, Want>> = BTreeMap::new();
            for (service, ports, here) in ops {
                let service = name(&format!("s{service}"));
                let wants = || Wants::of(Some(&publishes(ports.clone(), if here { &["a"] } else { &["b"] })), &node(), &everywhere());
                let before: Vec<(Port, IpAddr, Holder)> = claims.by_port.keys().flat_map(|port| claims.granted(*port).map(|(a, h)| (*port, a, h.clone()))).collect();
                claims.set(&service, wants());
                latest.insert(service.clone(), wants().0);
                for number in 1..10 {
                    let port = Port { protocol: Protocol::Tcp, port: NonZeroU16::new(number).unwrap() };
                    let granted: Vec<_> = claims.granted(port).collect();
                    for (at, (address, holder)) in granted.iter().enumerate() {
                        prop_assert!(granted[..at].iter().all(|(other, _)| !overlap(*address, *other)));
                        prop_assert!(latest[&holder.service][&port].addresses.contains(address));
                    }
                    for (service, wants) in &latest {
                        for address in wants.get(&port).map(|want| &want.addresses).into_iter().flatten() {
                            let has = granted.iter().any(|(at, holder)| holder.service == *service && covers(*at, *address));
                            let refused = claims.refused().any(|(p, r)| p == port && r.address == *address && r.wanted.service == *service && r.holder.service != *service);
                            prop_assert!(has != refused, "{service} {address} {number}");
                        }
                    }
                    // Others lose nothing by it.
                    for (p, address, holder) in before.iter().filter(|(p, _, holder)| *p == port && holder.service != service) {
                        prop_assert!(granted.iter().any(|(a, h)| a == address && **h == *holder), "{p:?} {address}");
                    }
                }
            }
        }
    }
}
