//! What a service's settings do to its connections.

use super::*;

/// An endpoint that tells what it has read up to `end`, then answers and waits for the client to go.
fn listener(end: &'static [u8]) -> (SocketAddr, std::sync::mpsc::Receiver<Vec<u8>>) {
    let (heard, hears) = std::sync::mpsc::channel();
    let address = endpoint(move |mut stream| {
        let heard = heard.clone();
        let _ = in_background(move || {
            let (mut bytes, mut byte) = (Vec::new(), [0; 1]);
            while !bytes.ends_with(end) && matches!(stream.read(&mut byte), Ok(1)) {
                bytes.push(byte[0]);
            }
            // Said first, so that whoever is answered finds it there.
            let _ = heard.send(bytes);
            let _ = stream.write_all(b"heard");
            let _ = stream.read(&mut byte);
        });
    });
    (address, hears)
}

fn heard(stream: &mut TcpStream) {
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"heard");
}

#[test]
fn an_endpoint_that_asks_for_it_is_told_the_client_before_anything_else() {
    for (setting, end, said) in [
        ("proxy_v1", &b"hello"[..], &b"hello"[..]),
        ("proxy_v1", b"\r\n", b""),
        ("proxy_v2", b"hello", b"hello"),
    ] {
        let (at, hears) = listener(end);
        let settings = serde_json::json!({"client_address": setting});
        let world = world_with(Config::default(), &[at], &settings, Sharing::PerThread);
        let mut client = world.connect();
        client.write_all(said).unwrap();
        heard(&mut client);
        let bytes = hears.recv_timeout(PATIENCE).unwrap();
        let header = proxy_protocol::read(&bytes).unwrap().unwrap();
        let addresses = header.addresses.unwrap();
        let expected = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        assert_eq!((addresses.source, addresses.destination), expected);
        assert_eq!(&bytes[header.length..], said);
        world.end();
    }
}

#[test]
fn a_trusted_proxy_says_who_the_client_is_however_slowly() {
    const SAID: &[u8] = b"PROXY TCP4 198.51.100.7 203.0.113.9 4711 443\r\nhello";
    let (at, hears) = listener(b"hello");
    let config = Config { trusted_proxies: Arc::new(["127.0.0.0/8".parse().unwrap()]), ..Config::default() };
    let settings = serde_json::json!({"client_address": "proxy_v1"});
    let world = world_with(config, &[at], &settings, Sharing::PerThread);
    let mut client = world.connect();
    client.set_nodelay(true).unwrap();
    for byte in SAID {
        client.write_all(&[*byte]).unwrap();
    }
    heard(&mut client);
    assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), SAID);
    world.end();
}

#[test]
fn a_trusted_proxy_that_says_nothing_of_the_kind_is_reset_and_counted() {
    let config = Config { trusted_proxies: Arc::new(["127.0.0.0/8".parse().unwrap()]), ..Config::default() };
    let world = world(config, &[nobody()]);
    let mut client = world.connect();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    until("counted", || world.dropped(Dropped::ProxyHeader) == 1);
    world.end();
}

#[test]
fn who_finds_every_endpoint_full_waits_and_is_served_in_turn() {
    let (at, _hears) = listener(b"hello");
    let settings = serde_json::json!({"limits": {"endpoint_connections": 1}});
    let world = world_with(Config::default(), &[at], &settings, Sharing::PerThread);
    let mut clients: Vec<_> = (0..3).map(|_| world.connect()).collect();
    for client in &mut clients {
        client.write_all(b"hello").unwrap();
    }
    // On two threads the order is not theirs to choose; each is served when one before it has gone.
    for client in &clients {
        client.set_nonblocking(true).unwrap();
    }
    while !clients.is_empty() {
        let mut served = None;
        until("the next is served", || {
            served = clients.iter().position(|client| matches!(client.peek(&mut [0; 5]), Ok(5)));
            served.is_some()
        });
        drop(clients.swap_remove(served.unwrap()));
    }
    until("ended", || world.listener.connections() == 0);
    world.end();
}

#[test]
fn who_waits_too_long_or_may_not_wait_is_reset_and_counted() {
    for (limits, reason) in [
        (serde_json::json!({"endpoint_connections": 1, "queue_timeout": "50ms"}), Dropped::QueueTimeout),
        (serde_json::json!({"endpoint_connections": 1, "at_limit": "refuse"}), Dropped::AtLimit),
        (serde_json::json!({"endpoint_connections": 1, "queue": 0}), Dropped::AtLimit),
        (serde_json::json!({"service_connections": 1}), Dropped::AtLimit),
        (serde_json::json!({"client_connections": 1}), Dropped::AtLimit),
    ] {
        let (at, _hears) = listener(b"hello");
        let settings = serde_json::json!({"limits": limits});
        let world = world_with(Config::default(), &[at], &settings, Sharing::PerThread);
        let mut first = world.connect();
        first.write_all(b"hello").unwrap();
        heard(&mut first);
        let refused = world.connect().read(&mut [0; 1]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset, "{limits}");
        until("counted", || world.dropped(reason) == 1);
        world.end();
    }
}

#[test]
fn connections_of_an_endpoint_that_died_are_closed_once_no_answer_is_awaited() {
    let (at, _hears) = listener(b"hello");
    let mut world = world(Config::default(), &[at]);
    let [mut answered, mut waiting] = [world.connect(), world.connect()];
    answered.write_all(b"hello").unwrap();
    heard(&mut answered);
    waiting.write_all(b"hel").unwrap();
    until("both are open", || world.listener.connections() == 2);
    world.health(at, "critical");
    // By FIN: a pool sees that the connection is of no use any more.
    assert_eq!(answered.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(world.dropped(Dropped::EndpointDied), 1);
    waiting.write_all(b"lo").unwrap();
    heard(&mut waiting);
    world.end();
}

#[test]
fn an_endpoint_that_came_back_keeps_its_connections() {
    let (at, _hears) = listener(b"hello");
    let mut world = world(Config::default(), &[at]);
    let mut client = world.connect();
    client.write_all(b"hello").unwrap();
    heard(&mut client);
    world.health(at, "critical");
    world.health(at, "passing");
    client.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    world.end();
}

#[test]
fn what_the_client_said_before_an_endpoint_was_found_arrives_whole() {
    const LENGTH: usize = 300_000;
    let question: Vec<u8> = (0..=255).cycle().take(LENGTH).collect();
    let echo = endpoint(|mut stream| {
        let mut bytes = vec![0; LENGTH];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    for endpoints in [vec![echo], vec![nobody(), nobody(), echo]] {
        let world = world(Config::default(), &endpoints);
        let mut client = world.connect();
        client.write_all(&question).unwrap();
        let mut answer = vec![0; LENGTH];
        client.read_exact(&mut answer).unwrap();
        assert!(answer == question);
        world.end();
    }
}

#[test]
fn urgent_data_stops_nothing() {
    let (at, hears) = listener(b"end");
    let world = world(Config::default(), &[at]);
    let mut client = world.connect();
    client.set_nodelay(true).unwrap();
    for part in [&b"one"[..], b"two"] {
        client.write_all(part).unwrap();
        assert_eq!(SockRef::from(&client).send_out_of_band(b"!").unwrap(), 1);
    }
    client.write_all(b"end").unwrap();
    heard(&mut client);
    // What is out of band is out of the stream, unless a second one pushes it back in (tcp(7)).
    let heard = hears.recv_timeout(PATIENCE).unwrap();
    assert!(heard == b"onetwoend" || heard == b"one!twoend", "{}", heard.escape_ascii());
    world.end();
}
