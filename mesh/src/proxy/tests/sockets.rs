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
    assert!((0..50).all(|_| answers(world.listener.address())));
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
        };
        let listener = world.plane.open(spec).unwrap();
        let mut answer = String::new();
        early.read_to_string(&mut answer).unwrap();
        assert_eq!((answer.as_str(), answers(address), listener.sockets().len()), ("ok", true, 1));
    }
    world.end();
}

#[test]
fn a_listener_handed_on_loses_nobody_who_waits_in_its_queues() {
    let world = world(Config::default(), &[ok()]);
    let config = Config { threads: NonZeroUsize::new(1), ..Config::default() };
    let successor = DataPlane::start(config, Metrics::new().unwrap()).unwrap();
    let (address, inherited) = (world.listener.address(), world.listener.sockets());
    assert_eq!(inherited.len(), 2);
    let balancer = Arc::clone(&world.balancer);
    let spec = ListenerSpec { address, balancer, sharing: Sharing::PerThread, inherited };
    let listener = successor.open(spec).unwrap();
    world.listener.stop_accepting();
    assert!((0..100).all(|_| answers(address)));
    drop(listener);
    successor.shutdown();
    world.end();
}
