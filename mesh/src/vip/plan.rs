//! What is to be done about a range, given what the kernel has (pure).
//!
//! A range that anything else on this host uses is refused: a route for all of it would take the addresses away from
//! whoever has them. Once our route stands it stays, whatever comes later: services are reached by it.

use std::fmt;
use std::net::IpAddr;

use nerve::model::Prefix;

/// A route of any table, or an address, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: Prefix,
    pub(super) kind: Kind,
    /// The interface, where it has one and that has a name.
    pub(super) device: Option<String>,
    pub(super) ours: bool,
}

/// What a route does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Takes them for this host's own, wherever they came in: it stands in the table that is asked first.
    Local,
    /// Refuses or drops them.
    Refuses,
    /// Anything else: they are someone's.
    Forwards,
}

/// What is to be done about a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The route is there.
    Nothing,
    /// The route is to be made.
    Add,
    /// The range is in use.
    Refuse(Collision),
}

/// Who uses a range already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Collision {
    range: Prefix,
    with: Route,
}

/// What to do about `range`.
pub(super) fn step(range: Prefix, routes: &[Route]) -> Step {
    // One that somebody else made does as well: whoever may not make routes can be given it.
    if routes
        .iter()
        .any(|route| route.destination == range && route.kind == Kind::Local && !is_address(route))
    {
        return Step::Nothing;
    }
    match routes.iter().find(|route| collides(range, route)) {
        Some(route) => Step::Refuse(Collision { range, with: route.clone() }),
        None => Step::Add,
    }
}

/// Our routes that nothing asks for any more.
pub(super) fn obsolete(ranges: &[Prefix], routes: &[Route]) -> Vec<Prefix> {
    let ours = routes.iter().filter(|route| route.ours).map(|route| route.destination);
    ours.filter(|destination| !ranges.contains(destination)).collect()
}

fn collides(range: Prefix, route: &Route) -> bool {
    // The default route is for what is nobody's; multicast is never a service's. A route that refuses a larger range
    // (such as `unreachable 10.0.0.0/8`) says that nobody has it.
    let is_default = route.destination.length() == 0;
    let is_fence = route.kind == Kind::Refuses && route.destination.length() <= range.length();
    !route.ours && !is_default && !is_fence && route.destination.overlaps(&range)
}

/// One address of an interface, not a route of someone's making. (Of a range that is one address, ours is told by its
/// mark.)
fn is_address(route: &Route) -> bool {
    !route.ours && route.destination == Prefix::from(route.destination.network())
}

impl fmt::Display for Collision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, with: Route { destination, kind, device, .. } } = self;
        let what = match kind {
            Kind::Local => "this host has the address",
            Kind::Refuses | Kind::Forwards => "this host has a route to",
        };
        write!(f, "virtual addresses of {range} are off on this node: {what} {destination}")?;
        if let Some(device) = device {
            write!(f, " on {device}")?;
        }
        let list =
            if destination.is_ipv4() { "ip route show table all" } else { "ip -6 route show table all" };
        write!(f, "; take another range for [vip], or remove that (`{list}` shows it)")
    }
}

/// The families of some ranges: IPv4, IPv6.
pub(super) fn families(ranges: &[Prefix]) -> (Vec<Prefix>, Vec<Prefix>) {
    ranges.iter().partition(|range| range.is_ipv4())
}

/// Does a change at `destination` matter to one of the ranges?
pub(super) fn concerns(ranges: &[Prefix], destination: Prefix) -> bool {
    destination.length() > 0 && ranges.iter().any(|range| range.overlaps(&destination))
}

/// The prefix of a route's destination; of a default route, which has none, all of its family.
pub(super) fn destination(address: Option<IpAddr>, length: u8, v4: bool) -> Option<Prefix> {
    let any: IpAddr =
        if v4 { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    Prefix::new(address.unwrap_or(any), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn route(destination: &str, kind: Kind) -> Route {
        Route { destination: prefix(destination), kind, device: Some("eth0".to_owned()), ours: false }
    }

    #[test]
    fn a_free_range_is_taken_and_a_route_that_is_there_is_left_alone() {
        let range = prefix("10.96.0.0/16");
        let host = [
            route("0.0.0.0/0", Kind::Forwards),
            route("192.0.2.0/24", Kind::Forwards),
            route("192.0.2.1", Kind::Local),
            route("10.0.0.0/8", Kind::Refuses),
        ];
        assert_eq!(step(range, &host), Step::Add);
        for ours in [true, false] {
            let there = Route { ours, ..route("10.96.0.0/16", Kind::Local) };
            assert_eq!(step(range, &[&host[..], &[there]].concat()), Step::Nothing);
        }
    }

    #[test]
    fn a_range_that_something_uses_is_refused_with_its_name() {
        let range = prefix("10.96.0.0/16");
        for (used, said) in [
            (route("10.96.4.0/24", Kind::Forwards), "a route to 10.96.4.0/24 on eth0"),
            (route("10.0.0.0/8", Kind::Forwards), "a route to 10.0.0.0/8 on eth0"),
            (route("10.96.0.1", Kind::Local), "the address 10.96.0.1 on eth0"),
            (route("10.96.8.0/24", Kind::Refuses), "a route to 10.96.8.0/24"),
        ] {
            let Step::Refuse(collision) = step(range, &[used]) else { panic!("{said}") };
            assert!(collision.to_string().contains(said), "{collision}");
        }
    }

    #[test]
    fn what_comes_later_does_not_take_our_route_away() {
        let ours = Route { ours: true, ..route("10.96.0.0/16", Kind::Local) };
        let later = route("10.96.4.0/24", Kind::Forwards);
        assert_eq!(step(prefix("10.96.0.0/16"), &[later, ours.clone()]), Step::Nothing);
        assert_eq!(
            obsolete(&[prefix("10.97.0.0/16")], std::slice::from_ref(&ours)),
            [prefix("10.96.0.0/16")]
        );
        assert_eq!(obsolete(&[prefix("10.96.0.0/16")], &[ours]), []);
    }

    #[test]
    fn a_single_address_can_be_a_range() {
        let range = prefix("10.96.0.1");
        assert!(matches!(step(range, &[route("10.96.0.1", Kind::Local)]), Step::Refuse(_)));
        let ours = Route { ours: true, ..route("10.96.0.1", Kind::Local) };
        assert_eq!(step(range, &[ours]), Step::Nothing);
    }
}
