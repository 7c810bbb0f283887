//! What a name under the domain means. The tree, with the domain left out:
//!
//! ```text
//! (apex)                         the domain: SOA, NS
//! <service>                      its virtual addresses where it has some that lead somewhere here, else its endpoints
//! tasks.<service>                its endpoints, always
//! _<service>._tcp                its endpoints' main ports (SRV; _udp likewise)
//! _<port>._tcp.<service>         their ports of that name (SRV; _udp likewise)
//! <node>.node                    a node
//! ip-192-0-2-1.addr              192.0.2.1; ip-2001-db8-0-0-0-0-0-1.addr likewise
//! ns.addr                        the nodes, which all answer DNS
//! ```
//!
//! An instance does not say which transport its port speaks, so `_udp` and `_tcp` name the same ports. Where a node is
//! called `tasks`, `tasks.node` is that node and not the tasks of a service called `node`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::Name;
use nerve::model::{Node, PortName};
use smallvec::SmallVec;
use synapse::catalog::{Catalog, Service};

/// What a name means.
#[derive(Debug, Clone)]
pub(super) enum Found {
    /// The domain itself.
    Apex,
    /// The name server's name.
    NameServer,
    /// A service; `tasks` if its endpoints were asked for by that word.
    Service { service: Arc<Service>, tasks: bool },
    /// The ports of a service, the main ones or those of a name; only SRV.
    Targets { service: Arc<Service>, port: Option<PortName> },
    /// A node.
    Node(Arc<Node>),
    /// A name that spells an address.
    Address(IpAddr),
    /// Nothing, but something may stand below it (RFC 8020: it must not be NXDOMAIN).
    Empty,
    /// No such name.
    Missing,
}

impl Found {
    pub(super) fn service(&self) -> Option<&Service> {
        match self {
            Self::Service { service, .. } | Self::Targets { service, .. } => Some(service),
            _ => None,
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

/// Finds what `name`, which is `apex` or under it, means now.
pub(super) fn find(name: &Name, apex: &Name, catalog: &Catalog) -> Found {
    let below = usize::from(name.num_labels()).saturating_sub(usize::from(apex.num_labels()));
    let mut labels: SmallVec<[String; 4]> = SmallVec::new();
    for label in name.iter().take(below) {
        // A label that is no text is no name of ours, at whatever depth it stands.
        let Ok(label) = std::str::from_utf8(label) else { return Found::Missing };
        if labels.len() == 3 {
            return Found::Missing;
        }
        labels.push(label.to_ascii_lowercase());
    }
    let labels: SmallVec<[&str; 4]> = labels.iter().map(String::as_str).collect();
    match labels.as_slice() {
        [] => Found::Apex,
        [one] => match catalog.service(one) {
            Some(service) => Found::Service { service, tasks: false },
            None if matches!(*one, "node" | "addr") || is_transport(one) => Found::Empty,
            None => Found::Missing,
        },
        [left, right] => two(left, right, catalog),
        [port, transport, service] if is_transport(transport) => named_port(port, service, catalog),
        _ => Found::Missing,
    }
}

fn two(left: &str, right: &str, catalog: &Catalog) -> Found {
    if is_transport(right) {
        let service = left.strip_prefix('_').and_then(|name| catalog.service(name));
        return service.map_or(Found::Missing, |service| Found::Targets { service, port: None });
    }
    if right == "node"
        && let Some(node) = catalog.node(left)
    {
        return Found::Node(node);
    }
    if right == "addr" {
        if left == "ns" {
            return Found::NameServer;
        }
        if let Some(ip) = address(left) {
            return Found::Address(ip);
        }
    }
    match catalog.service(right) {
        Some(service) if left == "tasks" => Found::Service { service, tasks: true },
        Some(service)
            if is_transport(left) && service.endpoints.iter().any(|e| !e.instance.ports.is_empty()) =>
        {
            Found::Empty
        }
        _ => Found::Missing,
    }
}

/// A port name exists as long as an endpoint has it, whether it serves or not.
fn named_port(port: &str, service: &str, catalog: &Catalog) -> Found {
    let found = || {
        let port = PortName::new(port.strip_prefix('_')?).ok()?;
        let service = catalog.service(service)?;
        service.endpoints.iter().any(|e| e.instance.ports.contains_key(&port)).then_some((service, port))
    };
    found().map_or(Found::Missing, |(service, port)| Found::Targets { service, port: Some(port) })
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
        }

        #[test]
        fn an_address_has_one_spelling(label in "ip-[0-9a-f+-]{1,40}") {
            if let Some(ip) = address(&label) {
                prop_assert_eq!(address_label(ip), label);
            }
        }
    }
}
