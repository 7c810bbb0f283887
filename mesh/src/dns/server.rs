//! The sockets of the name server: bound first, then served by hickory-server until told to stop.
//!
//! An address that cannot be bound does not keep the others from being served; it is tried again. A wildcard address is
//! opened as one socket for each address of this host, because a UDP reply must leave from the address that was asked.
//!
//! hickory-server answers each UDP question in a task of its own without a limit; the zone's answers do not wait, and what
//! waits, forwarding, is bounded there. It closes TCP connections that ask nothing for a while.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use tokio_util::sync::CancellationToken;

use super::forward::Forwarder;
use super::handler::Handler;
use super::{Config, Metrics, Zone};

/// How often addresses that could not be bound are tried again.
const RETRY: Duration = Duration::from_secs(5);
/// A TCP connection without a question for this long is closed.
const TCP_IDLE: Duration = Duration::from_secs(30);
/// Answers that wait for a slow TCP client.
const TCP_QUEUE: usize = 64;
/// Datagrams that the kernel holds for us: a burst of a thousand questions at a time when the thread is busy.
const RECEIVE_BUFFER: usize = 1 << 20;

/// An address that the name server cannot listen on.
#[derive(Debug, thiserror::Error)]
#[error("the name server cannot listen on {address}/{transport}: {source}{}", crate::advice::on_bind(source, *address))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// How it stands with one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenState {
    /// It is served.
    Open,
    /// It is not, for this reason; it is tried again.
    Failed(String),
}

type States = Arc<Mutex<BTreeMap<SocketAddr, ListenState>>>;

/// What the name server is up to. Clones are the same.
#[derive(Debug, Clone)]
pub struct Server(States);

impl Server {
    /// Every address with how it stands.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<SocketAddr, ListenState> {
        lock(&self.0).clone()
    }
}

fn lock(states: &States) -> MutexGuard<'_, BTreeMap<SocketAddr, ListenState>> {
    states.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name server with its sockets, not serving yet.
#[derive(Debug)]
pub struct Bound {
    listen: Vec<SocketAddr>,
    sockets: Vec<Sockets>,
    handler: Handler,
    states: States,
}

#[derive(Debug)]
struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Bound {
    /// Binds every address that can be bound; the state of the others says why not.
    #[must_use]
    pub fn bind(config: &Config, zone: Arc<Zone>, metrics: Metrics) -> Self {
        let forwarder = Forwarder::new(&config.upstreams, &config.listen);
        let handler = Handler { zone, forwarder, metrics };
        let mut bound =
            Self { listen: config.listen.clone(), sockets: Vec::new(), handler, states: States::default() };
        bound.sockets = bind_missing(&bound.listen, &bound.states);
        bound
    }

    /// For whoever looks at it.
    #[must_use]
    pub fn server(&self) -> Server {
        Server(Arc::clone(&self.states))
    }

    /// Serves until `stop`. Must be called on the runtime that is to serve.
    pub async fn run(self, stop: CancellationToken) {
        let mut server = hickory_server::Server::new(self.handler);
        register(&mut server, self.sockets, &self.states);
        let mut retry = tokio::time::interval(RETRY);
        retry.reset();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = retry.tick() => {
                    let sockets = bind_missing(&self.listen, &self.states);
                    register(&mut server, sockets, &self.states);
                }
            }
        }
        if let Err(error) = server.shutdown_gracefully().await {
            tracing::warn!(%error, "the name server did not end in order");
        }
    }
}

fn register(server: &mut hickory_server::Server<Handler>, sockets: Vec<Sockets>, states: &States) {
    for Sockets { udp, tcp } in sockets {
        let address = tcp.local_addr();
        let registered = tokio::net::UdpSocket::from_std(udp)
            .and_then(|udp| tokio::net::TcpListener::from_std(tcp).map(|tcp| (udp, tcp)));
        match (registered, address) {
            (Ok((udp, tcp)), _) => {
                server.register_socket(udp);
                server.register_listener(tcp, TCP_IDLE, TCP_QUEUE);
            }
            (Err(error), Ok(address)) => {
                lock(states).insert(address, ListenState::Failed(error.to_string()));
            }
            (Err(error), Err(_)) => tracing::error!(%error, "a socket of the name server is of no use"),
        }
    }
}

/// Binds what is wanted and not open, and notes how it went.
fn bind_missing(listen: &[SocketAddr], states: &States) -> Vec<Sockets> {
    let mut sockets = Vec::new();
    for address in listen.iter().copied().flat_map(concrete) {
        // Where any port was asked for, one that is open is the one.
        let is_it =
            |open: &SocketAddr| *open == address || (address.port() == 0 && open.ip() == address.ip());
        if lock(states).iter().any(|(open, state)| *state == ListenState::Open && is_it(open)) {
            continue;
        }
        let state = match bind(address) {
            Ok(bound) => {
                let address = bound.tcp.local_addr().unwrap_or(address);
                tracing::info!(%address, "answering DNS");
                sockets.push(bound);
                lock(states).insert(address, ListenState::Open);
                continue;
            }
            Err(error) => ListenState::Failed(error.to_string()),
        };
        let before = lock(states).insert(address, state.clone());
        if let ListenState::Failed(error) = &state
            && before.as_ref() != Some(&state)
        {
            tracing::error!(%error, "no DNS on an address; it is tried again every {} s", RETRY.as_secs());
        }
    }
    sockets
}

/// The address, or every one of this host of its family where it is the wildcard.
fn concrete(address: SocketAddr) -> Vec<SocketAddr> {
    if !address.ip().is_unspecified() {
        return vec![address];
    }
    let Ok(interfaces) = getifaddrs() else { return vec![address] };
    let ip = |interface: nix::ifaddrs::InterfaceAddress| -> Option<IpAddr> {
        let found = interface.address?;
        match address {
            SocketAddr::V4(_) => found.as_sockaddr_in().map(|v4| v4.ip().into()),
            // A link-local address is no address without its link; nobody configures it as a server.
            SocketAddr::V6(_) => found
                .as_sockaddr_in6()
                .map(|v6| v6.ip())
                .filter(|v6| !v6.is_unicast_link_local())
                .map(Into::into),
        }
    };
    interfaces.filter_map(ip).map(|ip| SocketAddr::new(ip, address.port())).collect()
}

fn bind(address: SocketAddr) -> Result<Sockets, BindError> {
    let failed = |transport| move |source| BindError { address, transport, source };
    let tcp = std::net::TcpListener::bind(address).map_err(failed("tcp"))?;
    tcp.set_nonblocking(true).map_err(failed("tcp"))?;
    // The same port for both, also where any was asked for.
    let address = tcp.local_addr().map_err(failed("tcp"))?;
    let udp = std::net::UdpSocket::bind(address).map_err(failed("udp"))?;
    udp.set_nonblocking(true).map_err(failed("udp"))?;
    // The kernel caps it at net.core.rmem_max; less is no error.
    let _ = socket2::SockRef::from(&udp).set_recv_buffer_size(RECEIVE_BUFFER);
    Ok(Sockets { udp, tcp })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nerve::model::NodeName;
    use synapse::catalog::{Catalog, Freshness, Writer};

    use super::super::Domain;
    use super::super::zone::tests::instance;
    use super::*;

    struct Running {
        address: SocketAddr,
        writer: Writer,
        stop: CancellationToken,
        thread: std::thread::JoinHandle<()>,
    }

    /// A name server on a thread of its own, as the agent runs it.
    fn serve(domain: &str, upstreams: Vec<SocketAddr>) -> Running {
        let (catalog, mut writer) = Catalog::new();
        writer.set_freshness(Freshness::Live);
        let config = Config {
            node: NodeName::new("a").unwrap(),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            domain: domain.parse::<Domain>().unwrap(),
            ttl: Duration::from_secs(5),
            upstreams,
        };
        let zone = Arc::new(Zone::new(&config, catalog));
        let bound = Bound::bind(&config, zone, Metrics::new().unwrap());
        let address = *bound.server().addresses().keys().next().unwrap();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(bound.run(token));
        });
        Running { address, writer, stop, thread }
    }

    impl Running {
        fn end(self) {
            self.stop.cancel();
            self.thread.join().unwrap();
        }

        /// What `dig` prints, or `None` where it is not installed.
        fn dig(&self, arguments: &[&str]) -> Option<String> {
            let port = self.address.port().to_string();
            let dig = Command::new("dig")
                .args(["@127.0.0.1", "-p", &port, "+tries=2", "+time=3"])
                .args(arguments)
                .output();
            match dig {
                Ok(output) => Some(String::from_utf8(output.stdout).unwrap()),
                Err(error) => {
                    println!("skipped: dig is needed ({error}); apt-get install dnsutils");
                    None
                }
            }
        }
    }

    #[test]
    fn dig_gets_addresses_over_udp_and_tcp() {
        let mut server = serve("mesh.internal", Vec::new());
        server.writer.apply([instance(&serde_json::json!({"id": "1"}))]);
        for transport in ["+notcp", "+tcp"] {
            let Some(text) = server.dig(&["web.mesh.internal", transport]) else { return };
            assert!(text.contains("status: NOERROR") && text.contains("192.0.2.1"), "{text}");
            assert!(text.contains("flags: qr aa"), "{text}");
        }
        let text = server.dig(&["nope.mesh.internal"]).unwrap();
        assert!(text.contains("status: NXDOMAIN") && text.contains("SOA"), "{text}");
        server.end();
    }

    #[test]
    fn what_does_not_fit_a_datagram_is_asked_again_over_tcp() {
        let mut server = serve("mesh.internal", Vec::new());
        let many = (0..200)
            .map(|n| instance(&serde_json::json!({"id": n.to_string(), "address": format!("192.0.2.{n}")})));
        server.writer.apply(many);
        let Some(cut) = server.dig(&["tasks.web.mesh.internal", "+ignore"]) else { return };
        assert!(cut.contains("flags: qr aa tc"), "{cut}");
        let whole = server.dig(&["tasks.web.mesh.internal", "+short"]).unwrap();
        assert_eq!(whole.lines().filter(|line| line.starts_with("192.0.2.")).count(), 200, "{whole}");
        server.end();
    }

    #[test]
    fn other_names_are_asked_upstream_and_kept() {
        let mut upstream = serve("example.com", Vec::new());
        upstream.writer.apply([instance(&serde_json::json!({"id": "1"}))]);
        let server = serve("mesh.internal", vec![upstream.address]);
        let Some(text) = server.dig(&["web.example.com"]) else { return };
        assert!(text.contains("192.0.2.1") && text.contains("flags: qr rd ra"), "{text}");
        upstream.end();
        let text = server.dig(&["web.example.com"]).unwrap();
        assert!(text.contains("192.0.2.1"), "from the cache: {text}");
        let text = server.dig(&["api.example.com"]).unwrap();
        assert!(text.contains("SERVFAIL"), "nobody to ask: {text}");
        server.end();
    }

    #[test]
    fn an_address_that_is_taken_is_said_with_what_to_do() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = bind(taken.local_addr().unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("/tcp: Address already in use") && error.contains("another program"),
            "{error}"
        );
    }
}
