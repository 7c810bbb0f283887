//! Over TLS and HTTPS: who is spoken with, how often, and how long.

use std::path::Path;

use nerve::http::{CertificateFiles, FilePath, Tls};

use super::*;
use crate::dns::config::Encrypted;
use crate::dns::metrics::{Dropped, HttpRefusal, Stream, Transport, Verdict};

fn file(path: &Path) -> FilePath {
    FilePath::absolute(path.to_owned()).unwrap()
}

/// Puts a certificate of its own for `a.example` into a directory.
fn certify(directory: &Path) {
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    std::fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
}

fn encrypted(directory: &Path, mut config: Config) -> Config {
    let any: Vec<SocketAddr> = vec!["127.0.0.1:0".parse().unwrap()];
    let files = ["cert.pem", "key.pem"].map(|name| file(&directory.join(name)));
    let [cert_file, key_file] = files;
    let certificate = CertificateFiles { cert_file, key_file };
    config.encrypted = Some(Encrypted { tls_listen: any.clone(), https_listen: any, certificate });
    config
}

fn at(world: &World, over: Over) -> SocketAddr {
    let of = world.handle.listeners().into_iter().find(|listener| listener.over == over);
    of.unwrap().state.unwrap()
}

/// A client who believes what stands in the directory.
async fn connect(
    server: SocketAddr,
    directory: &Path,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send, nerve::http::TlsError> {
    let tls = Tls::verified(Some(file(&directory.join("cert.pem"))), Some("a.example".to_owned()));
    tls.over(TcpStream::connect(server).await.unwrap(), "a.example").await
}

/// Sends a request of HTTP/1.1 as it is, and tells what comes back until the end.
async fn request(server: SocketAddr, directory: &Path, head: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut stream = connect(server, directory).await.unwrap();
    let head = format!("{head}\r\nHost: a.example\r\nConnection: close\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let body = answer.split_off(end + 4);
    (String::from_utf8(answer).unwrap().to_ascii_lowercase(), body)
}

#[tokio::test]
async fn a_thousand_queries_of_one_connection_pass_one_that_waits() {
    let directory = tempfile::tempdir().unwrap();
    certify(directory.path());
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut config = encrypted(directory.path(), forwarding_to(&[silent.local_addr().unwrap()]));
    config.limits.upstream_timeout = Duration::from_millis(500);
    let world = start(config);
    let stream = connect(at(&world, Over::Tls), directory.path()).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let (slow, quick) = (query("example.com.", RecordType::A), query("web.mesh.internal.", RecordType::A));
    let asked = async {
        write_framed(&mut write, &slow).await;
        for id in 0..1000 {
            let mut quick = quick.clone();
            quick.metadata.id = id;
            write_framed(&mut write, &quick).await;
        }
    };
    let answered = async {
        let mut order = Vec::new();
        for _ in 0..=1000 {
            order.push(read_framed(&mut read).await);
        }
        order
    };
    let ((), order) = tokio::join!(asked, answered);
    assert_eq!(order.last().unwrap().queries[0].name().to_ascii(), "example.com.");
    assert!(order[..1000].iter().zip(0..).all(|(answer, id)| answer.metadata.id == id));
    assert_eq!(world.metrics.queries(Transport::Tls, Verdict::Answered), 1000);
    assert_eq!(world.metrics.connections(Stream::Tls).get(), 1);
}

#[tokio::test]
async fn a_certificate_is_exchanged_under_open_connections_and_a_bad_one_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let world = start(encrypted(directory.path(), config()));
    let tls = at(&world, Over::Tls);
    let problem = || world.handle.problems().join("\n");
    eventually("there is none, and it is told", || problem().contains("turned away")).await;
    certify(directory.path());
    assert!(connect(tls, directory.path()).await.is_err() || problem().is_empty());
    eventually("it is read", || problem().is_empty()).await;
    let expires = world.metrics.certificate_not_after.get();
    assert!(
        u64::try_from(expires).unwrap() > SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
    );
    let mut open = connect(tls, directory.path()).await.unwrap();
    let old = std::fs::read(directory.path().join("cert.pem")).unwrap();
    std::fs::write(directory.path().join("key.pem"), "none").unwrap();
    eventually("it is bad", || problem().contains("clients are shown the certificate of before")).await;
    assert!(connect(tls, directory.path()).await.is_ok());
    certify(directory.path());
    eventually("the next one is good", || problem().is_empty()).await;
    let quick = query("web.mesh.internal.", RecordType::A);
    write_framed(&mut open, &quick).await;
    assert_eq!(read_framed(&mut open).await.answers.len(), 2);
    assert!(connect(tls, directory.path()).await.is_ok(), "the new one is shown");
    std::fs::write(directory.path().join("cert.pem"), old).unwrap();
    assert!(connect(tls, directory.path()).await.is_err(), "the old one is not");
    eventually("who does not want it is counted", || world.metrics.dropped.get(Dropped::TlsFailed) > 0).await;
}

#[tokio::test]
async fn connections_of_tls_are_bounded_in_number_and_in_the_time_of_the_handshake() {
    let directory = tempfile::tempdir().unwrap();
    certify(directory.path());
    let mut config = encrypted(directory.path(), config());
    // Each listener holds the place of whoever comes next.
    config.limits.tcp_connections = 3;
    (config.limits.tls_handshake, config.limits.tcp_idle) =
        (Duration::from_millis(200), Duration::from_millis(300));
    let world = start(config);
    let dropped = |reason| world.metrics.dropped.get(reason);
    let mut mute = TcpStream::connect(at(&world, Over::Tls)).await.unwrap();
    eventually("it is open", || world.metrics.connections(Stream::Tls).get() == 1).await;
    // The places are those of all.
    let _held = TcpStream::connect(world.address).await.unwrap();
    eventually("it is held", || world.metrics.connections(Stream::Tcp).get() == 1).await;
    let mut other = TcpStream::connect(world.address).await.unwrap();
    assert!(matches!(timeout(PATIENCE, other.read(&mut [0; 1])).await.unwrap(), Ok(0) | Err(_)));
    assert_eq!(dropped(Dropped::TcpConnectionLimit), 1);
    assert!(matches!(timeout(PATIENCE, mute.read(&mut [0; 1])).await.unwrap(), Ok(0) | Err(_)));
    eventually("it took too long", || dropped(Dropped::TlsTimeout) == 1).await;
    for over in [Over::Tls, Over::Https] {
        let idle = dropped(Dropped::TcpIdle);
        let mut quiet = connect(at(&world, over), directory.path()).await.unwrap();
        assert!(matches!(timeout(PATIENCE, quiet.read(&mut [0; 1])).await.unwrap(), Ok(0) | Err(_)));
        eventually("it was idle", || dropped(Dropped::TcpIdle) > idle).await;
    }
    let mut plain = TcpStream::connect(at(&world, Over::Tls)).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    eventually("it is no TLS", || dropped(Dropped::TlsFailed) == 1).await;
}

#[tokio::test]
async fn https_answers_what_is_a_query_and_says_what_is_none() {
    let directory = tempfile::tempdir().unwrap();
    certify(directory.path());
    let world = start(encrypted(directory.path(), config()));
    let https = at(&world, Over::Https);
    let mut asked = query("web.mesh.internal.", RecordType::A);
    asked.metadata.id = 0;
    let octets = asked.to_vec().unwrap();
    let head = format!(
        "POST /dns-query HTTP/1.1\r\nContent-Type: application/dns-message\r\nContent-Length: {}",
        octets.len()
    );
    let (head, body) = request(https, directory.path(), &head, &octets).await;
    assert!(head.starts_with("http/1.1 200") && head.contains("cache-control: max-age=5\r"), "{head}");
    assert!(head.contains("content-type: application/dns-message"), "{head}");
    assert_eq!(addresses(&Message::from_vec(&body).unwrap()), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(world.metrics.queries(Transport::Https, Verdict::Answered), 1);
    let none = "GET /dns-query?dns=AAABAAABAAAAAAAABG5vbmUEbWVzaAhpbnRlcm5hbAAAAQAB HTTP/1.1";
    let (head, body) = request(https, directory.path(), none, &[]).await;
    assert!(head.starts_with("http/1.1 200") && head.contains("max-age=2\r"), "{head}");
    assert_eq!(Message::from_vec(&body).unwrap().metadata.response_code.low(), 3);
    for (line, status, reason) in [
        ("GET /dns-query?dns=AAA HTTP/1.1", "400", HttpRefusal::Malformed),
        ("GET /other HTTP/1.1", "404", HttpRefusal::NoSuchPath),
        ("DELETE /dns-query HTTP/1.1", "405", HttpRefusal::Method),
        ("POST /dns-query HTTP/1.1\r\nContent-Length: 0", "415", HttpRefusal::MediaType),
        (
            "POST /dns-query HTTP/1.1\r\nContent-Type: application/dns-message\r\nContent-Length: 5000",
            "413",
            HttpRefusal::TooLong,
        ),
    ] {
        let before = world.metrics.https_refused.get(reason);
        let (head, _) = request(https, directory.path(), line, &[]).await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{line}: {head}");
        assert_eq!(world.metrics.https_refused.get(reason), before + 1, "{line}");
    }
}
