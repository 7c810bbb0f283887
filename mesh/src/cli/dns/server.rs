//! Where the agent is asked: which of its addresses, for whom (pure).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::host::Method;
use super::resolv_conf::PORT;
use crate::api::DnsListener;

/// The address that `method` is to ask; the port of names before all, then the address that is the same on every node.
pub(super) fn choose(listeners: &[DnsListener], method: Method) -> Option<SocketAddr> {
    let open = listeners.iter().filter(|listener| listener.problem.is_none());
    let reached = open.map(|listener| reached_at(listener.address));
    let usable = reached.filter(|address| method.takes_ports() || address.port() == PORT);
    usable
        .filter(|address| rank(address.ip()).is_some())
        .min_by_key(|address| (address.port() != PORT, rank(address.ip())))
}

/// Is a name server the agent itself?
pub(super) fn is_own(listeners: &[DnsListener], server: SocketAddr) -> bool {
    listeners.iter().any(|listener| {
        let own = listener.address;
        let of_any =
            own.ip().is_unspecified() && server.ip().is_loopback() && own.is_ipv4() == server.is_ipv4();
        own.port() == server.port() && (own.ip() == server.ip() || of_any)
    })
}

/// Where this host reaches a socket that is bound so.
fn reached_at(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The lower the better. Containers that are given the host's servers reach a link-local address, and a node's; not its loopback.
fn rank(ip: IpAddr) -> Option<u8> {
    match ip {
        IpAddr::V4(ip) if ip.is_link_local() => Some(0),
        IpAddr::V4(ip) if ip.is_loopback() => Some(1),
        IpAddr::V4(_) => Some(2),
        // It takes a scope, which stub resolvers write each in its own way.
        IpAddr::V6(ip) if ip.is_unicast_link_local() => None,
        IpAddr::V6(ip) if ip.is_loopback() => Some(3),
        IpAddr::V6(_) => Some(4),
    }
}

/// Where it listens, for a refusal.
pub(super) fn listed(listeners: &[DnsListener]) -> impl fmt::Display {
    let shown = listeners.iter().map(|listener| match &listener.problem {
        None => listener.address.to_string(),
        Some(problem) => format!("not on {} ({problem})", listener.address),
    });
    let shown: Vec<String> = shown.collect();
    if shown.is_empty() { "nowhere".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners(all: &str) -> Vec<DnsListener> {
        let listener = |word: &str| DnsListener {
            address: word.trim_start_matches('!').parse().unwrap(),
            problem: word.starts_with('!').then(|| "taken".to_owned()),
        };
        all.split(' ').map(listener).collect()
    }

    #[test]
    fn whoever_cannot_be_told_a_port_asks_port_53_and_nothing_that_is_not_answered() {
        for (all, resolv_conf, dnsmasq) in [
            ("127.0.0.1:53", Some("127.0.0.1:53"), "127.0.0.1:53"),
            ("127.0.0.1:53 169.254.53.53:53 10.0.0.1:53", Some("169.254.53.53:53"), "169.254.53.53:53"),
            ("!127.0.0.1:53 10.0.0.1:53", Some("10.0.0.1:53"), "10.0.0.1:53"),
            ("0.0.0.0:53", Some("127.0.0.1:53"), "127.0.0.1:53"),
            ("127.0.0.1:8600 !169.254.53.53:53", None, "127.0.0.1:8600"),
            ("127.0.0.1:8600 10.0.0.1:53", Some("10.0.0.1:53"), "10.0.0.1:53"),
            ("[fe80::1]:53 [::]:5353", None, "[::1]:5353"),
        ] {
            let all = listeners(all);
            let chosen = |method| choose(&all, method).map(|address| address.to_string());
            assert_eq!(chosen(Method::ResolvConf).as_deref(), resolv_conf, "{all:?}");
            assert_eq!(chosen(Method::Dnsmasq).as_deref(), Some(dnsmasq), "{all:?}");
        }
        assert_eq!(choose(&listeners("!127.0.0.1:53"), Method::Resolved), None);
        assert_eq!(
            listed(&listeners("!127.0.0.1:53 10.0.0.1:53")).to_string(),
            "not on 127.0.0.1:53 (taken), 10.0.0.1:53"
        );
    }

    #[test]
    fn the_agent_knows_itself_by_address_and_port() {
        let all = listeners("127.0.0.1:53 0.0.0.0:5300");
        for (server, own) in [
            ("127.0.0.1:53", true),
            ("127.0.0.2:5300", true),
            ("127.0.0.53:53", false),
            ("10.0.0.1:53", false),
        ] {
            assert_eq!(is_own(&all, server.parse().unwrap()), own, "{server}");
        }
    }
}
