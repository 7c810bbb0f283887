//! Two nodes and the tunnel between them: the data plane as the agent has it, with certificates that are made for the
//! measurement. One process each, as on two machines.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use mesh::balance::{self, Balancer, Place, Surroundings};
use mesh::proxy::{
    Config, DataPlane, Identify, ListenerSpec, Metrics, Refusal, Sharing, TunnelCall, TunnelCredentials,
    TunnelListenerSpec, TunnelPeer, TunnelTargets, TunnelWays,
};
use nerve::model::{Address, MtlsMode, NodeName, ServiceName};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use synapse::catalog::{Catalog, Change};

/// The authority's file, and how those of the nodes end.
pub(crate) const AUTHORITY: &str = "ca.pem";
/// The node whose clients are served.
pub(crate) const SENDER: &str = "a";
/// The node whose endpoints serve them.
pub(crate) const RECEIVER: &str = "b";
/// Where the receiver is reached.
pub(crate) const PORT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7443);
const SERVICE: &str = "s0";

/// What a node of these is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Node {
    /// One of the two.
    pub(crate) name: String,
    /// Data-plane threads.
    pub(crate) threads: usize,
    /// Connections that it must be able to have open.
    pub(crate) connections: usize,
    /// Ports that the sender listens on.
    pub(crate) listen: Vec<SocketAddrV4>,
    /// Where the connections go.
    pub(crate) endpoints: Vec<SocketAddrV4>,
    /// Through the tunnel, or directly.
    pub(crate) encrypted: bool,
}

/// Makes an authority and a certificate with its key for each node: `ca.pem`, `a.pem`, `b.pem`.
pub(crate) fn make_certificates(directory: &Path) -> anyhow::Result<()> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    std::fs::write(directory.join(AUTHORITY), params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    for node in [SENDER, RECEIVER] {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![node.to_owned()])?.signed_by(&key, &issuer)?;
        std::fs::write(directory.join(format!("{node}.pem")), certificate.pem() + &key.serialize_pem())?;
    }
    Ok(())
}

/// Is a node until its input ends.
pub(crate) fn run(node: &str, directory: &Path) -> anyhow::Result<()> {
    let node: Node = serde_json::from_str(node)?;
    let config = Config {
        threads: NonZeroUsize::new(node.threads),
        max_connections: NonZeroU32::new(u32::try_from(node.connections)?),
        ..Config::default()
    };
    let plane = DataPlane::start(config, Metrics::new()?)?;
    plane.tunnels().set_credentials(Some(credentials(&node.name, directory)?));
    let listeners = match node.name.as_str() {
        SENDER => serve_clients(&plane, &node)?,
        RECEIVER => {
            let targets = Arc::new(Endpoints(node.endpoints.iter().copied().map(SocketAddr::V4).collect()));
            vec![plane.open_tunnel(TunnelListenerSpec {
                address: PORT.into(),
                targets,
                inherited: Vec::new(),
            })?]
        }
        other => bail!("there is no node {other:?}"),
    };
    // It is killed when the measurement is over.
    loop {
        std::thread::park();
        ensure!(!listeners.is_empty(), "it listens nowhere");
    }
}

fn serve_clients(plane: &DataPlane, node: &Node) -> anyhow::Result<Vec<mesh::proxy::Listener>> {
    let receiver = NodeName::new(RECEIVER)?;
    if node.encrypted {
        let peer = TunnelPeer { node: receiver, address: PORT.into() };
        plane.tunnels().set_ways(TunnelWays::new(MtlsMode::Strict, None, [peer]));
    }
    let (catalog, mut writer) = Catalog::new();
    let instances = node.endpoints.iter().enumerate().map(|(id, at)| {
        let json = serde_json::json!({
            "service": SERVICE, "id": id.to_string(), "node": RECEIVER, "address": at.ip(), "port": at.port(), "health": "passing",
        });
        Ok(Change::PutInstance(Arc::new(serde_json::from_value(json)?)))
    });
    writer.apply(instances.collect::<anyhow::Result<Vec<_>>>()?);
    let surroundings = Surroundings {
        place: Place::default(),
        metrics: balance::Metrics::new()?,
        on_closing: plane.closer(),
    };
    let balancer = Arc::new(Balancer::new(ServiceName::new(SERVICE)?, None, &surroundings));
    balancer.update(catalog.service(SERVICE).as_deref());
    let open = |address: &SocketAddrV4| {
        let (address, balancer) = (SocketAddr::V4(*address), Arc::clone(&balancer));
        let spec = ListenerSpec {
            address,
            balancer,
            sharing: Sharing::PerThread,
            inherited: Vec::new(),
            overlaps: true,
        };
        Ok(plane.open(spec)?)
    };
    node.listen.iter().map(open).collect()
}

/// Those of the receiver.
#[derive(Debug)]
struct Endpoints(Vec<SocketAddr>);

impl TunnelTargets for Endpoints {
    fn target(&self, call: &TunnelCall<'_>) -> Result<Address, Refusal> {
        self.0.contains(&call.target).then_some(call.target.into()).ok_or(Refusal::NotHere)
    }
}

fn credentials(node: &str, directory: &Path) -> anyhow::Result<TunnelCredentials> {
    let chain = |name: &str| {
        let file = directory.join(name);
        let read = CertificateDer::pem_file_iter(&file)?.collect::<Result<Vec<_>, _>>();
        read.with_context(|| file.display().to_string())
    };
    let mut roots = RootCertStore::empty();
    roots.add(chain(AUTHORITY)?.remove(0))?;
    let roots = Arc::new(roots);
    let mut known = HashMap::new();
    for name in [SENDER, RECEIVER] {
        known.insert(chain(&format!("{name}.pem"))?[0].to_vec(), NodeName::new(name)?);
    }
    let own = format!("{node}.pem");
    let key = PrivateKeyDer::from_pem_file(directory.join(&own))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(Arc::clone(&roots))
        .with_client_auth_cert(chain(&own)?, key.clone_key())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(&own)?, key)?;
    let identify: Identify = Arc::new(move |certificate| known.get(certificate.as_ref()).cloned());
    Ok(TunnelCredentials::new(&client, &server, identify))
}
