//! Streams through a tunnel are what connections are without it.

use super::*;

#[test]
fn a_client_that_has_finished_sending_still_gets_its_answer() {
    let (world, receiver) = pair(&[endpoint(|mut stream| {
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        stream.write_all(format!("heard {question}").as_bytes()).unwrap();
    })]);
    let mut client = world.connect();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "heard hello");
    let asked = receiver.here.asked.lock().unwrap().clone();
    assert_eq!(asked, [("a".to_owned(), "web".to_owned(), Some(client.local_addr().unwrap()))]);
    world.end();
    receiver.end();
}

#[test]
fn an_endpoint_that_has_finished_sending_still_hears_the_client() {
    let (heard, hears) = std::sync::mpsc::channel();
    let (world, receiver) = pair(&[endpoint(move |mut stream| {
        stream.write_all(b"welcome").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        heard.send(rest).unwrap();
    })]);
    let mut client = world.connect();
    let mut welcome = String::new();
    client.read_to_string(&mut welcome).unwrap();
    client.write_all(b"thanks").unwrap();
    drop(client);
    assert_eq!((welcome.as_str(), hears.recv_timeout(PATIENCE).unwrap().as_str()), ("welcome", "thanks"));
    world.end();
    receiver.end();
}

#[test]
fn a_client_that_leaves_without_a_word_ends_the_stream_in_order() {
    let (heard, hears) = std::sync::mpsc::channel();
    let (world, receiver) = pair(&[endpoint(move |mut stream| {
        heard.send(stream.read(&mut [0; 1]).map_err(|error| error.kind())).unwrap();
    })]);
    drop(world.connect());
    assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), Ok(0));
    world.end();
    receiver.end();
}

#[test]
fn a_reset_by_the_endpoint_reaches_the_client_as_a_reset() {
    let (world, receiver) = pair(&[endpoint(|mut stream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    })]);
    for times in 1..=3 {
        let mut client = world.connect();
        client.write_all(b"x").unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        until("counted", || world.dropped(Dropped::EndpointReset) == times);
    }
    world.end();
    receiver.end();
}

#[test]
fn a_reset_by_the_client_reaches_the_endpoint_as_a_reset() {
    let (ended, ends) = std::sync::mpsc::channel();
    let (world, receiver) = pair(&[endpoint(move |mut stream| {
        stream.write_all(b"x").unwrap();
        ended.send(stream.read(&mut [0; 1]).map_err(|error| error.kind())).unwrap();
    })]);
    for _ in 0..3 {
        let mut client = world.connect();
        client.read_exact(&mut [0; 1]).unwrap();
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
    }
    world.end();
    receiver.end();
}

#[test]
fn streams_both_ways_at_once_arrive_whole_past_slow_readers() {
    let (world, receiver) = pair(&[endpoint(|mut stream| {
        let mut sending = stream.try_clone().unwrap();
        let sender = in_background(move || {
            sending.write_all(&pattern()).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        assert!(read_slowly(&mut stream) == pattern());
        sender.join().unwrap();
        stream.shutdown(Shutdown::Both).unwrap_or_default();
    })]);
    for _ in 0..2 {
        let mut client = world.connect();
        let mut sending = client.try_clone().unwrap();
        let sender = in_background(move || {
            sending.write_all(&pattern()).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        assert!(read_slowly(&mut client) == pattern());
        sender.join().unwrap();
        until("ended", || world.listener.connections() + receiver.listener.connections() == 0);
    }
    world.end();
    receiver.end();
}

/// Small reads: the sender must be held back, and nothing may be lost for it.
fn read_slowly(stream: &mut TcpStream) -> Vec<u8> {
    let (mut received, mut chunk) = (Vec::new(), [0; 1500]);
    while let Ok(n @ 1..) = stream.read(&mut chunk) {
        received.extend_from_slice(&chunk[..n]);
    }
    received
}

#[test]
fn a_reader_that_stops_holds_its_writer_back_and_costs_no_more_than_buffers() {
    let (go, goes) = std::sync::mpsc::channel::<()>();
    let goes = Mutex::new(goes);
    let (world, receiver) = pair(&[endpoint(move |mut stream| {
        goes.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    })]);
    let mut client = world.connect();
    client.set_nonblocking(true).unwrap();
    let (block, mut sent) = (vec![7; 1 << 20], 0);
    let mut moved = Instant::now();
    // The kernel's buffers are some megabytes on each of three sockets; a stream that is not held back takes all.
    while moved.elapsed() < Duration::from_millis(500) {
        match client.write(&block) {
            Ok(count) => (sent, moved) = (sent + count, Instant::now()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(sent < 256 << 20, "nobody holds the writer back");
    }
    go.send(()).unwrap();
    client.set_nonblocking(false).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    until("ended", || world.listener.connections() + receiver.listener.connections() == 0);
    world.end();
    receiver.end();
}

#[test]
fn one_tunnel_serves_one_client_after_the_other() {
    let (world, receiver) = pair(&[echo()]);
    for round in 0..200 {
        exchange(&world, format!("round {round}").as_bytes());
        // Whoever comes next finds it free: the client's end may be seen before this thread's.
        until("free", || world.listener.connections() + receiver.listener.connections() == 0);
    }
    assert_eq!(ends(&world.metrics, End::Sender, |ends| ends.streams.get()), 200);
    assert_eq!(ends(&receiver.metrics, End::Receiver, |ends| ends.streams.get()), 200);
    // A spare one each for two threads.
    assert!(handshakes(&world) <= 4, "{}", handshakes(&world));
    world.end();
    receiver.end();
}

#[test]
fn many_clients_at_a_time_have_a_tunnel_each() {
    let (world, receiver) = pair(&[echo()]);
    let world = Arc::new(world);
    let clients: Vec<_> = (0..8_u32)
        .map(|client| {
            let world = Arc::clone(&world);
            in_background(move || {
                (0..250_u32)
                    .for_each(|n| exchange(&world, &pattern()[..(client * 7919 + n * 101) as usize % 40_000]))
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    until("ended", || world.listener.connections() + receiver.listener.connections() == 0);
    assert_eq!(ends(&receiver.metrics, End::Receiver, |ends| ends.streams.get()), 2000);
    assert!(handshakes(&world) <= 64, "{}", handshakes(&world));
    receiver.end();
    Arc::into_inner(world).unwrap().end();
}

#[test]
fn what_a_client_says_first_is_as_long_as_it_likes_and_has_the_header_that_its_endpoints_want() {
    let settings = serde_json::json!({"client_address": "proxy_v2"});
    let (heard, hears) = std::sync::mpsc::channel();
    let at = endpoint(move |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        heard.send(all).unwrap();
    });
    let (world, receiver) = pair_with(Config::default(), &[at], &settings);
    let mut client = world.connect();
    let own = client.local_addr().unwrap();
    client.write_all(&pattern()[..60_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let all = hears.recv_timeout(PATIENCE).unwrap();
    let header = proxy_protocol::read(&all).unwrap().unwrap();
    assert_eq!(header.addresses.unwrap().source, own);
    assert!(all[header.length..] == pattern()[..60_000]);
    world.end();
    receiver.end();
}
