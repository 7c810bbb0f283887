//! Endpoints that are slow to accept.

use socket2::{Domain, Socket, Type};

use super::*;

/// A listener that takes one connection and answers no further handshake before that one is accepted.
fn full() -> (TcpListener, TcpStream) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let listener = TcpListener::from(socket);
    let first = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener, first)
}

fn impatient() -> Config {
    let (connect_timeout, connect_deadline) = (Duration::from_millis(100), Duration::from_secs(4));
    Config { connect_timeout, connect_deadline, ..Config::default() }
}

#[test]
fn the_only_endpoint_is_waited_for_longer_than_one_of_several() {
    let (listener, _first) = full();
    let world = world(impatient(), &[listener.local_addr().unwrap()]);
    let mut client = world.connect();
    client.write_all(b"x").unwrap();
    until("given up for others", || world.balancer.report().endpoints.iter().any(|e| e.connect_failures > 0));
    let served = in_background(move || {
        let (_, _) = listener.accept().unwrap();
        let (mut second, _) = listener.accept().unwrap();
        second.read_exact(&mut [0; 1]).unwrap();
        second.write_all(b"y").unwrap();
    });
    let mut answer = [0; 1];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"y");
    served.join().unwrap();
    world.end();
}

#[test]
fn an_endpoint_that_does_not_answer_is_left_for_another() {
    let (listener, _first) = full();
    let other = endpoint(|mut stream| stream.write_all(b"z").unwrap());
    let endpoints = [listener.local_addr().unwrap(), other];
    // By the node's word, and by that of a service where the node would wait to the end.
    let patient =
        Config { connect_timeout: Duration::from_secs(60), connect_deadline: PATIENCE, ..Config::default() };
    for (config, settings) in [(impatient(), "{}"), (patient, r#"{"timeouts": {"connect": "100ms"}}"#)] {
        let settings = serde_json::from_str(settings).unwrap();
        let world = world_with(config, &endpoints, &settings, Sharing::PerThread);
        for _ in 0..2 {
            let mut answer = [0; 1];
            world.connect().read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"z");
        }
        world.end();
    }
}

#[test]
fn the_search_ends_at_its_deadline() {
    let (listener, _first) = full();
    let config = Config { connect_deadline: Duration::from_millis(300), ..impatient() };
    let world = world(config, &[listener.local_addr().unwrap()]);
    let begun = Instant::now();
    assert_eq!(world.connect().read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    until("counted", || world.dropped(Dropped::ConnectDeadline) == 1);
    world.end();
}
