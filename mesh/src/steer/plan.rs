//! Whether the answers of an endpoint come back through this node, given what the kernel says of the way to it (pure).
//!
//! They do if it is a process of this host, or a container or virtual machine behind an interface that leads nowhere else.
//! What its default route is there, nobody here can see.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nerve::model::Prefix;

use crate::proxy::{Plain, Way};

/// The route to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// It is this host's own.
    Local,
    /// It is on the link of this interface.
    Link(u32),
    /// It is behind a gateway on the link of this interface.
    Gateway(u32),
    /// There is no way to it.
    Nowhere,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The bridge that it is a port of.
    pub(super) bridge: Option<u32>,
    /// Its addresses, each with the range that it is said to be on the link.
    pub(super) addresses: Vec<(IpAddr, Prefix)>,
}

/// What an interface leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One end of a cable, the other of which is in a container or a virtual machine of this host.
    Inside,
    /// What its ports lead to.
    Bridge,
    /// Other nodes of an overlay network.
    Tunnel,
    /// The world.
    Outside,
}

/// Every interface by index.
pub(super) type Links = BTreeMap<u32, Link>;

/// An endpoint whose answers can be steered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judged {
    /// A process of this host.
    Host,
    /// Behind an interface.
    Behind(Way),
}

/// What must be there for some endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Needs {
    /// Marking what comes in by interfaces.
    pub(super) links: bool,
    /// Marking what processes of this host send.
    pub(super) host: bool,
    /// Routing of IPv4.
    pub(super) v4: bool,
    /// Routing of IPv6.
    pub(super) v6: bool,
}

/// Can `endpoint` be shown clients' addresses? `node` is this node's own, `overlay` the way of those that are on an overlay network
/// and answer by whom they were asked by, `checks_mark` whether an interface of this name checks the source of what comes in by the
/// mark.
pub(super) fn judge(
    endpoint: IpAddr,
    route: Route,
    links: &Links,
    node: IpAddr,
    overlay: Option<Way>,
    checks_mark: impl Fn(&str) -> bool,
) -> Result<Judged, Plain> {
    let source_check = |link: &Link| match endpoint.is_ipv4() && checks_mark(&link.name) {
        true => Err(Plain::SourceCheck),
        // IPv6 has no such check.
        false => Ok(()),
    };
    let index = match route {
        Route::Local => return Ok(Judged::Host),
        Route::Link(index) => index,
        Route::Gateway(index) => {
            let tunnel = links.get(&index).filter(|link| link.kind == Kind::Tunnel);
            let (tunnel, way) = tunnel.zip(overlay).ok_or(Plain::Elsewhere)?;
            source_check(tunnel)?;
            return Ok(Judged::Behind(way));
        }
        Route::Nowhere => return Err(Plain::Elsewhere),
    };
    let link = links.get(&index).ok_or(Plain::Elsewhere)?;
    let is_way_to_others = link.addresses.iter().any(|(address, _)| *address == node);
    if is_way_to_others || !leads_inside(index, link, links) {
        return Err(Plain::Elsewhere);
    }
    source_check(link)?;
    let mut neighbours: Vec<Prefix> = link.addresses.iter().map(|(_, range)| *range).collect();
    neighbours.push(endpoint.into());
    // The node's own end of the cable is among them: there, both addresses are this node's.
    Ok(Judged::Behind(Way { neighbours, but: Vec::new() }))
}

fn leads_inside(index: u32, link: &Link, links: &Links) -> bool {
    match link.kind {
        Kind::Inside => true,
        Kind::Tunnel | Kind::Outside => false,
        Kind::Bridge => {
            let mut ports = links.values().filter(|port| port.bridge == Some(index));
            ports.all(|port| port.kind == Kind::Inside)
        }
    }
}

impl Needs {
    /// What these endpoints need.
    pub(super) fn of<'a>(endpoints: impl Iterator<Item = (&'a IpAddr, &'a Result<Judged, Plain>)>) -> Self {
        let mut needs = Self::default();
        for (address, judged) in endpoints {
            match judged {
                Ok(Judged::Host) => needs.host = true,
                Ok(Judged::Behind(_)) => needs.links = true,
                Err(_) => continue,
            }
            needs.v4 |= address.is_ipv4();
            needs.v6 |= address.is_ipv6();
        }
        needs
    }

    /// What both need.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            links: self.links || other.links,
            host: self.host || other.host,
            v4: self.v4 || other.v4,
            v6: self.v6 || other.v6,
        }
    }

    /// Is nothing needed?
    pub(super) fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "192.0.2.11";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(name: &str, kind: Kind, bridge: Option<u32>, addresses: &[(&str, &str)]) -> Link {
        let addresses = addresses.iter().map(|(address, range)| (ip(address), range.parse().unwrap()));
        Link { name: name.to_owned(), kind, bridge, addresses: addresses.collect() }
    }

    fn links() -> Links {
        BTreeMap::from([
            (2, link("eth0", Kind::Inside, None, &[(NODE, "192.0.2.0/24")])),
            (3, link("eth1", Kind::Outside, None, &[("198.51.100.1", "198.51.100.0/24")])),
            (4, link("docker0", Kind::Bridge, None, &[("172.17.0.1", "172.17.0.0/16")])),
            (5, link("veth1", Kind::Inside, Some(4), &[])),
            (6, link("br1", Kind::Bridge, None, &[("203.0.113.1", "203.0.113.0/24")])),
            (7, link("eth2", Kind::Outside, Some(6), &[])),
            (8, link("cali1", Kind::Inside, None, &[])),
            (9, link("plxv4096", Kind::Tunnel, None, &[])),
        ])
    }

    fn ask(endpoint: &str, route: Route) -> Result<Judged, Plain> {
        judge(ip(endpoint), route, &links(), ip(NODE), None, |name| name == "cali1")
    }

    #[test]
    fn processes_and_containers_of_this_host_are_here() {
        assert_eq!(ask(NODE, Route::Local), Ok(Judged::Host));
        let Ok(Judged::Behind(way)) = ask("172.17.0.2", Route::Link(4)) else { panic!("a container") };
        assert!(way.neighbours.contains(&"172.17.0.0/16".parse().unwrap()));
        assert!(way.neighbours.contains(&"172.17.0.2".parse().unwrap()));
    }

    #[test]
    fn what_others_may_answer_past_this_node_is_elsewhere() {
        for (endpoint, route) in [
            ("192.0.2.12", Route::Link(2)),
            ("198.51.100.9", Route::Link(3)),
            ("203.0.113.9", Route::Link(6)),
            ("10.1.2.3", Route::Nowhere),
            ("10.1.2.3", Route::Gateway(3)),
            // A tunnel, but to a node that leads nothing back.
            ("10.1.2.3", Route::Gateway(9)),
            ("10.1.2.3", Route::Link(99)),
        ] {
            assert_eq!(ask(endpoint, route), Err(Plain::Elsewhere), "{endpoint}");
        }
    }

    #[test]
    fn who_is_on_an_overlay_network_answers_by_the_tunnel_and_nothing_else() {
        let way = || Way { neighbours: vec!["10.42.0.0/16".parse().unwrap()], but: Vec::new() };
        let ask = |route| judge(ip("10.42.7.2"), route, &links(), ip(NODE), Some(way()), |_| false);
        assert_eq!(ask(Route::Gateway(9)), Ok(Judged::Behind(way())));
        assert_eq!(ask(Route::Gateway(2)), Err(Plain::Elsewhere), "not by the tunnel");
    }

    #[test]
    fn an_interface_that_checks_sources_by_the_mark_is_in_the_way_of_ipv4() {
        assert_eq!(ask("10.1.2.3", Route::Link(8)), Err(Plain::SourceCheck));
        assert!(ask("2001:db8::2", Route::Link(8)).is_ok());
    }

    #[test]
    fn what_is_needed_follows_from_the_endpoints() {
        let way = Ok(Judged::Behind(Way::default()));
        let endpoints = [(ip("10.0.0.2"), way), (ip("2001:db8::2"), Err(Plain::Elsewhere))];
        let needs = Needs::of(endpoints.iter().map(|(address, judged)| (address, judged)));
        assert_eq!(needs, Needs { links: true, v4: true, ..Needs::default() });
        let host = [(ip("2001:db8::1"), Ok(Judged::Host))];
        let both = needs.and(Needs::of(host.iter().map(|(address, judged)| (address, judged))));
        assert_eq!(both, Needs { links: true, host: true, v4: true, v6: true });
        assert!(Needs::of(std::iter::empty()).is_nothing());
    }
}
