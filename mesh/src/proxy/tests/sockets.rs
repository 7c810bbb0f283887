//! Listening sockets: shared by threads, and taken over from others.

use super::*;

fn answers(at: SocketAddr) -> bool {
    let Ok(mut client) = TcpStream::connect(at) else { return false };
    let mut answer = String::new();
    client.read_to_string(&mut answer).is_ok() && answer == "ok"
}

fn ok() -> SocketAddr {
    endpoint(|mut stream| stream.write_all(b"ok").unwrap())
}

#[test]
fn threads_may_share_one_socket() {
    let world = world_with(Config::default(), &[ok()], &serde_json::json!({}), Sharing::One);
    assert_eq!(world.listener.sockets().len(), 1);
    assert!((0..50).all(|_| answers(world.listener.address().ip().unwrap())));
    world.end();
}

#[test]
fn a_socket_of_another_process_is_used_with_what_waits_in_its_queue() {
    let world = world(Config::default(), &[ok()]);
    for sharing in [Sharing::PerThread, Sharing::One] {
        // As systemd opens it: blocking, and not to be shared.
        let inherited = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = inherited.local_addr().unwrap();
        let mut early = TcpStream::connect(address).unwrap();
        let spec = ListenerSpec {
            address,
            balancer: Arc::clone(&world.balancer),
            sharing,
            inherited: vec![Arc::new(inherited.into())],
            overlaps: false,
        };
        let listener = world.plane.open(spec).unwrap();
        let mut answer = String::new();
        early.read_to_string(&mut answer).unwrap();
        assert_eq!((answer.as_str(), answers(address), listener.sockets().len()), ("ok", true, 1));
    }
    world.end();
}

#[test]
fn another_plane_goes_on_with_the_sockets_and_no_client_notices() {
    let one = world(Config::default(), &[endpoint(|mut stream| stream.write_all(b"x").unwrap())]);
    let address = one.listener.address().ip().unwrap();
    let stopped = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = Arc::clone(&stopped);
    let clients = std::thread::spawn(move || {
        let mut served = 0;
        while !asked.load(std::sync::atomic::Ordering::Relaxed) {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.read_exact(&mut [0; 1]).unwrap();
            served += 1;
        }
        served
    });
    let mut plane = one;
    // More threads than sockets, then fewer: every socket is served.
    for threads in [1, 3, 1, 2] {
        // Copies, as another process has them.
        let copies = plane.listener.sockets().into_iter().map(|socket| Arc::new(socket.try_clone().unwrap()));
        let inherited: Vec<_> = copies.collect();
        let sockets = inherited.len();
        let config = Config { threads: NonZeroUsize::new(threads), ..Config::default() };
        let next = DataPlane::start(config, plane.metrics.clone()).unwrap();
        let balancer = Arc::clone(&plane.balancer);
        let spec =
            ListenerSpec { address, balancer, sharing: Sharing::PerThread, inherited, overlaps: false };
        let listener = next.open(spec).unwrap();
        assert_eq!(listener.sockets().len(), sockets.max(threads));
        plane.listener.stop_accepting();
        until("the old one closes its copies", || plane.listener.sockets().is_empty());
        until("its clients are served", || plane.listener.connections() == 0);
        let World { plane: old, listener: gone, metrics, catalog, writer, balancer } = plane;
        drop(gone);
        old.shutdown();
        plane = World { plane: next, listener, metrics, catalog, writer, balancer };
    }
    stopped.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(clients.join().unwrap() > 0);
    plane.end();
}
