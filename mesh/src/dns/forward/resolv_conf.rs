//! Whom to ask: the configured list, or the name servers of resolv.conf, without ourselves.
//!
//! Once resolv.conf points here, as it should, forwarding to what it names would be a loop. A name server is ourselves
//! if it is an address that we listen on, or if we listen on every address of this host and it is one of them.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use crate::dns::config::Upstreams;

/// The port of DNS.
const PORT: u16 = 53;
/// resolv.conf(5) has three; whoever writes more is listened to, within reason.
const MOST_SERVERS: usize = 16;

/// Where the list of upstreams comes from.
#[derive(Debug, Clone)]
pub(in crate::dns) struct Source {
    pub(in crate::dns) upstreams: Upstreams,
    /// Our own addresses.
    pub(in crate::dns) listen: Vec<SocketAddr>,
}

/// Why the list could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read name servers from {}: {source}; names outside the domain go to those known before", path.display())]
pub(in crate::dns) struct ReadError {
    path: PathBuf,
    source: std::io::Error,
}

impl Source {
    /// The servers to ask now, ourselves left out.
    pub(in crate::dns) fn read(&self) -> Result<Vec<SocketAddr>, ReadError> {
        let mut servers = match &self.upstreams {
            Upstreams::None => Vec::new(),
            Upstreams::List(list) => list.clone(),
            Upstreams::ResolvConf(path) => match fs::read_to_string(path) {
                Ok(text) => name_servers(&text),
                Err(source) => return Err(ReadError { path: path.clone(), source }),
            },
        };
        servers.retain(|server| !self.is_ourselves(*server));
        servers.truncate(MOST_SERVERS);
        Ok(servers)
    }

    fn is_ourselves(&self, server: SocketAddr) -> bool {
        self.listen.iter().any(|own| {
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
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(ip) = words.next().and_then(address) {
            servers.push(ip);
        }
    }
    servers
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

    fn servers(text: &str, listen: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, text).unwrap();
        let listen = listen.iter().map(|a| a.parse().unwrap()).collect();
        let source = Source { upstreams: Upstreams::ResolvConf(path), listen };
        source.read().unwrap().iter().map(ToString::to_string).collect()
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
    fn a_file_that_is_not_there_is_an_error_that_names_it() {
        let upstreams = Upstreams::ResolvConf("/nowhere/resolv.conf".into());
        let error = Source { upstreams, listen: Vec::new() }.read().unwrap_err();
        assert!(error.to_string().contains("/nowhere/resolv.conf"), "{error}");
    }
}
