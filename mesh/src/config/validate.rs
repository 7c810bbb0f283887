//! What several keys must agree on: no two rooms on one address, and none without what it stands on.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use nerve::document::{Reported, Section};
use nerve::source::DockerAddress;

use super::Config;
use crate::ingress::LocalListen;

/// One address that a room is to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listener {
    section: &'static str,
    key: &'static str,
    address: SocketAddr,
}

/// Reports every two listeners that cannot both be bound. All of them take TCP (DNS takes UDP as well).
pub(super) fn sections_agree(config: &Config, root: &Section<'_>) -> Result<(), Reported> {
    let listeners = listeners(config);
    let mut outcome = Ok(());
    for (at, later) in listeners.iter().enumerate() {
        if let Some(earlier) = listeners[..at].iter().find(|earlier| clash(earlier.address, later.address)) {
            let message = format!(
                "{}.{} is to listen on {}, which clashes with {}.{} on {}",
                later.section, later.key, later.address, earlier.section, earlier.key, earlier.address
            );
            outcome = Err(root.invalid(later.section, message, "another address or port for one of them"));
        }
    }
    let is_overlay = config.docker.address == Some(DockerAddress::Overlay);
    if config.docker.enabled && is_overlay && !config.overlay.enabled {
        outcome = Err(root.invalid(
            "docker",
            "address is to be that on overlay networks, and overlay.enabled is false",
            "`enabled = true` in [overlay] as well, or another address",
        ));
    }
    let mut watchers = BTreeSet::from(["store"]);
    for watcher in &config.watchers {
        if !watchers.insert(&watcher.name) {
            let message = format!("there is another watcher that is called {:?}", watcher.name);
            outcome = Err(root.invalid("watch", message, "another `name` for one of them"));
        }
    }
    let mut paths: BTreeSet<PathBuf> = config.admin.socket.iter().cloned().collect();
    for local in &config.ingress.localhost {
        if let LocalListen::Unix(path, _) = local.listen.for_ingress()
            && !paths.insert(path.as_path().to_owned())
        {
            let other = match &config.admin.socket {
                Some(socket) if socket == path.as_path() => "as admin.socket is",
                _ => "twice",
            };
            let message = format!("ingress.localhost is to listen on unix:{path} {other}");
            outcome = Err(root.invalid("ingress", message, "another `socket` for one of them"));
        }
    }
    outcome
}

fn listeners(config: &Config) -> Vec<Listener> {
    let admin = config.admin.listen.iter().map(|&a| Listener { section: "admin", key: "listen", address: a });
    let (dns, plain) = (&config.dns, config.dns.addresses());
    let dns: Vec<Listener> =
        [("listen", &plain), ("tls_listen", &dns.tls_listen), ("https_listen", &dns.https_listen)]
            .into_iter()
            .filter(|_| dns.enabled)
            .flat_map(|(key, all)| all.iter().map(move |&a| Listener { section: "dns", key, address: a }))
            .collect();
    let localhost = config.ingress.localhost.iter().filter_map(|l| match l.listen.for_ingress() {
        LocalListen::Ip(address) => Some(Listener { section: "ingress", key: "localhost", address }),
        LocalListen::Unix(..) => None,
    });
    let tunnels = config.mtls.listen.iter().map(|&a| Listener { section: "mtls", key: "listen", address: a });
    admin.chain(dns).chain(localhost).chain(tunnels).collect()
}

/// Can the two not be bound at the same time? Port 0 is another one each time.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |a: IpAddr, b: IpAddr| a == b || (a.is_unspecified() && (a.is_ipv6() || b.is_ipv4()));
    a.port() != 0 && a.port() == b.port() && (covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_clash_when_one_covers_the_other() {
        let clashing = |a: &str, b: &str| clash(a.parse().unwrap(), b.parse().unwrap());
        assert!(clashing("127.0.0.1:53", "127.0.0.1:53"));
        assert!(clashing("0.0.0.0:53", "127.0.0.1:53"));
        assert!(clashing("127.0.0.1:53", "[::]:53"));
        assert!(!clashing("127.0.0.1:53", "127.0.0.2:53"));
        assert!(!clashing("0.0.0.0:53", "[::1]:53"));
        assert!(!clashing("127.0.0.1:0", "127.0.0.1:0"));
    }
}
