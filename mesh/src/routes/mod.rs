//! The routes of this host, and which of them a range of addresses would get in the way of.
//!
//! Whoever is about to take a range for the mesh (virtual addresses, an overlay network) asks here first: a route for all of
//! it would take the addresses away from whoever has them. `netlink` reads; the judgement is pure. Never changes a route.

pub(crate) mod netlink;

use std::fmt;

use nerve::model::Prefix;

pub use netlink::read;

/// A route of any table, or an address, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: Prefix,
    /// What it does with packets.
    pub kind: Kind,
    /// The interface, where it has one and that has a name.
    pub device: Option<String>,
    /// Who made it: a number of `rt_protos`.
    pub protocol: u8,
}

/// What a route does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Takes them for this host's own, wherever they came in: it stands in the table that is asked first.
    Local,
    /// Refuses or drops them.
    Refuses,
    /// Anything else: they are someone's.
    Forwards,
}

/// A range, and what uses some of it already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collision {
    /// The range.
    pub range: Prefix,
    /// Who uses it.
    pub with: Route,
}

/// The first of `ranges` that something on this host uses, with what that is.
pub fn collision<'a>(
    ranges: &[Prefix],
    routes: impl IntoIterator<Item = &'a Route> + Clone,
) -> Option<Collision> {
    ranges.iter().find_map(|range| {
        let with = routes.clone().into_iter().find(|route| uses(route, *range))?.clone();
        Some(Collision { range: *range, with })
    })
}

fn uses(route: &Route, range: Prefix) -> bool {
    // The default route is for what is nobody's. A route that refuses a larger range (such as `unreachable 10.0.0.0/8`)
    // says that nobody has it.
    let is_default = route.destination.length() == 0;
    let is_fence = route.kind == Kind::Refuses && route.destination.length() <= range.length();
    !is_default && !is_fence && route.destination.overlaps(&range)
}

impl Route {
    /// Is it on an interface whose name begins so?
    #[must_use]
    pub fn is_on(&self, prefix: &str) -> bool {
        self.device.as_deref().is_some_and(|device| device.starts_with(prefix))
    }
}

impl Collision {
    /// What lists the route.
    #[must_use]
    pub fn shown_by(&self) -> &'static str {
        if self.range.is_ipv4() { "ip route show table all" } else { "ip -6 route show table all" }
    }
}

impl fmt::Display for Collision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Route { destination, kind, device, .. } = &self.with;
        let what = match kind {
            Kind::Local => "this host has the address",
            Kind::Refuses | Kind::Forwards => "this host has a route to",
        };
        write!(f, "{what} {destination}")?;
        device.as_ref().map_or(Ok(()), |device| write!(f, " on {device}"))
    }
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

    #[test]
    fn a_range_that_nothing_uses_is_free() {
        let host = [
            route("0.0.0.0/0", Kind::Forwards),
            route("192.0.2.0/24", Kind::Forwards),
            route("192.0.2.1", Kind::Local),
            route("10.0.0.0/8", Kind::Refuses),
            route("fd00::/8", Kind::Refuses),
            route("ff00::/8", Kind::Forwards),
        ];
        assert_eq!(collision(&[prefix("10.42.0.0/16"), prefix("fd42::/48")], &host), None);
    }

    #[test]
    fn what_uses_a_part_of_a_range_is_named() {
        for (used, said) in [
            (route("10.42.4.0/24", Kind::Forwards), "this host has a route to 10.42.4.0/24 on eth0"),
            (route("10.0.0.0/8", Kind::Forwards), "this host has a route to 10.0.0.0/8 on eth0"),
            (route("10.42.0.1", Kind::Local), "this host has the address 10.42.0.1 on eth0"),
            (route("10.42.8.0/24", Kind::Refuses), "this host has a route to 10.42.8.0/24 on eth0"),
        ] {
            let found = collision(&[prefix("fd42::/48"), prefix("10.42.0.0/16")], &[used]).unwrap();
            assert_eq!((found.range, found.to_string()), (prefix("10.42.0.0/16"), said.to_owned()));
        }
    }
}
