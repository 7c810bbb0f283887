//! What clients, endpoints and other nodes see of tunnels, over real sockets and real TLS on loopback.

mod access;
mod nodes;
mod strangers;
mod streams;

use std::collections::HashMap;
use std::sync::Mutex;

use nerve::model::{Address, MtlsMode};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::*;
use crate::proxy::tunnel_metrics::{End, Ends};
use crate::proxy::{
    Refusal, TunnelCall, TunnelCredentials, TunnelFailure, TunnelListenerSpec, TunnelPeer, TunnelTargets,
    TunnelWays,
};

/// An authority, and the certificates that it has given to nodes.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
    nodes: Arc<Mutex<HashMap<Vec<u8>, NodeName>>>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        Self { issuer: Issuer::new(params, key), roots: Arc::new(roots), nodes: Arc::default() }
    }

    /// A certificate for a node.
    fn certificate(&self, node: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let params = CertificateParams::new(vec![node.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let node = NodeName::new(node).unwrap();
        self.nodes.lock().unwrap().insert(certificate.der().to_vec(), node);
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn client(&self, node: &str) -> ClientConfig {
        let (chain, key) = self.certificate(node);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        builder.with_root_certificates(Arc::clone(&self.roots)).with_client_auth_cert(chain, key).unwrap()
    }

    fn server(&self, node: &str) -> ServerConfig {
        let (chain, key) = self.certificate(node);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::clone(&self.roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build().unwrap();
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap()
    }

    fn credentials(&self, node: &str) -> TunnelCredentials {
        let nodes = Arc::clone(&self.nodes);
        let identify =
            move |certificate: &CertificateDer<'_>| nodes.lock().unwrap().get(certificate.as_ref()).cloned();
        TunnelCredentials::new(&self.client(node), &self.server(node), Arc::new(identify))
    }

    /// Whoever has shown a certificate so far is nobody from now on.
    fn revoke_all(&self) {
        self.nodes.lock().unwrap().clear();
    }
}

/// The endpoints of a node, and what was asked for.
#[derive(Debug, Default)]
struct Here {
    endpoints: Mutex<Vec<SocketAddr>>,
    asked: Mutex<Vec<(String, String, Option<SocketAddr>)>>,
}

impl TunnelTargets for Here {
    fn target(&self, call: &TunnelCall<'_>) -> Result<Address, Refusal> {
        self.asked.lock().unwrap().push((call.node.to_string(), call.service.to_owned(), call.client));
        let is_here = call.service == "web" && self.endpoints.lock().unwrap().contains(&call.target);
        is_here.then_some(call.target.into()).ok_or(Refusal::NotHere)
    }
}

/// A node that others reach by its tunnel.
struct Receiver {
    plane: DataPlane,
    listener: Listener,
    metrics: Metrics,
    here: Arc<Here>,
}

impl Receiver {
    fn new(authority: &Authority, name: &str, endpoints: &[SocketAddr]) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), authority, name, endpoints)
    }

    fn at(address: SocketAddr, authority: &Authority, name: &str, endpoints: &[SocketAddr]) -> Self {
        let metrics = Metrics::new().unwrap();
        let config = Config { threads: NonZeroUsize::new(2), ..Config::default() };
        let plane = DataPlane::start(config, metrics.clone()).unwrap();
        plane.tunnels().set_credentials(Some(authority.credentials(name)));
        let here = Arc::new(Here { endpoints: Mutex::new(endpoints.to_vec()), ..Here::default() });
        let targets: Arc<dyn TunnelTargets> = Arc::clone(&here) as _;
        let listener =
            plane.open_tunnel(TunnelListenerSpec { address, targets, inherited: Vec::new() }).unwrap();
        Self { plane, listener, metrics, here }
    }

    fn address(&self) -> SocketAddr {
        self.listener.address().ip().unwrap()
    }

    fn refused(&self, reason: Refusal) -> u64 {
        self.metrics.tunnels.so_far(|tally| tally.refusals(reason))
    }

    fn failed(&self, reason: TunnelFailure) -> u64 {
        ends(&self.metrics, End::Receiver, |ends| ends.failures(reason))
    }

    fn end(self) {
        drop(self.listener);
        self.plane.shutdown();
    }
}

fn ends(metrics: &Metrics, end: End, count: impl Fn(&Ends) -> u64) -> u64 {
    metrics.tunnels.so_far(|tally| count(tally.of(end)))
}

/// Handshakes of either kind that the world has made.
fn handshakes(world: &World) -> u64 {
    ends(&world.metrics, End::Sender, |ends| ends.full.get() + ends.resumed.get())
}

/// A port on node `a` that leads to endpoints of node `b`, which are reached by its tunnel.
fn pair(endpoints: &[SocketAddr]) -> (World, Receiver) {
    pair_with(Config::default(), endpoints, &serde_json::json!({}))
}

fn pair_with(config: Config, endpoints: &[SocketAddr], settings: &serde_json::Value) -> (World, Receiver) {
    let authority = Authority::new();
    let receiver = Receiver::new(&authority, "b", endpoints);
    (sender(config, &authority, &receiver, endpoints, settings), receiver)
}

fn sender(
    config: Config,
    authority: &Authority,
    receiver: &Receiver,
    endpoints: &[SocketAddr],
    settings: &serde_json::Value,
) -> World {
    let mut world = world_with(config, &[], settings, Sharing::PerThread);
    let tunnels = world.plane.tunnels();
    tunnels.set_credentials(Some(authority.credentials("a")));
    let peer = TunnelPeer { node: NodeName::new("b").unwrap(), address: receiver.address() };
    tunnels.set_ways(TunnelWays::new(MtlsMode::Strict, NodeName::new("a").ok(), [peer]));
    let instances = endpoints.iter().enumerate().map(|(id, at)| {
        let json = serde_json::json!({
            "service": "web", "id": id.to_string(), "node": "b", "address": at.ip(), "port": at.port(), "health": "passing",
        });
        Change::PutInstance(Arc::new(serde_json::from_value(json).unwrap()))
    });
    world.writer.apply(instances);
    world.balancer.update(world.catalog.service("web").as_deref());
    world
}

/// An endpoint that says back what it is told, to any number at a time.
fn echo() -> SocketAddr {
    endpoint(|mut stream| {
        std::thread::spawn(move || {
            stream.try_clone().and_then(|mut back| std::io::copy(&mut stream, &mut back))?;
            stream.shutdown(Shutdown::Write)
        });
    })
}

/// Says something, hears it, and ends.
fn exchange(world: &World, said: &[u8]) {
    let mut client = world.connect();
    client.write_all(said).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    assert!(heard == said, "{} octets of {}", heard.len(), said.len());
}
