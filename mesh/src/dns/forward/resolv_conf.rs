//! Whom to ask: the configured lists, or the name servers of resolv.conf, without ourselves.
//!
//! Once resolv.conf points here, as it should, forwarding to what it names would be a loop. A name server is ourselves
//! if it is an address that we listen on, or if we listen on every address of this host and it is one of them; a server of TLS,
//! if we listen there for TLS.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use crate::dns::address::{PORT, Transport, UpstreamAddress};
use crate::dns::config::{Config, Route, Upstreams};

/// What systemd-resolved answers on itself, and where it says whom it asks (systemd-resolved(8)).
const STUB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53));
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// resolv.conf(5) has three; whoever writes more is listened to, within reason.
const MOST_SERVERS: usize = 16;

/// Where the lists of upstreams come from.
#[derive(Debug, Clone, Copy)]
pub(in crate::dns) struct Source<'a> {
    pub(in crate::dns) config: &'a Config,
    /// Our own addresses.
    pub(in crate::dns) listen: &'a [SocketAddr],
}

/// Whom to ask, as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::dns) struct Lists {
    /// For names that no route covers.
    pub(super) upstreams: Vec<UpstreamAddress>,
    pub(super) routes: Vec<Routed>,
    /// What was left out, since it is ourselves.
    pub(in crate::dns) ourselves: Vec<UpstreamAddress>,
}

/// A route, and what of it can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Routed {
    pub(super) route: Route,
    /// Without ourselves.
    pub(super) upstreams: Vec<UpstreamAddress>,
}

/// Why the list could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read name servers from {}: {source}; names outside the domain go to those known before", path.display())]
pub(in crate::dns) struct ReadError {
    path: PathBuf,
    source: std::io::Error,
}

impl Source<'_> {
    /// The servers to ask now, ourselves left out.
    pub(in crate::dns) fn read(&self) -> Result<Lists, ReadError> {
        let mut lists = Lists::default();
        let upstreams = match &self.config.upstreams {
            Upstreams::None => return Ok(lists),
            Upstreams::List(list) => list.clone(),
            Upstreams::ResolvConf(path) => match fs::read_to_string(path) {
                Ok(text) => behind_stub(name_servers(&text), Path::new(BEHIND_STUB)),
                Err(source) => return Err(ReadError { path: path.clone(), source }),
            },
        };
        lists.upstreams = self.others(&upstreams, &mut lists.ourselves);
        for route in &self.config.routes {
            let upstreams = self.others(&route.upstreams, &mut lists.ourselves);
            lists.routes.push(Routed { route: route.clone(), upstreams });
        }
        Ok(lists)
    }

    fn others(&self, all: &[UpstreamAddress], left_out: &mut Vec<UpstreamAddress>) -> Vec<UpstreamAddress> {
        let (ourselves, mut others): (Vec<_>, Vec<_>) =
            all.iter().cloned().partition(|server| self.is_ourselves(server));
        for own in ourselves {
            if !left_out.contains(&own) {
                left_out.push(own);
            }
        }
        others.truncate(MOST_SERVERS);
        others
    }

    fn is_ourselves(&self, server: &UpstreamAddress) -> bool {
        let UpstreamAddress { at: server, transport } = server;
        let listen = match transport {
            Transport::Tls(_) => {
                self.config.encrypted.as_ref().map_or(&[][..], |encrypted| &encrypted.tls_listen)
            }
            Transport::Udp | Transport::Tcp => self.listen,
        };
        listen.iter().any(|own| {
            own.port() == server.port()
                && (own.ip() == server.ip()
                    || own.ip().is_unspecified()
                        && own.is_ipv4() == server.is_ipv4()
                        && is_of_this_host(server.ip()))
        })
    }
}

/// Only an address of this host can be bound to.
fn is_of_this_host(ip: IpAddr) -> bool {
    ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

/// The `nameserver` lines (resolv.conf(5)); what is no address is skipped, as the C library does.
fn name_servers(text: &str) -> Vec<UpstreamAddress> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(at) = words.next().and_then(address) {
            servers.push(UpstreamAddress::udp(at));
        }
    }
    servers
}

/// Whom systemd-resolved asks, where it is the only one that is named: it may have been told to ask us, and then asking it would be
/// a loop. Nobody but itself, where that cannot be read.
fn behind_stub(named: Vec<UpstreamAddress>, file: &Path) -> Vec<UpstreamAddress> {
    if named.is_empty() || named.iter().any(|server| server.at.ip() != STUB) {
        return named;
    }
    fs::read_to_string(file).map_or(named, |text| name_servers(&text))
}

/// An address, perhaps with a scope (`fe80::1%2`); a scope by name needs the kernel to read and is left out.
fn address(word: &str) -> Option<SocketAddr> {
    if let Ok(ip) = word.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, PORT));
    }
    let (ip, scope) = word.split_once('%')?;
    Some(std::net::SocketAddrV6::new(ip.parse().ok()?, PORT, 0, scope.parse().ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(config: &Config, listen: &[&str]) -> Lists {
        let listen: Vec<SocketAddr> = listen.iter().map(|a| a.parse().unwrap()).collect();
        Source { config, listen: &listen }.read().unwrap()
    }

    fn shown(all: &[UpstreamAddress]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    fn servers(text: &str, listen: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, text).unwrap();
        let config = Config { upstreams: Upstreams::ResolvConf(path), ..Config::default() };
        shown(&lists(&config, listen).upstreams)
    }

    const TEXT: &str = "# mesh\nsearch a.b\nnameserver 127.0.0.1\nnameserver\t192.0.2.53 # x\nnameserver fe80::1%2\nnameserver x\n";

    #[test]
    fn the_name_servers_are_read_and_what_is_none_is_skipped() {
        assert_eq!(servers(TEXT, &[]), ["127.0.0.1:53", "192.0.2.53:53", "[fe80::1%2]:53"]);
    }

    #[test]
    fn we_never_forward_to_ourselves() {
        assert_eq!(servers(TEXT, &["127.0.0.1:53", "[fe80::1%2]:53"])[..1], ["192.0.2.53:53"]);
        assert_eq!(servers(TEXT, &["0.0.0.0:53"]), ["192.0.2.53:53", "[fe80::1%2]:53"]);
        assert_eq!(servers(TEXT, &["127.0.0.1:5300", "0.0.0.0:5300"]).len(), 3);
    }

    #[test]
    fn routes_have_no_way_to_ourselves_either_and_that_is_told() {
        let upstream = |text: &str| text.parse::<UpstreamAddress>().unwrap();
        let route = |domain: &str, upstreams: &[&str]| Route {
            domain: domain.parse().unwrap(),
            upstreams: upstreams.iter().map(|text| upstream(text)).collect(),
        };
        let config = Config {
            upstreams: Upstreams::List(vec![upstream("127.0.0.1"), upstream("192.0.2.53")]),
            routes: vec![
                route("a.example", &["127.0.0.1", "tcp://127.0.0.1"]),
                route("b.example", &["tls://127.0.0.1:53"]),
            ],
            ..Config::default()
        };
        let read = lists(&config, &["127.0.0.1:53"]);
        assert_eq!(shown(&read.upstreams), ["192.0.2.53:53"]);
        assert_eq!(shown(&read.ourselves), ["127.0.0.1:53", "tcp://127.0.0.1:53"]);
        let left: Vec<usize> = read.routes.iter().map(|routed| routed.upstreams.len()).collect();
        assert_eq!(left, [0, 1]);
        let off = Config { upstreams: Upstreams::None, ..config };
        assert_eq!(lists(&off, &[]), Lists::default(), "off is off for routes too");
    }

    #[test]
    fn behind_a_stub_are_those_whom_it_asks() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resolv.conf");
        let behind = |text: &str| shown(&behind_stub(name_servers(text), &file));
        let stub = "nameserver 127.0.0.53\noptions edns0\n";
        assert_eq!(behind(stub), ["127.0.0.53:53"], "nobody says whom it asks");
        fs::write(&file, "nameserver 192.0.2.53\n").unwrap();
        assert_eq!(behind(stub), ["192.0.2.53:53"]);
        assert_eq!(behind("nameserver 192.0.2.54\n"), ["192.0.2.54:53"]);
        assert_eq!(behind("nameserver 127.0.0.53\nnameserver 192.0.2.54\n").len(), 2);
        fs::write(&file, "search .\n").unwrap();
        assert!(behind(stub).is_empty(), "it has nobody to ask but us");
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error_that_names_it() {
        let upstreams = Upstreams::ResolvConf("/nowhere/resolv.conf".into());
        let config = Config { upstreams, ..Config::default() };
        let error = Source { config: &config, listen: &[] }.read().unwrap_err();
        assert!(error.to_string().contains("/nowhere/resolv.conf"), "{error}");
    }
}
