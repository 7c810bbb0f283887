//! Sockets: addresses, connections, beginning and end.

use super::*;
use crate::dns::metrics::{Dropped, Stream};

#[tokio::test]
async fn a_wildcard_socket_replies_from_the_address_that_was_asked() {
    for (wildcard, asked) in [("0.0.0.0:0", "127.0.0.2"), ("[::]:0", "::1")] {
        let world = start(Config { listen: vec![wildcard.parse().unwrap()], ..config() });
        let server = SocketAddr::new(asked.parse().unwrap(), world.address.port());
        if world.address.port() == 0 {
            eprintln!("skipped: {wildcard} cannot be bound here ({:?})", world.handle.listeners());
            continue;
        }
        // A connected socket takes datagrams of that very address alone.
        assert_eq!(
            udp(server, &query("web.mesh.internal.", RecordType::A)).await.answers.len(),
            2,
            "{asked}"
        );
        assert_eq!(
            tcp(server, &query("web.mesh.internal.", RecordType::A)).await.answers.len(),
            2,
            "{asked}"
        );
    }
}

#[tokio::test]
async fn several_threads_answer_at_one_address_until_the_drain() {
    let world = start(Config { threads: std::num::NonZeroUsize::new(3).unwrap(), ..config() });
    assert_eq!(world.handle.sockets().len(), 0, "nothing is served yet");
    eventually("all of them", || world.handle.sockets().len() == 4).await;
    // Each from another port, so that none of the three is left out.
    for _ in 0..60 {
        assert_eq!(udp(world.address, &query("web.mesh.internal.", RecordType::A)).await.answers.len(), 2);
    }
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.starts_with("dns-")).count()
    };
    assert!(threads() >= 2);
    assert_eq!(world.drain.drain(PATIENCE).await, Drained::Completely);
}

#[tokio::test]
async fn an_address_that_is_taken_is_reported_and_served_once_it_is_free() {
    let holder = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let mut config = config();
    config.listen.push(taken);
    let (catalog, _writer) = Catalog::new();
    let bound = bind(config.clone(), catalog, Inherited::default(), Arc::default());
    assert_eq!((bound.addresses().len(), bound.failures().len()), (1, 1));
    assert_eq!(bound.failures()[0].address(), taken);
    drop(bound);
    let world = start(config);
    assert_eq!(world.metrics.listeners_failed.get(), 1);
    assert_eq!(udp(world.address, &query("web.mesh.internal.", RecordType::A)).await.answers.len(), 2);
    assert!(world.handle.listeners()[1].state.as_ref().unwrap_err().contains("another program has it"));
    drop(holder);
    eventually("it is served", || world.metrics.listeners.get() == 2).await;
    assert_eq!(udp(taken, &query("web.mesh.internal.", RecordType::A)).await.answers.len(), 2);
    assert_eq!(world.handle.listeners()[1].state, Ok(taken));
}

#[tokio::test]
async fn a_query_that_waits_does_not_hold_up_the_next_of_its_connection() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut config = forwarding_to(&[silent.local_addr().unwrap()]);
    config.limits.upstream_timeout = Duration::from_millis(200);
    let world = start(config);
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let (slow, quick) = (query("example.com.", RecordType::A), query("web.mesh.internal.", RecordType::A));
    write_framed(&mut stream, &slow).await;
    write_framed(&mut stream, &quick).await;
    write_framed(&mut stream, &quick).await;
    for _ in 0..2 {
        assert_eq!(read_framed(&mut stream).await.metadata.id, quick.metadata.id);
    }
    // Half-closed by the client: what it asked for still comes.
    stream.shutdown().await.unwrap();
    assert_eq!(read_framed(&mut stream).await.metadata.id, slow.metadata.id);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    eventually("the connection is closed", || world.metrics.connections(Stream::Tcp).get() == 0).await;
}

#[tokio::test]
async fn connections_are_bounded_in_number_in_idle_time_and_in_the_length_of_a_query() {
    let mut config = config();
    config.limits.tcp_connections = 1;
    config.limits.tcp_idle = Duration::from_millis(200);
    let world = start(config);
    let mut first = TcpStream::connect(world.address).await.unwrap();
    eventually("the first is open", || world.metrics.connections(Stream::Tcp).get() == 1).await;
    let mut second = TcpStream::connect(world.address).await.unwrap();
    assert!(matches!(second.read(&mut [0; 1]).await, Ok(0) | Err(_)), "closed at once");
    assert_eq!(world.metrics.dropped.get(Dropped::TcpConnectionLimit), 1);
    assert!(matches!(timeout(PATIENCE, first.read(&mut [0; 1])).await.unwrap(), Ok(0) | Err(_)));
    eventually("the idle one is counted", || world.metrics.dropped.get(Dropped::TcpIdle) == 1).await;
    eventually("its place is free", || world.metrics.connections(Stream::Tcp).get() == 0).await;
    let mut third = TcpStream::connect(world.address).await.unwrap();
    third.write_all(&[0xff, 0xff, 1]).await.unwrap();
    assert!(matches!(timeout(PATIENCE, third.read(&mut [0; 1])).await.unwrap(), Ok(0) | Err(_)));
    eventually("the long one is counted", || world.metrics.dropped.get(Dropped::TcpQueryTooLong) == 1).await;
}

#[tokio::test]
async fn a_drain_answers_what_waits_closes_what_idles_and_frees_the_port() {
    let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let world = start(forwarding_to(&[upstream.local_addr().unwrap()]));
    let mut idle = TcpStream::connect(world.address).await.unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let asked = query("example.com.", RecordType::A);
    client.send_to(&asked.to_vec().unwrap(), world.address).await.unwrap();
    let mut buffer = [0; 512];
    let (length, server) = upstream.recv_from(&mut buffer).await.unwrap();
    let drained = async { world.drain.drain(PATIENCE).await };
    let late_answer = async {
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0, "an idle connection ends with the drain");
        let asked = Message::from_vec(&buffer[..length]).unwrap();
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.add_query(asked.queries[0].clone());
        upstream.send_to(&answer.to_vec().unwrap(), server).await.unwrap();
        let mut buffer = [0; 512];
        let length = timeout(PATIENCE, client.recv(&mut buffer)).await.unwrap().unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    };
    let (drained, answer) = tokio::join!(drained, late_answer);
    assert_eq!(drained, Drained::Completely);
    assert_eq!(answer.metadata.id, asked.metadata.id);
    let again = Sockets::bind(world.address, std::num::NonZeroUsize::MIN, &Inherited::default());
    assert!(again.is_ok(), "the port is free");
}
