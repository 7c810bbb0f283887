//! Steering what endpoints answer to clients back to the balancer's sockets, for services with `client_address=transparent`.
//!
//! Such a socket has the client's address, so the endpoint's answers are addressed to the client and would leave this node, or
//! never arrive. While a service asks for it and has an endpoint here, or one on an overlay network whose node leads answers back,
//! one task keeps in the kernel what turns them round: a table of packet filter rules that mark them (`ruleset`), and for the mark a routing rule and a route that make every address
//! this host's own (`netlink`). It also judges for each endpoint whether its answers come by here at all (`plan`), and tells the
//! data plane ([`Steering`]), which asks no further.
//!
//! Answers of containers are known by the socket that they are for (`socket` of nft): no state but the socket. Answers of
//! processes of this host are on their way out when they can be marked, where nothing is looked up among sockets; for them, and
//! only while there are such endpoints, the rules use the connection tracking of the kernel, which then tracks every connection of
//! the host. Nobody else's rules, routes or bits of marks are ever touched.

mod keeper;
mod metrics;
mod netlink;
mod networks;
mod plan;
mod ruleset;
mod sockets;
mod words;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nerve::model::{ClientAddress, Instance, NodeName};
use nerve::tasks::Tasks;
use synapse::catalog::{Catalog, Service};
use tokio::sync::watch;

pub use metrics::Metrics;

use crate::proxy::{Plain, Steering};

/// What answers are told by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node: its endpoints can be shown a client's address, and those that answer by it.
    pub node: NodeName,
    /// Where other nodes reach it.
    pub address: IpAddr,
    /// A bit of the marks of packets, sockets and tracked connections that nobody else uses; the next higher one is used too.
    pub mark: u32,
    /// A routing table that nobody else uses.
    pub table: u32,
}

/// The way that packets take which arrive by tunnels of overlay networks: answers among them are known by their sockets, so they have
/// to take the usual one. Clones are the same.
#[derive(Debug, Clone)]
pub struct UsualWay {
    /// Asks for it; it is asked for until it is known that nobody needs it.
    pub asks: Arc<watch::Sender<bool>>,
    /// They take it.
    pub given: watch::Receiver<bool>,
}

/// How it stands, for readers. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    config: Arc<Config>,
    steering: Arc<Steering>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Why nothing is steered although services ask for it.
    lacks: Mutex<Option<String>>,
    /// The kernel has something of ours, or may have.
    applied: AtomicBool,
}

/// Whose address an endpoint sees whose service asks for the clients'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// This node's, whoever the client.
    Nodes {
        /// The reason.
        reason: Plain,
        /// The same in words.
        why: String,
    },
    /// The clients' own, but for some.
    Clients {
        /// Of whom it sees this node's, each after the word "clients", with the reason.
        but: Vec<(Plain, String)>,
    },
}

/// Starts the task.
#[must_use]
pub fn start(
    config: Config,
    catalog: Catalog,
    steering: Arc<Steering>,
    usual_way: UsualWay,
    metrics: Metrics,
    tasks: &Tasks,
) -> Handle {
    let handle = Handle { config: Arc::new(config), steering, shared: Arc::default() };
    keeper::start(handle.clone(), catalog, usual_way, metrics, tasks);
    handle
}

impl Handle {
    /// What fails, a sentence.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.lacks().map(|why| words::off(&why))
    }

    fn lacks(&self) -> Option<String> {
        self.shared.lacks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whose address an endpoint of a service that asks for the clients' sees; `None` where nobody asks.
    #[must_use]
    pub fn shown(&self, service: &Service, instance: &Instance) -> Option<Shown> {
        if !asks(service) {
            return None;
        }
        let ways = self.steering.ways();
        let reason = match ways.endpoints.get(&instance.address) {
            None if instance.node != self.config.node => Plain::Elsewhere,
            _ if instance.node == self.config.node && instance.socket.is_some() => Plain::UnixSocket,
            _ if ways.off => Plain::Off,
            Some(Ok(way)) => return Some(Shown::Clients { but: words::but(instance.address, way) }),
            Some(Err(plain)) => *plain,
            None => Plain::Off,
        };
        let mut why = words::of(reason).to_owned();
        if reason == Plain::Off
            && let Some(lacks) = self.lacks()
        {
            why = format!("{why}: {lacks}");
        }
        Some(Shown::Nodes { reason, why })
    }

    /// Takes everything of ours out of the kernel. Call it after the task was stopped and no connection is left, and not when
    /// another agent takes over.
    pub async fn withdraw(&self) {
        if self.shared.applied.swap(false, Ordering::SeqCst)
            && let Err(error) = keeper::clear().await
        {
            tracing::warn!(%error, "what steers answers to clients' addresses stays behind; the next agent takes it over");
        }
    }
}

fn asks(service: &Service) -> bool {
    service.settings.client_address == Some(ClientAddress::Transparent)
}

#[cfg(test)]
mod tests {
    use nerve::model::ServiceSettings;

    use super::*;
    use crate::proxy::{Way, Ways};

    fn instance(node: &str, address: &str, socket: Option<&str>) -> Instance {
        let mut json = serde_json::json!({
            "service": "web", "id": "web", "node": node, "address": address, "port": 80,
        });
        if let Some(socket) = socket {
            json["socket"] = socket.into();
        }
        serde_json::from_value(json).unwrap()
    }

    fn service(client_address: Option<ClientAddress>) -> Service {
        let mut service = Service::empty("web".parse().unwrap());
        service.settings = Arc::new(ServiceSettings { client_address, ..ServiceSettings::default() });
        service
    }

    fn handle(off: bool) -> Handle {
        let endpoints = [
            ("172.17.0.2", Ok(Way { neighbours: vec!["172.17.0.0/16".parse().unwrap()], but: Vec::new() })),
            ("172.18.0.2", Err(Plain::SourceCheck)),
            // As where nothing is steered.
            ("10.42.7.2", Err(Plain::Off)),
        ];
        let endpoints = endpoints.map(|(address, way)| (address.parse().unwrap(), way)).into();
        let handle = Handle {
            config: Arc::new(Config {
                node: "a".parse().unwrap(),
                address: "192.0.2.11".parse().unwrap(),
                mark: 1,
                table: 1,
            }),
            steering: Arc::default(),
            shared: Arc::default(),
        };
        handle.steering.set(Ways { mark: 1, endpoints, off });
        handle
    }

    #[test]
    fn each_endpoint_is_told_apart_by_what_it_can_be_shown() {
        let wants = service(Some(ClientAddress::Transparent));
        for (off, node, address, socket, expected) in [
            (false, "b", "172.19.0.2", None, Some(Plain::Elsewhere)),
            (true, "b", "172.19.0.2", None, Some(Plain::Elsewhere)),
            (true, "b", "10.42.7.2", None, Some(Plain::Off)),
            // On a network, and led back.
            (false, "b", "172.17.0.2", None, None),
            (false, "a", "172.17.0.2", Some("/run/web.sock"), Some(Plain::UnixSocket)),
            (true, "a", "172.17.0.2", None, Some(Plain::Off)),
            (false, "a", "172.18.0.2", None, Some(Plain::SourceCheck)),
            // It was not looked at yet.
            (false, "a", "172.19.0.2", None, Some(Plain::Off)),
            (false, "a", "172.17.0.2", None, None),
        ] {
            let instance = instance(node, address, socket);
            let reason = match handle(off).shown(&wants, &instance) {
                Some(Shown::Nodes { reason, .. }) => Some(reason),
                Some(Shown::Clients { but }) => {
                    assert!(but.iter().any(|(reason, _)| *reason == Plain::Neighbour));
                    None
                }
                None => panic!("the service asks"),
            };
            assert_eq!(reason, expected, "{node} {address} {socket:?}");
            assert_eq!(handle(off).shown(&service(None), &instance), None);
        }
    }

    #[test]
    fn what_is_lacking_is_said_of_the_endpoints_too() {
        let handle = handle(true);
        *handle.shared.lacks.lock().unwrap() = Some("nft is not installed".to_owned());
        let shown =
            handle.shown(&service(Some(ClientAddress::Transparent)), &instance("a", "172.17.0.2", None));
        let Some(Shown::Nodes { why, .. }) = shown else { panic!("nothing is steered") };
        assert_eq!(why, "answers to clients' addresses are not steered here: nft is not installed");
        assert!(handle.problem().unwrap().ends_with("ask for it: nft is not installed"));
    }
}
