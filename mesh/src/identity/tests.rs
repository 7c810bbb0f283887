//! Nodes that join, and those that may not.

use std::num::NonZeroU32;

use nerve::store::{EmbeddedStore, Metrics as StoreMetrics};
use rustls::client::danger::ServerCertVerifier;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::join::{Ask, JoinError, ask};
use super::protocol::PROTOCOL;
use super::revoked::Revoked;
use super::tls::{Believed, Peers, Shown};
use super::*;

/// A node that signs, as others see it.
struct World {
    directory: TempDir,
    signer: Arc<Signer>,
    desk: Arc<Desk>,
    authorities: watch::Sender<Arc<Authorities>>,
    course: watch::Sender<Memory>,
    address: SocketAddr,
    store: Arc<dyn Store>,
    metrics: Metrics,
    tasks: Tasks,
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn terms(uses: u32, name: Option<&str>) -> Terms {
    Terms { life: Duration::from_secs(60), uses: NonZeroU32::new(uses), node: name.map(node) }
}

impl World {
    async fn new() -> Self {
        Self::of("mesh.internal", Duration::from_secs(3600)).await
    }

    async fn of(trust_domain: &str, life: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authorities = Authorities::create(directory.path(), &trust_domain.parse().unwrap()).unwrap();
        let (authorities, course) = (watch::Sender::new(Arc::new(authorities)), watch::Sender::default());
        let store: Arc<dyn Store> =
            Arc::new(EmbeddedStore::open(None, Duration::from_secs(5), StoreMetrics::default()).unwrap());
        let metrics = Metrics::new().unwrap();
        let own = Certifier::Own { authorities: authorities.subscribe(), course: course.subscribe(), life };
        let (standing, kept) = (Arc::default(), Arc::clone(&store));
        let signer = Signer { certifier: own, standing, store: kept, metrics: metrics.clone() };
        let signer = Arc::new(signer);
        let desk = Arc::new(Desk::new(Arc::clone(&signer), node("signer-1")).unwrap());
        desk.renew().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, tasks) = (listener.local_addr().unwrap(), Tasks::new());
        desk.serve(listener, &tasks);
        Self { directory, signer, desk, authorities, course, address, store, metrics, tasks }
    }

    async fn token(&self, terms: Terms) -> Token {
        self.signer.make_token(terms).await.unwrap()
    }

    async fn join(&self, name: &str, token: &Token) -> Result<Credentials, JoinError> {
        ask(self.address, &node(name), &Ask::Token(token)).await
    }

    /// What a node that has these does at its next start.
    async fn again(&self, name: &str, credentials: &Credentials) -> Result<Credentials, JoinError> {
        let standing = Arc::new(Standing::default());
        standing.take(credentials).unwrap();
        ask(self.address, &node(name), &Ask::Again(&standing)).await
    }

    fn refused(&self, reason: &str) -> u64 {
        self.metrics.refused.with_label_values(&[reason]).get()
    }
}

fn reason<T: std::fmt::Debug>(answer: Result<T, JoinError>) -> String {
    match answer {
        Err(JoinError::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_joins_by_a_token_and_renews_by_its_certificate() {
    let world = World::new().await;
    let first = world.join("a", &world.token(terms(1, None)).await).await.unwrap();
    assert_eq!(first.certified.id.to_string(), "spiffe://mesh.internal/node/a");
    let second = world.again("a", &first).await.unwrap();
    assert_ne!(first.chain, second.chain);
    assert_eq!(second.certified.id, first.certified.id);
    assert_eq!(reason(world.again("b", &second).await), "somebody_else");
    let by = |by: &str| world.metrics.certified.with_label_values(&[by]).get();
    assert_eq!((by("token"), by("certificate"), world.refused("somebody_else")), (1, 1, 1));
    world.tasks.shutdown().await;
}

#[tokio::test]
async fn a_token_is_good_for_what_it_says_and_no_more() {
    let world = World::new().await;
    let once = world.token(terms(1, None)).await;
    world.join("a", &once).await.unwrap();
    assert_eq!(reason(world.join("b", &once).await), "token_used_up");
    let named = world.token(terms(2, Some("b"))).await;
    assert_eq!(reason(world.join("c", &named).await), "token_for_another");
    let over = world.token(Terms { life: Duration::ZERO, ..terms(0, None) }).await;
    assert_eq!(reason(world.join("c", &over).await), "token_expired");
    // A name that somebody has does not cost a use.
    let other = world.token(terms(1, None)).await;
    assert_eq!(reason(world.join("a", &other).await), "name_taken");
    world.join("c", &other).await.unwrap();
    let first = world.join("d", &world.token(terms(1, None)).await).await.unwrap();
    // Whose place was taken by an operator's word does not renew.
    let second = world.join("d", &world.token(terms(1, Some("d"))).await).await.unwrap();
    assert_eq!(reason(world.again("d", &first).await), "name_taken");
    world.again("d", &second).await.unwrap();
}

#[tokio::test]
async fn who_is_in_stays_in_while_the_store_is_away_and_nobody_else_comes_in() {
    let world = World::new().await;
    let any = world.token(terms(0, None)).await;
    let a = world.join("a", &any).await.unwrap();
    world.store.shutdown().await;
    world.again("a", &a).await.unwrap();
    assert_eq!(reason(world.join("b", &any).await), "store");
}

#[tokio::test]
async fn a_token_of_another_authority_is_good_for_nothing_here() {
    let (world, other) = (World::new().await, World::new().await);
    let foreign = other.token(terms(0, None)).await;
    // The node does not even speak with it.
    let error = world.join("a", &foreign).await.unwrap_err();
    assert!(
        matches!(&error, JoinError::Unreachable(why) if why.to_string().contains("UnknownIssuer")),
        "{error}"
    );
    // Nor does it believe such a one where somebody makes it.
    let grant = Grant { root: world.authorities.borrow().root().fingerprint(), ..foreign.grant().clone() };
    let forged = Token::forged(&grant);
    assert_eq!(reason(world.join("a", &forged).await), "token_forged");
}

#[tokio::test]
async fn who_has_neither_token_nor_certificate_is_nobody() {
    let world = World::new().await;
    let (stranger, other) = (Arc::new(Standing::default()), World::new().await);
    let theirs = other.join("a", &other.token(terms(1, None)).await).await.unwrap();
    // It believes this mesh, and has nothing to show.
    let ours = world.join("b", &world.token(terms(1, None)).await).await.unwrap();
    let believing =
        |roots: &Credentials| tls::Roots::new(&roots.roots, roots.certified.id.trust_domain.clone()).unwrap();
    let nothing = Arc::new(Standing::believing(believing(&ours)));
    assert_eq!(reason(ask(world.address, &node("c"), &Ask::Again(&nothing)).await), "nobody");
    // Another mesh's certificate, of an authority that calls itself the same.
    stranger.take(&theirs).unwrap();
    stranger.believe(believing(&ours));
    let error = ask(world.address, &node("a"), &Ask::Again(&stranger)).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable(_)), "{error}");
    assert_eq!(world.refused("certificate_unknown_issuer"), 1);
}

#[tokio::test]
async fn a_revoked_node_is_refused_until_it_is_let_in_by_name() {
    let world = World::new().await;
    let any = world.token(terms(0, None)).await;
    let a = world.join("a", &any).await.unwrap();
    let mut revoked = Revoked::default();
    let revocation = enrolment::revoke(&*world.store, &node("a"), LONGEST_LIFE).await.unwrap();
    revoked.put(node("a"), revocation);
    world.desk.refuse(revoked);
    let error = world.again("a", &a).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable(_)), "{error}");
    assert_eq!(world.refused("certificate_revoked"), 1);
    assert_eq!(reason(world.join("a", &any).await), "revoked");
    let mut anew = world.join("a", &world.token(terms(0, Some("a"))).await).await.unwrap();
    // What was made within the second of the revocation is refused with the rest.
    while world.again("a", &anew).await.is_err() {
        anew = world.join("a", &world.token(terms(0, Some("a"))).await).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_no_certificate() {
    let world = World::of("mesh.internal", Duration::from_secs(3)).await;
    let a = world.join("a", &world.token(terms(1, None)).await).await.unwrap();
    // Certificates end in whole seconds.
    while a.certified.not_after + Duration::from_secs(1) >= SystemTime::now() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // That of the node that signs has ended as well, and is not what it is about.
    world.desk.renew().await.unwrap();
    assert!(matches!(world.again("a", &a).await, Err(JoinError::Unreachable(_))));
    assert_eq!(world.refused("certificate_expired"), 1);
}

#[tokio::test]
async fn only_who_signs_is_asked() {
    let world = World::new().await;
    let token = world.token(terms(0, None)).await;
    let node_a = world.join("a", &token).await.unwrap();
    // A node that has its certificate, and is none that signs, at a port of its own.
    let standing = Arc::new(Standing::default());
    standing.take(&node_a).unwrap();
    let verifier = Believed { standing: Arc::clone(&standing), peers: Peers::Nodes, may_be_nobody: true };
    let config = tls::server(Arc::new(verifier), Arc::new(Shown(standing)), PROTOCOL).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, name) = (listener.local_addr().unwrap(), node("b"));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let accepted = async { acceptor.accept(listener.accept().await.unwrap().0).await.is_ok() };
    let by = Ask::Token(&token);
    let (answer, accepted) = tokio::join!(ask(address, &name, &by), accepted);
    let error = answer.unwrap_err();
    assert!(matches!(&error, JoinError::Unreachable(_)), "{error}");
    assert!(!accepted);
}

#[tokio::test]
async fn what_is_not_tls_or_not_asked_for_is_not_answered() {
    let world = World::new().await;
    for octets in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 600], &[22, 3, 1, 0xff, 0xff]] {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(octets).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.len() < 32, "an alert at most: {answer:?}");
    }
    let token = world.token(terms(1, None)).await;
    world.join("a", &token).await.unwrap();
    assert!(world.refused("broken") >= 3);
}

/// Believes anyone.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn an_older_tls_is_not_spoken() {
    let world = World::new().await;
    let config = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth()
    };
    for (versions, works) in [(&[&rustls::version::TLS12], false), (&[&rustls::version::TLS13], true)] {
        let mut config = config(versions);
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        let stream = TcpStream::connect(world.address).await.unwrap();
        let name = rustls::pki_types::ServerName::IpAddress(world.address.ip().into());
        let connected = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        assert_eq!(connected.is_ok(), works);
    }
}

#[tokio::test]
async fn an_authority_is_kept_from_others_and_not_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new().await;
    let path = world.directory.path();
    let again = Authorities::create(path, &TrustDomain::default());
    assert!(matches!(again, Err(AuthorityError::Exists(_))), "{again:?}");
    let same = Authorities::load(path).unwrap();
    assert_eq!(same.fingerprints(), world.authorities.borrow().fingerprints());
    assert!(
        world.token(terms(1, None)).await.is_proved(same.root().token_key()),
        "each who signs knows the others' tokens"
    );
    let key = path.join("root-key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Authorities::load(path), Err(AuthorityError::Open { mode: 0o640, .. })));
    let other = World::new().await;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::copy(other.directory.path().join("root-key.pem"), &key).unwrap();
    assert!(matches!(Authorities::load(path), Err(AuthorityError::Key { .. })));
}

impl World {
    /// As if every node that signs had heard of it.
    async fn rotate(&self, phase: Phase) {
        let (from, to) = self.authorities.borrow().fingerprints();
        self.course.send_modify(|memory| {
            memory.take(Rotation { from, to: to.unwrap(), phase });
        });
        self.desk.renew().await.unwrap();
    }
}

#[tokio::test]
async fn whoever_believes_one_of_two_authorities_gets_on_with_who_has_the_other_ones() {
    let world = World::new().await;
    let any = world.token(terms(0, None)).await;
    let away = world.join("away", &any).await.unwrap();
    world.authorities.send_replace(Arc::new(Authorities::begin(world.directory.path()).unwrap()));
    let roots = |of: &Credentials| of.roots.len();

    world.rotate(Phase::Trust).await;
    let both = world.join("a", &any).await.unwrap();
    assert_eq!((roots(&away), roots(&both), both.chain.len()), (1, 2, 1));
    assert_eq!(tls::issuer(&both.chain[0], &both.roots), tls::issuer(&away.chain[0], &away.roots));

    // By the token of before, and by the certificate of who has missed all of it.
    world.rotate(Phase::Renew).await;
    let new = world.join("b", &any).await.unwrap();
    let fresh = world.join("c", &world.token(terms(1, None)).await).await.unwrap();
    assert_ne!(tls::issuer(&new.chain[0], &new.roots), tls::issuer(&away.chain[0], &away.roots));
    let back = world.again("away", &away).await.unwrap();
    assert_eq!((roots(&back), roots(&fresh), back.chain.len()), (2, 2, 2));
    for (one, other) in [(&away, &new), (&new, &away), (&both, &new), (&both, &away), (&away, &fresh)] {
        assert!(get_on(one, other).await, "{one:?} {other:?}");
    }

    // Taken back, and begun again: nobody is lost.
    world.rotate(Phase::Revert).await;
    let reverted = world.again("b", &new).await.unwrap();
    let old_alone = world.again("a", &both).await.unwrap();
    assert!(get_on(&reverted, &back).await && get_on(&away, &back).await && get_on(&old_alone, &back).await);
}

#[tokio::test]
async fn what_was_dropped_lets_nobody_in() {
    let world = World::new().await;
    let before = world.token(terms(0, None)).await;
    let old = world.join("a", &before).await.unwrap();
    world.authorities.send_replace(Arc::new(Authorities::begin(world.directory.path()).unwrap()));
    world.rotate(Phase::Trust).await;
    let late = world.join("b", &before).await.unwrap();
    world.rotate(Phase::Renew).await;
    let both = world.again("b", &late).await.unwrap();
    world.rotate(Phase::Done).await;
    // The old one's certificate is none, be it that it holds; and who believes that one alone believes nobody here.
    assert!(matches!(world.again("a", &old).await, Err(JoinError::Unreachable(_))));
    assert!(matches!(world.again("b", &late).await, Err(JoinError::Unreachable(_))));
    assert!(world.refused("certificate_unknown_issuer") >= 1);
    assert!(matches!(world.join("c", &before).await, Err(JoinError::Unreachable(_))));
    let grant = before.grant().clone();
    let token = Token::make(world.authorities.borrow().root().token_key(), grant.root, terms(0, None));
    let claimed = world.signer.claim_of(&token, &node("c")).await;
    assert_eq!(claimed.unwrap_err().as_str(), "token_replaced");
    let last = world.again("b", &both).await.unwrap();
    assert_eq!(last.roots.len(), 1);
    world.join("c", &world.token(terms(1, None)).await).await.unwrap();
    // The directory goes on with the new one alone.
    world.authorities.send_replace(Arc::new(Authorities::promote(world.directory.path()).unwrap()));
    world.again("b", &last).await.unwrap();
}

/// Does a node that has these get on with one that has those, whoever connects?
async fn get_on(client: &Credentials, server: &Credentials) -> bool {
    let standing = |credentials: &Credentials| {
        let standing = Arc::new(Standing::default());
        standing.take(credentials).unwrap();
        standing
    };
    let believed = |standing: &Arc<Standing>| {
        Arc::new(Believed { standing: Arc::clone(standing), peers: Peers::Nodes, may_be_nobody: false })
    };
    let (client, server) = (standing(client), standing(server));
    let shown = Arc::new(Shown(Arc::clone(&client)));
    let client = tls::client(believed(&client), Some(shown), PROTOCOL).unwrap();
    let server = tls::server(believed(&server), Arc::new(Shown(Arc::clone(&server))), PROTOCOL).unwrap();
    let (one, other) = tokio::io::duplex(64 * 1024);
    let name = rustls::pki_types::ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let connected = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, one);
    let accepted = tokio_rustls::TlsAcceptor::from(Arc::new(server)).accept(other);
    let (connected, accepted) = tokio::join!(connected, accepted);
    connected.is_ok() && accepted.is_ok()
}

#[tokio::test]
async fn what_a_node_has_survives_its_restart() {
    let world = World::new().await;
    let a = world.join("a", &world.token(terms(1, None)).await).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    assert!(Credentials::load(directory.path()).unwrap().is_none());
    a.save(directory.path()).unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(
        &std::fs::metadata(directory.path().join("identity.json")).unwrap(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let recalled = Credentials::load(directory.path()).unwrap().unwrap();
    assert_eq!((&recalled.chain, &recalled.roots), (&a.chain, &a.roots));
    world.again("a", &recalled).await.unwrap();
    std::fs::write(directory.path().join("identity.json"), "{}").unwrap();
    assert!(Credentials::load(directory.path()).is_err());
}
