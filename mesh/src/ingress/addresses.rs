//! The addresses of this host that ports are published on.

use std::net::{IpAddr, Ipv6Addr};
use std::net::{Ipv4Addr, SocketAddr};

use super::desired::{Addresses, covers};

/// What is published on where the configuration names `listen`, or nothing.
pub(super) fn published(listen: &[IpAddr]) -> Addresses {
    let usual = usual(listen);
    let mut own: Vec<IpAddr> =
        of_this_host().into_iter().filter(|own| usual.iter().any(|usual| covers(*usual, *own))).collect();
    own.sort_unstable();
    own.dedup();
    Addresses { usual, own }
}

/// One IPv6 socket takes both families; where the host has no IPv6, it is IPv4's wildcard.
fn usual(configured: &[IpAddr]) -> Vec<IpAddr> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    let has_ipv6 = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    vec![if has_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }]
}

/// Every address of every interface. Link-local ones of IPv6 are left out: without its interface such an address says
/// nothing.
fn of_this_host() -> Vec<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| Some(SocketAddr::V6((*address.as_sockaddr_in6()?).into()).ip()))
    });
    addresses.filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_published_on_only_where_the_configuration_covers_it() {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert!(published(&[]).own.contains(&loopback));
        assert!(published(&[Ipv4Addr::UNSPECIFIED.into()]).own.contains(&loopback));
        assert!(published(&[Ipv6Addr::LOCALHOST.into()]).own.iter().all(|own| *own != loopback));
    }
}
