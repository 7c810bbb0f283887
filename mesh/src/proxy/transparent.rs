//! Connecting from the client's own address: which endpoints can be shown it, and why others cannot.
//!
//! What an endpoint answers to the client has to be steered back to the socket here. Where that works is the control plane's to
//! find out and the kernel's to do (`mesh::steer`); it leaves a table here, which connections read without a lock. An endpoint
//! that is not in it, or a client that it could not tell from somebody else, is connected to from this node's own address, as
//! without the setting, and counted by the reason: an address that cannot be shown is no reason to lose a connection.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use nerve::model::Prefix;

/// Why an endpoint sees this node's address although its service asks for the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plain {
    /// Answers are not steered on this node, or not yet: `plexus status` says why.
    Off,
    /// Its answers do not pass through this node.
    Elsewhere,
    /// The interface that its answers come in by checks their source by the mark, and would drop them.
    SourceCheck,
    /// The client's address is of the other family.
    Family,
    /// The client's address means nothing to it, such as 127.0.0.1.
    Scope,
    /// The client is its neighbour, which it would answer directly.
    Neighbour,
    /// It is reached by its unix socket, or its client came by one: neither has an address.
    UnixSocket,
}

impl Plain {
    /// Every reason there is.
    pub const ALL: [Self; 7] = [
        Self::Off,
        Self::Elsewhere,
        Self::SourceCheck,
        Self::Family,
        Self::Scope,
        Self::Neighbour,
        Self::UnixSocket,
    ];

    /// The word for it, as in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Elsewhere => "elsewhere",
            Self::SourceCheck => "source_check",
            Self::Family => "family",
            Self::Scope => "scope",
            Self::Neighbour => "neighbour",
            Self::UnixSocket => "unix_socket",
        }
    }
}

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How the answers of an endpoint come back through this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Way {
    /// Whom it answers past this node: those on its link, and itself.
    pub neighbours: Vec<Prefix>,
    /// Of those, whom it answers by this node all the same.
    pub but: Vec<Prefix>,
}

/// What is known of the endpoints of services that ask for the client's address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ways {
    /// Marks the sockets whose answers are steered (`SO_MARK`).
    pub mark: u32,
    /// Endpoints by address: those of this node, and those of other nodes that answer by this one. Others are elsewhere.
    pub endpoints: HashMap<IpAddr, Result<Way, Plain>>,
    /// Nothing is steered, whatever the endpoint.
    pub off: bool,
}

/// The table, between the control plane that writes it and the data plane that asks it.
#[derive(Debug, Default)]
pub struct Steering {
    ways: ArcSwap<Ways>,
    open: AtomicUsize,
}

/// A client's address as that of a socket of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Borrowed {
    pub(super) address: SocketAddr,
    pub(super) mark: u32,
}

/// Keeps what steers the answers in place. Held for as long as there is a socket with a client's address.
#[derive(Debug)]
pub(super) struct Held(Arc<Steering>);

impl Steering {
    /// What holds for connections from now on.
    pub fn set(&self, ways: Ways) {
        self.ways.store(Arc::new(ways));
    }

    /// What holds now.
    #[must_use]
    pub fn ways(&self) -> Arc<Ways> {
        self.ways.load_full()
    }

    /// Sockets with a client's address that are open, or about to be.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// May a connection to `endpoint` come from `client`?
    pub(super) fn borrow(
        self: &Arc<Self>,
        client: SocketAddr,
        endpoint: SocketAddr,
    ) -> Result<(Borrowed, Held), Plain> {
        // Counted before it is looked: whoever takes the table away looks at the count afterwards.
        let held = Held::new(self);
        let ways = self.ways.load();
        ways.may_see(client.ip(), endpoint.ip())?;
        Ok((Borrowed { address: client, mark: ways.mark }, held))
    }
}

impl Ways {
    fn may_see(&self, client: IpAddr, endpoint: IpAddr) -> Result<(), Plain> {
        if self.off {
            return Err(Plain::Off);
        }
        let way = self.endpoints.get(&endpoint).ok_or(Plain::Elsewhere)?.as_ref().map_err(|plain| *plain)?;
        if client.is_ipv4() != endpoint.is_ipv4() {
            return Err(Plain::Family);
        }
        if client.is_loopback() != endpoint.is_loopback() || !is_someones(client) {
            return Err(Plain::Scope);
        }
        let is_in = |ranges: &[Prefix]| ranges.iter().any(|range| range.contains(client));
        if is_in(&way.neighbours) && !is_in(&way.but) {
            return Err(Plain::Neighbour);
        }
        Ok(())
    }
}

/// Is it one host's, wherever one asks?
fn is_someones(address: IpAddr) -> bool {
    let on_its_link_only = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !on_its_link_only && !address.is_unspecified() && !address.is_multicast()
}

impl Borrowed {
    /// The same address with whatever port is free.
    pub(super) fn with_any_port(self) -> Self {
        Self { address: SocketAddr::new(self.address.ip(), 0), ..self }
    }
}

impl Held {
    fn new(steering: &Arc<Steering>) -> Self {
        steering.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(steering))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "172.30.0.2";

    fn steering() -> Arc<Steering> {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let way = Way { neighbours: ranges(&["172.30.0.0/24"]), but: Vec::new() };
        let overlay = Way { neighbours: ranges(&["10.42.0.0/16"]), but: ranges(&["10.42.3.0/24"]) };
        let endpoints = HashMap::from([
            ("10.42.7.2".parse().unwrap(), Ok(overlay)),
            (CONTAINER.parse().unwrap(), Ok(way)),
            ("127.0.0.1".parse().unwrap(), Ok(Way::default())),
            ("2001:db8::2".parse().unwrap(), Ok(Way::default())),
            ("172.31.0.2".parse().unwrap(), Err(Plain::SourceCheck)),
        ]);
        let steering = Arc::new(Steering::default());
        steering.set(Ways { mark: 1, endpoints, off: false });
        steering
    }

    fn ask(steering: &Arc<Steering>, client: &str, endpoint: &str) -> Result<Borrowed, Plain> {
        let address = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
        steering.borrow(address(client, 40_000), address(endpoint, 9000)).map(|(borrowed, _)| borrowed)
    }

    #[test]
    fn an_endpoint_on_a_network_answers_this_nodes_containers_by_this_node() {
        let steering = steering();
        assert!(ask(&steering, "10.42.3.9", "10.42.7.2").is_ok());
        assert_eq!(ask(&steering, "10.42.4.9", "10.42.7.2"), Err(Plain::Neighbour));
    }

    #[test]
    fn an_endpoint_of_this_node_sees_a_client_from_afar() {
        let steering = steering();
        for (client, endpoint) in
            [("192.0.2.9", CONTAINER), ("2001:db8:9::1", "2001:db8::2"), ("127.0.0.1", "127.0.0.1")]
        {
            let borrowed = ask(&steering, client, endpoint).unwrap();
            assert_eq!(borrowed.address, SocketAddr::new(client.parse().unwrap(), 40_000));
            assert_eq!(borrowed.mark, 1);
        }
    }

    #[test]
    fn whoever_cannot_be_shown_is_told_why() {
        let steering = steering();
        for (client, endpoint, why) in [
            ("192.0.2.9", "192.0.2.11", Plain::Elsewhere),
            ("192.0.2.9", "172.31.0.2", Plain::SourceCheck),
            ("2001:db8::9", CONTAINER, Plain::Family),
            ("192.0.2.9", "2001:db8::2", Plain::Family),
            ("127.0.0.1", CONTAINER, Plain::Scope),
            ("192.0.2.9", "127.0.0.1", Plain::Scope),
            ("169.254.7.7", CONTAINER, Plain::Scope),
            ("fe80::9", "2001:db8::2", Plain::Scope),
            ("0.0.0.0", CONTAINER, Plain::Scope),
            ("172.30.0.9", CONTAINER, Plain::Neighbour),
            (CONTAINER, CONTAINER, Plain::Neighbour),
        ] {
            assert_eq!(ask(&steering, client, endpoint), Err(why), "{client} → {endpoint}");
        }
        steering.set(Ways { off: true, ..Ways::clone(&steering.ways()) });
        assert_eq!(ask(&steering, "192.0.2.9", CONTAINER), Err(Plain::Off));
    }

    #[test]
    fn what_is_held_is_counted_until_it_is_let_go() {
        let steering = steering();
        let address = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 40_000);
        let held = steering.borrow(address("192.0.2.9"), address(CONTAINER)).unwrap();
        assert!(steering.borrow(address("192.0.2.9"), address("192.0.2.11")).is_err());
        assert_eq!(steering.open(), 1);
        drop(held);
        assert_eq!(steering.open(), 0);
    }
}
