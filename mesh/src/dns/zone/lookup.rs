//! What a name under the domain means. The tree, with the domain left out:
//!
//! ```text
//! (apex)                         the domain: SOA, NS
//! <service>                      its virtual addresses where it has some that lead somewhere here, else its endpoints
//! tasks.<service>                its endpoints, always
//! <service>.service              its endpoints
//! <tag>.<service>.service        those with a tag
//! <service>.zone.<zone>          those in a zone
//! <instance>.<service>           one of them
//! _<service>._tcp                its endpoints' main ports (SRV; _udp likewise)
//! _<service>._tcp.service        the same; with a tag in the place of the protocol, those with the tag (RFC 2782)
//! _<port>._tcp.<service>         their ports of that name (SRV; _udp likewise)
//! <node>.node                    a node
//! ip-192-0-2-1.addr              192.0.2.1; ip-2001-db8-0-0-0-0-0-1.addr likewise
//! c0000201.addr                  the same in hexadecimal, eight digits or 32
//! ns.addr                        the nodes, which all answer DNS
//! ```
//!
//! What Consul's clients ask for may have its datacenter behind it: `web.service.dc1`. Tags, zones and ids are compared without regard
//! to case, and those with dots in them are several labels.
//!
//! A service that is a name outside the mesh leads there (CNAME) from `<service>` and `<service>.service`, and is named with its
//! port by `_<service>._tcp`.
//!
//! An instance does not say which transport its port speaks, so `_udp` and `_tcp` name the same ports. Where a node is
//! called `tasks`, `tasks.node` is that node and not the tasks of a service called `node`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use hickory_proto::rr::Name;
use nerve::model::{Node, PortName};
use smallvec::SmallVec;
use synapse::catalog::{Catalog, Endpoint, Service};

use super::reverse::Owned;
use super::zone_names::ZoneNames;

/// Where a name's meaning is looked up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) zones: &'a ZoneNames,
}

impl Known<'_> {
    fn is_zone(self, name: &str) -> bool {
        self.zones.has(name, self.catalog)
    }
}

/// What a name means.
#[derive(Debug, Clone)]
pub(super) enum Found {
    /// The domain itself.
    Apex,
    /// The name server's name.
    NameServer,
    /// A service; `tasks` if its endpoints were asked for by that word.
    Service { service: Arc<Service>, tasks: bool },
    /// The endpoints of a service that are in a group.
    Group { service: Arc<Service>, group: Group },
    /// The ports of a service, the main ones or those of a name; only SRV.
    Targets { service: Arc<Service>, group: Group, port: Option<PortName> },
    /// One endpoint of a service, by its place.
    Instance { service: Arc<Service>, at: usize },
    /// A service that is a name outside the mesh.
    Alias { service: Arc<Service>, target: Name },
    /// The port of such a service, where it has one; only SRV.
    AliasPort { service: Arc<Service>, target: Name, port: Option<NonZeroU16> },
    /// A node.
    Node(Arc<Node>),
    /// An address of somebody's, by its name under `arpa`.
    Reverse(Owned),
    /// A name that spells an address.
    Address(IpAddr),
    /// Nothing, but something may stand below it (RFC 8020: it must not be NXDOMAIN).
    Empty,
    /// No such name.
    Missing,
}

/// Some of a service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Group {
    All,
    /// With this tag, in lower case.
    Tagged(String),
    /// In this zone, in lower case.
    InZone(String),
}

impl Group {
    pub(super) fn has(&self, endpoint: &Endpoint) -> bool {
        let instance = &endpoint.instance;
        match self {
            Self::All => true,
            Self::Tagged(tag) => instance.tags.iter().any(|own| own.as_str().eq_ignore_ascii_case(tag)),
            Self::InZone(zone) => {
                instance.zone.as_ref().is_some_and(|own| own.as_str().eq_ignore_ascii_case(zone))
            }
        }
    }

    /// Does it have anybody, serving or not?
    fn is_of(&self, service: &Service) -> bool {
        *self == Self::All || service.endpoints.iter().any(|endpoint| self.has(endpoint))
    }
}

impl Found {
    pub(super) fn service(&self) -> Option<&Service> {
        match self {
            Self::Service { service, .. }
            | Self::Group { service, .. }
            | Self::Targets { service, .. }
            | Self::Instance { service, .. } => Some(service),
            _ => None,
        }
    }

    /// Which endpoints of the service are meant.
    pub(super) fn group(&self) -> &Group {
        match self {
            Self::Group { group, .. } | Self::Targets { group, .. } => group,
            _ => &Group::All,
        }
    }

    /// The named port that is asked for; `None` is the main one.
    pub(super) fn port(&self) -> Option<&PortName> {
        match self {
            Self::Targets { port, .. } => port.as_ref(),
            _ => None,
        }
    }
}

/// The most labels that stand before the domain; no name of ours has more.
const MOST_LABELS: usize = 40;
/// What Consul's clients may put behind a name.
const DATACENTER: &str = "dc1";

/// Finds what `name`, which is `apex` or under it, means now.
pub(super) fn find(name: &Name, apex: &Name, known: Known<'_>) -> Found {
    let below = usize::from(name.num_labels()).saturating_sub(usize::from(apex.num_labels()));
    let mut labels: SmallVec<[String; 4]> = SmallVec::new();
    for label in name.iter().take(below) {
        // A label that is no text is no name of ours, at whatever depth it stands.
        let Ok(label) = std::str::from_utf8(label) else { return Found::Missing };
        if labels.len() == MOST_LABELS {
            return Found::Missing;
        }
        labels.push(label.to_ascii_lowercase());
    }
    let labels: SmallVec<[&str; 4]> = labels.iter().map(String::as_str).collect();
    match meaning(&labels, known) {
        Found::Missing => match labels.split_last() {
            Some((&DATACENTER, rest)) => of_datacenter(rest, known),
            _ => Found::Missing,
        },
        found => found,
    }
}

fn meaning(labels: &[&str], known: Known<'_>) -> Found {
    let catalog = known.catalog;
    match labels {
        [] => Found::Apex,
        [one] => match catalog.service(one) {
            Some(service) => alias(&service).unwrap_or(Found::Service { service, tasks: false }),
            None if is_inner(one) || known.is_zone(one) => Found::Empty,
            None => Found::Missing,
        },
        [node, "node"] => catalog.node(node).map_or_else(|| below_service(labels, known), Found::Node),
        ["ns", "addr"] => Found::NameServer,
        [label, "addr"] => address(label).map_or_else(|| below_service(labels, known), Found::Address),
        [left @ .., "service"] => consul(left, catalog).unwrap_or_else(|| below_service(labels, known)),
        _ => below_service(labels, known),
    }
}

/// Names that have a service's, whatever that is called.
fn below_service(labels: &[&str], known: Known<'_>) -> Found {
    let catalog = known.catalog;
    match labels {
        [left, transport] if is_transport(transport) => {
            let service = left.strip_prefix('_').and_then(|name| catalog.service(name));
            service.map_or(Found::Missing, |service| targets(service, Group::All))
        }
        [port, transport, service] if is_transport(transport) => named_port(port, service, catalog),
        [service, "zone", zone @ ..] if !zone.is_empty() => {
            group(service, Group::InZone(zone.join(".")), catalog).unwrap_or(Found::Missing)
        }
        ["zone", zone @ ..] if !zone.is_empty() && known.is_zone(&zone.join(".")) => Found::Empty,
        [left @ .., service] => of_service(left, service, catalog),
        [] => Found::Missing,
    }
}

/// Nothing stands there, but something does below.
pub(super) fn is_inner(label: &str) -> bool {
    matches!(label, "node" | "addr" | "service" | DATACENTER) || is_transport(label)
}

/// What Consul knows below its datacenter.
fn of_datacenter(labels: &[&str], known: Known<'_>) -> Found {
    match labels {
        ["node" | "addr" | "service"] => Found::Empty,
        [.., "node" | "addr" | "service"] => meaning(labels, known),
        _ => Found::Missing,
    }
}

/// What stands before `service`: a service, with a tag or without, or the two of RFC 2782.
fn consul(labels: &[&str], catalog: &Catalog) -> Option<Found> {
    match labels {
        [] => Some(Found::Empty),
        [service, tag] if service.starts_with('_') && tag.starts_with('_') => {
            let service = catalog.service(&service[1..])?;
            let group = if is_transport(tag) { Group::All } else { Group::Tagged(tag[1..].to_owned()) };
            group.is_of(&service).then(|| targets(service, group))
        }
        [service] => {
            let service = catalog.service(service)?;
            Some(alias(&service).unwrap_or(Found::Group { service, group: Group::All }))
        }
        [tag @ .., service] => group(service, Group::Tagged(tag.join(".")), catalog),
    }
}

/// Where a service leads that is outside the mesh.
fn target(service: &Service) -> Option<(Name, Option<NonZeroU16>)> {
    let external = service.settings.external.as_ref()?;
    let mut name = Name::from_labels(external.host().split('.').map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some((name, external.port()))
}

/// Whatever instances it has: those come and go, and what an operator said holds.
fn alias(service: &Arc<Service>) -> Option<Found> {
    target(service).map(|(target, _)| Found::Alias { service: Arc::clone(service), target })
}

/// The main ports of those in a group.
fn targets(service: Arc<Service>, group: Group) -> Found {
    match target(&service) {
        Some((target, port)) if group == Group::All => Found::AliasPort { service, target, port },
        _ => Found::Targets { service, group, port: None },
    }
}

fn group(service: &str, group: Group, catalog: &Catalog) -> Option<Found> {
    let service = catalog.service(service)?;
    group.is_of(&service).then_some(Found::Group { service, group })
}

/// What stands before a service's name.
fn of_service(labels: &[&str], service: &str, catalog: &Catalog) -> Found {
    let Some(service) = catalog.service(service) else { return Found::Missing };
    match labels {
        ["tasks"] => return Found::Service { service, tasks: true },
        ["zone"] => return Found::Missing,
        [transport] if is_transport(transport) => {
            let has_ports = service.endpoints.iter().any(|e| !e.instance.ports.is_empty());
            return if has_ports { Found::Empty } else { Found::Missing };
        }
        _ => {}
    }
    let id = labels.join(".");
    let ids = || service.endpoints.iter().map(|endpoint| endpoint.instance.id.as_str());
    if let Some(at) = ids().position(|own| own.eq_ignore_ascii_case(&id)) {
        return Found::Instance { service, at };
    }
    let end = format!(".{id}");
    let is_end = |own: &str| {
        own.len()
            .checked_sub(end.len())
            .and_then(|at| own.get(at..))
            .is_some_and(|own| own.eq_ignore_ascii_case(&end))
    };
    if ids().any(is_end) { Found::Empty } else { Found::Missing }
}

/// A port name exists as long as an endpoint has it, whether it serves or not.
fn named_port(port: &str, service: &str, catalog: &Catalog) -> Found {
    let found = || {
        let port = PortName::new(port.strip_prefix('_')?).ok()?;
        let service = catalog.service(service)?;
        service.endpoints.iter().any(|e| e.instance.ports.contains_key(&port)).then_some((service, port))
    };
    let targets = |(service, port)| Found::Targets { service, group: Group::All, port: Some(port) };
    found().map_or(Found::Missing, targets)
}

fn is_transport(label: &str) -> bool {
    matches!(label, "_tcp" | "_udp")
}

/// The label that spells an address: four decimal numbers, or eight hexadecimal ones, all of them, none padded.
pub(super) fn address_label(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("ip-{a}-{b}-{c}-{d}")
        }
        IpAddr::V6(ip) => ip.segments().iter().fold("ip".to_owned(), |text, part| format!("{text}-{part:x}")),
    }
}

fn address(label: &str) -> Option<IpAddr> {
    spelled(label).or_else(|| in_hexadecimal(label))
}

/// As Consul spells addresses.
fn in_hexadecimal(label: &str) -> Option<IpAddr> {
    if !label.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    match label.len() {
        8 => u32::from_str_radix(label, 16).ok().map(|number| Ipv4Addr::from(number).into()),
        32 => u128::from_str_radix(label, 16).ok().map(|number| Ipv6Addr::from(number).into()),
        _ => None,
    }
}

fn spelled(label: &str) -> Option<IpAddr> {
    let parts: SmallVec<[&str; 9]> = label.strip_prefix("ip-")?.split('-').take(9).collect();
    let ip = match parts.len() {
        4 => {
            let mut octets = [0; 4];
            for (octet, part) in octets.iter_mut().zip(&parts) {
                *octet = part.parse().ok()?;
            }
            IpAddr::V4(Ipv4Addr::from(octets))
        }
        8 => {
            let mut segments = [0; 8];
            for (segment, part) in segments.iter_mut().zip(&parts) {
                *segment = u16::from_str_radix(part, 16).ok()?;
            }
            IpAddr::V6(Ipv6Addr::from(segments))
        }
        _ => return None,
    };
    // One spelling an address: `ip-01-…` and `ip-+1-…` parse, and are no names.
    (address_label(ip) == label).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_name_that_spells_an_address_reads_back(ip: IpAddr) {
            prop_assert_eq!(address(&address_label(ip)), Some(ip));
            let octets = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let hexadecimal: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
            prop_assert_eq!(address(&hexadecimal), Some(ip));
        }

        #[test]
        fn an_address_has_one_spelling_of_each_kind(label in "ip-[0-9a-f+-]{1,40}") {
            if let Some(ip) = address(&label) {
                prop_assert_eq!(address_label(ip), label);
            }
        }
    }
}
