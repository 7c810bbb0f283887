//! Whoever comes to the tunnel port: with the wrong certificate, without one, with another version or with nonsense.

use std::net::IpAddr;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::*;
use crate::proxy::tunnel_header::{Header, VERSION, write};

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A connection to the tunnel port by rustls alone.
fn connect(receiver: &Receiver, config: ClientConfig) -> Tls {
    let stream = TcpStream::connect(receiver.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = ServerName::try_from("b").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[kind, high, low], content].concat()
}

fn open(target: SocketAddr) -> Vec<u8> {
    frame(1, write(&Header { target, service: "web", client: None, client_service: None }).unwrap().as_ref())
}

fn heard(tls: &mut Tls, count: usize) -> Vec<u8> {
    let mut heard = vec![0; count];
    tls.read_exact(&mut heard).unwrap();
    heard
}

/// It is closed, and no word was said.
fn is_shown_the_door(tls: &mut Tls) {
    let _ = tls.write_all(b"x");
    assert!(!matches!(tls.read(&mut [0; 1]), Ok(1..)));
}

#[test]
fn whoever_cannot_show_a_certificate_of_the_authority_is_refused_and_counted() {
    let (authority, other) = (Authority::new(), Authority::new());
    let receiver = Receiver::new(&authority, "b", &[]);
    let provider = || Arc::new(rustls::crypto::ring::default_provider());
    let none = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(Arc::clone(&authority.roots))
        .with_no_client_auth();
    let (chain, key) = authority.certificate("a");
    let older = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(Arc::clone(&authority.roots))
        .with_client_auth_cert(chain, key)
        .unwrap();
    let mut foreign = other.client("a");
    // It believes the node, and is not believed.
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::clone(&authority.roots), provider());
    foreign.dangerous().set_certificate_verifier(verifier.build().unwrap());
    for (times, config) in (1..).zip([none, older, foreign]) {
        is_shown_the_door(&mut connect(&receiver, config));
        until("counted", || receiver.failed(TunnelFailure::Handshake) == times);
    }
    let mut plain = TcpStream::connect(receiver.address()).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(!matches!(plain.read(&mut [0; 1]), Ok(1..)));
    until("counted", || receiver.failed(TunnelFailure::Handshake) == 4);
    receiver.end();
}

#[test]
fn whoever_sends_what_nobody_sends_is_broken_off_and_counted() {
    let authority = Authority::new();
    let at = echo();
    let receiver = Receiver::new(&authority, "b", &[at]);
    let nonsense = [
        vec![9],
        frame(0, b""),
        frame(4, b"data before a stream"),
        frame(2, b""),
        frame(6, b""),
        frame(1, &[VERSION; 513]),
        [open(at), frame(2, b"")].concat(),
        [open(at), frame(5, b"x"), frame(4, b"behind the last")].concat(),
    ];
    let mut times = 0;
    for bytes in nonsense {
        let mut tls = connect(&receiver, authority.client("a"));
        tls.write_all(&bytes).unwrap();
        is_shown_the_door(&mut tls);
        times += 1;
        until("counted", || receiver.failed(TunnelFailure::Protocol) == times);
    }
    for bytes in [open(at), frame(3, b"x"), vec![4, 0, 9]] {
        let mut tls = connect(&receiver, authority.client("a"));
        tls.write_all(&open(at)).unwrap();
        assert_eq!(heard(&mut tls, 3), frame(2, b""));
        // In the middle of a stream.
        tls.write_all(&bytes).unwrap();
        is_shown_the_door(&mut tls);
        times += 1;
        until("counted", || receiver.failed(TunnelFailure::Protocol) == times);
    }
    until("ended", || receiver.listener.connections() == 0);
    receiver.end();
}

#[test]
fn a_header_that_is_refused_leaves_the_tunnel_to_the_next_stream() {
    let authority = Authority::new();
    let at = echo();
    let receiver = Receiver::new(&authority, "b", &[at]);
    let mut tls = connect(&receiver, authority.client("a"));
    let foreign = open(SocketAddr::new(IpAddr::from([192, 0, 2, 9]), 80));
    let mut newer = open(at);
    newer[3] = VERSION + 1;
    for (stream, reason) in [
        (foreign, Refusal::NotHere),
        (newer, Refusal::Unsupported),
        (frame(1, b""), Refusal::Malformed),
        (open(nobody()), Refusal::NotHere),
    ] {
        // With words for nobody, which are passed over; the next stream comes behind them.
        tls.write_all(&[&stream[..], &frame(4, b"hello")].concat()).unwrap();
        assert_eq!(heard(&mut tls, 4), frame(3, &[reason as u8]), "{reason}");
        tls.write_all(&frame(6, b"")).unwrap();
    }
    tls.write_all(&[open(at), frame(4, b"hello")].concat()).unwrap();
    assert_eq!(heard(&mut tls, 3), frame(2, b""));
    assert_eq!(heard(&mut tls, 8), frame(4, b"hello"));
    tls.write_all(&frame(5, b"")).unwrap();
    tls.write_all(&[open(at), frame(5, b"and on")].concat()).unwrap();
    assert_eq!(heard(&mut tls, 3), frame(5, b""));
    assert_eq!(heard(&mut tls, 3), frame(2, b""));
    assert_eq!(heard(&mut tls, 3 + 6)[3..], *b"and on");
    receiver.end();
}

#[test]
fn streams_that_are_all_refused_do_not_have_a_thread_for_themselves() {
    let authority = Authority::new();
    let at = echo();
    let receiver = Receiver::new(&authority, "b", &[at]);
    let mut tls = connect(&receiver, authority.client("a"));
    let foreign = open(SocketAddr::new(IpAddr::from([192, 0, 2, 9]), 80));
    tls.write_all(&foreign).unwrap();
    // The handshake is over: from here on nobody needs what is read.
    assert_eq!(heard(&mut tls, 4), frame(3, &[Refusal::NotHere as u8]));
    tls.write_all(&frame(6, b"")).unwrap();
    let mut reading = tls.sock.try_clone().unwrap();
    let reader = in_background(move || drop(std::io::copy(&mut reading, &mut std::io::sink())));
    for _ in 1..5000 {
        tls.write_all(&foreign).unwrap();
        tls.write_all(&frame(6, b"")).unwrap();
    }
    until("all are refused", || receiver.refused(Refusal::NotHere) == 5000);
    tls.sock.shutdown(Shutdown::Both).unwrap();
    reader.join().unwrap();
    receiver.end();
}

#[test]
fn keys_are_renewed_in_the_middle_of_a_stream() {
    let authority = Authority::new();
    let at = echo();
    let receiver = Receiver::new(&authority, "b", &[at]);
    let mut tls = connect(&receiver, authority.client("a"));
    tls.write_all(&[open(at), frame(4, b"one")].concat()).unwrap();
    assert_eq!(heard(&mut tls, 9)[6..], *b"one");
    for _ in 0..3 {
        // It asks for the other side's new keys as well.
        tls.conn.refresh_traffic_keys().unwrap();
        tls.write_all(&frame(4, b"two")).unwrap();
        assert_eq!(heard(&mut tls, 6)[3..], *b"two");
    }
    receiver.end();
}

#[test]
fn a_stream_that_ends_without_a_last_word_is_reset() {
    let (ended, ends) = std::sync::mpsc::channel();
    let at = endpoint(move |mut stream| {
        stream.read_exact(&mut [0; 5]).unwrap();
        ended.send(stream.read(&mut [0; 1]).map_err(|error| error.kind())).unwrap();
    });
    let authority = Authority::new();
    let receiver = Receiver::new(&authority, "b", &[at]);
    let mut tls = connect(&receiver, authority.client("a"));
    tls.write_all(&[open(at), frame(4, b"hello")].concat()).unwrap();
    assert_eq!(heard(&mut tls, 3), frame(2, b""));
    // Cut off by somebody on the way: an end of TCP is not an end of the stream.
    tls.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
    receiver.end();
}
