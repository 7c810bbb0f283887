//! What is to be done about a range, given what the kernel has (pure).
//!
//! A range that anything else on this host uses is refused: a route for all of it would take the addresses away from
//! whoever has them. Once our route stands it stays, whatever comes later: services are reached by it.

use nerve::model::Prefix;

use crate::routes::{Collision, Kind, Route, collision};

/// Marks our routes (`ip route show table local proto 80`); nothing in iproute2's `rt_protos` has it.
pub(super) const OURS: u8 = 80;

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

/// What to do about `range`.
pub(super) fn step(range: Prefix, routes: &[Route]) -> Step {
    // One that somebody else made does as well: whoever may not make routes can be given it.
    if routes
        .iter()
        .any(|route| route.destination == range && route.kind == Kind::Local && !is_address(route))
    {
        return Step::Nothing;
    }
    collision(&[range], routes.iter().filter(|route| !is_ours(route))).map_or(Step::Add, Step::Refuse)
}

/// Our routes that nothing asks for any more.
pub(super) fn obsolete(ranges: &[Prefix], routes: &[Route]) -> Vec<Prefix> {
    let ours = routes.iter().filter(|route| is_ours(route)).map(|route| route.destination);
    ours.filter(|destination| !ranges.contains(destination)).collect()
}

/// Did an agent of the mesh make it?
pub(super) fn is_ours(route: &Route) -> bool {
    route.protocol == OURS
}

/// One address of an interface, not a route of someone's making. (Of a range that is one address, ours is told by its
/// mark.)
fn is_address(route: &Route) -> bool {
    !is_ours(route) && route.destination == Prefix::from(route.destination.network())
}

/// A collision, as a problem of this node.
pub(super) fn refusal(collision: &Collision) -> String {
    format!(
        "virtual addresses of {} are off on this node: {collision}; take another range for [vip], or remove that (`{}` shows it)",
        collision.range,
        collision.shown_by()
    )
}

/// The families of some ranges: IPv4, IPv6.
pub(super) fn families(ranges: &[Prefix]) -> (Vec<Prefix>, Vec<Prefix>) {
    ranges.iter().partition(|range| range.is_ipv4())
}

/// Does a change at `destination` matter to one of the ranges?
pub(super) fn concerns(ranges: &[Prefix], destination: Prefix) -> bool {
    destination.length() > 0 && ranges.iter().any(|range| range.overlaps(&destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn route(destination: &str, kind: Kind) -> Route {
        Route { destination: prefix(destination), kind, device: Some("eth0".to_owned()), protocol: 2 }
    }

    fn ours(destination: &str) -> Route {
        Route { protocol: OURS, ..route(destination, Kind::Local) }
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
        for protocol in [OURS, 2] {
            let there = Route { protocol, ..route("10.96.0.0/16", Kind::Local) };
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
            let text = refusal(&collision);
            assert!(text.contains("of 10.96.0.0/16 are off") && text.contains(said), "{text}");
        }
    }

    #[test]
    fn what_comes_later_does_not_take_our_route_away() {
        let ours = ours("10.96.0.0/16");
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
        assert_eq!(step(range, &[ours("10.96.0.1")]), Step::Nothing);
    }
}
