//! The addresses of this host that ports are published on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use nix::errno::Errno;

use super::desired::{Addresses, covers};

/// What is published on where the configuration names `listen`, or nothing.
///
/// # Errors
/// The host does not say, as where there is no descriptor left to ask with.
pub(super) fn published(listen: &[IpAddr]) -> io::Result<Addresses> {
    let usual = usual(listen)?;
    let mut own: Vec<IpAddr> =
        of_this_host()?.into_iter().filter(|own| usual.iter().any(|usual| covers(*usual, *own))).collect();
    own.sort_unstable();
    own.dedup();
    Ok(Addresses { usual, own })
}

/// One IPv6 socket takes both families; where the host has no IPv6, it is IPv4's wildcard.
fn usual(configured: &[IpAddr]) -> io::Result<Vec<IpAddr>> {
    if !configured.is_empty() {
        return Ok(configured.to_vec());
    }
    match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(_) => Ok(vec![Ipv6Addr::UNSPECIFIED.into()]),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => Err(error),
            _ => Ok(vec![Ipv4Addr::UNSPECIFIED.into()]),
        },
    }
}

/// Every address of every interface. Link-local ones of IPv6 are left out: without its interface such an address says
/// nothing.
fn of_this_host() -> io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| Some(SocketAddr::V6((*address.as_sockaddr_in6()?).into()).ip()))
    });
    Ok(addresses.filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_published_on_only_where_the_configuration_covers_it() {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert!(published(&[]).unwrap().own.contains(&loopback));
        assert!(published(&[Ipv4Addr::UNSPECIFIED.into()]).unwrap().own.contains(&loopback));
        assert!(published(&[Ipv6Addr::LOCALHOST.into()]).unwrap().own.iter().all(|own| *own != loopback));
    }
}
