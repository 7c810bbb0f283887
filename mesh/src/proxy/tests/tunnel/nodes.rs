//! Nodes that refuse, leave, come back, and are not who they should be.

use super::*;

#[test]
fn an_endpoint_that_refuses_is_followed_by_another_with_the_same_first_words() {
    let endpoints = [nobody(), echo(), nobody()];
    let (world, receiver) = pair(&endpoints);
    for _ in 0..20 {
        exchange(&world, b"the same words");
        until("free", || world.listener.connections() + receiver.listener.connections() == 0);
    }
    assert!(receiver.refused(Refusal::NobodyListens) > 0);
    assert!(handshakes(&world) <= 4, "a refusal costs no tunnel: {}", handshakes(&world));
    world.end();
    receiver.end();
}

#[test]
fn a_target_that_is_none_of_the_nodes_own_is_refused_and_counted() {
    let (world, receiver) = pair(&[echo()]);
    receiver.here.endpoints.lock().unwrap().clear();
    let mut client = world.connect();
    client.write_all(b"x").unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    until("counted", || {
        world.dropped(Dropped::ConnectFailed) == 1 && receiver.refused(Refusal::NotHere) == 1
    });
    world.end();
    receiver.end();
}

#[test]
fn a_node_that_shows_the_certificate_of_another_is_not_spoken_with() {
    let (authority, at) = (Authority::new(), echo());
    let receiver = Receiver::new(&authority, "c", &[at]);
    let world = sender(Config::default(), &authority, &receiver, &[at], &serde_json::json!({}));
    assert_eq!(world.connect().read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    until("counted", || {
        let failed = |reason| ends(&world.metrics, End::Sender, |ends| ends.failures(reason));
        failed(TunnelFailure::Handshake) + failed(TunnelFailure::Identity) > 0
    });
    assert!(receiver.here.asked.lock().unwrap().is_empty());
    world.end();
    receiver.end();
}

#[test]
fn whoever_was_revoked_is_refused_though_its_session_could_be_resumed() {
    let (authority, at) = (Authority::new(), echo());
    let receiver = Receiver::new(&authority, "b", &[at]);
    let world = sender(Config::default(), &authority, &receiver, &[at], &serde_json::json!({}));
    exchange(&world, b"known");
    authority.revoke_all();
    // Those that are warm were believed when they were made: a new sender has none.
    let clients: Vec<_> = (0..8).map(|_| world.connect()).collect();
    let refused = || {
        ends(&world.metrics, End::Sender, |ends| ends.failures(TunnelFailure::Identity))
            + receiver.failed(TunnelFailure::Identity)
    };
    until("refused", || refused() > 0);
    drop(clients);
    world.end();
    receiver.end();
}

#[test]
fn without_a_certificate_of_its_own_a_node_reaches_nobody_by_tunnel() {
    let (world, receiver) = pair(&[echo()]);
    world.plane.tunnels().set_credentials(None);
    assert_eq!(world.connect().read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let failed = || ends(&world.metrics, End::Sender, |ends| ends.failures(TunnelFailure::NoCredentials));
    until("counted", || failed() > 0);
    world.end();
    receiver.end();
}

#[test]
fn sessions_are_resumed() {
    let (world, receiver) = pair(&[echo()]);
    let clients: Vec<_> = (0..40)
        .map(|_| {
            let mut client = world.connect();
            client.write_all(b"x").and_then(|()| client.read_exact(&mut [0; 1])).unwrap();
            client
        })
        .collect();
    assert!(ends(&world.metrics, End::Sender, |ends| ends.resumed.get()) > 0);
    drop(clients);
    world.end();
    receiver.end();
}

#[test]
fn a_node_that_comes_back_is_reached_again() {
    let (authority, at) = (Authority::new(), echo());
    let receiver = Receiver::new(&authority, "b", &[at]);
    let address = receiver.address();
    let world = sender(Config::default(), &authority, &receiver, &[at], &serde_json::json!({}));
    exchange(&world, b"before");
    receiver.end();
    let receiver = Receiver::at(address, &authority, "b", &[at]);
    exchange(&world, b"after");
    world.end();
    receiver.end();
}

#[test]
fn a_node_that_is_away_costs_an_attempt_and_another_one_is_tried() {
    let (authority, at) = (Authority::new(), echo());
    let receiver = Receiver::new(&authority, "b", &[at]);
    let mut world = sender(Config::default(), &authority, &receiver, &[at], &serde_json::json!({}));
    // An endpoint of its own.
    world.writer.apply([Change::PutInstance(instance(7, echo(), "passing"))]);
    world.balancer.update(world.catalog.service("web").as_deref());
    receiver.end();
    (0..20).for_each(|_| exchange(&world, b"anybody"));
    assert!(ends(&world.metrics, End::Sender, |ends| ends.failures(TunnelFailure::Connect)) > 0);
    world.end();
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_closes_tunnels_that_nobody_has() {
    let (world, receiver) = pair(&[echo()]);
    let mut client = world.connect();
    let mut echoes = move || client.write_all(b"x").and_then(|()| client.read_exact(&mut [0; 1])).unwrap();
    echoes();
    exchange(&world, b"over");
    until("one is open", || receiver.listener.connections() == 1);
    receiver.listener.stop_accepting();
    let open =
        |end: &Metrics, of| ends(end, of, |ends| ends.full.get() + ends.resumed.get() - ends.closed.get());
    until("idle ones are closed on both sides", || {
        open(&receiver.metrics, End::Receiver) == 1 && open(&world.metrics, End::Sender) == 1
    });
    echoes();
    drop(echoes);
    assert_eq!(receiver.listener.drain(PATIENCE).await, 0);
    until("all are closed", || open(&receiver.metrics, End::Receiver) == 0);
    world.end();
    receiver.plane.shutdown();
}

#[test]
fn another_plane_goes_on_with_the_port_and_no_client_notices() {
    let (authority, at) = (Authority::new(), echo());
    let old = Receiver::new(&authority, "b", &[at]);
    let address = old.address();
    let world = Arc::new(sender(Config::default(), &authority, &old, &[at], &serde_json::json!({})));
    let (stop, clients) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), Arc::clone(&world));
    let stopped = Arc::clone(&stop);
    let clients = in_background(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            exchange(&clients, b"does not notice");
        }
    });
    let metrics = Metrics::new().unwrap();
    let config = Config { threads: NonZeroUsize::new(2), ..Config::default() };
    let plane = DataPlane::start(config, metrics.clone()).unwrap();
    plane.tunnels().set_credentials(Some(authority.credentials("b")));
    let targets: Arc<dyn TunnelTargets> = Arc::clone(&old.here) as _;
    let spec = TunnelListenerSpec { address, targets, inherited: old.listener.sockets() };
    until("served by the old one", || ends(&old.metrics, End::Receiver, |ends| ends.streams.get()) > 50);
    let listener = plane.open_tunnel(spec).unwrap();
    old.listener.hand_over();
    let new = Receiver { plane, listener, metrics, here: Arc::clone(&old.here) };
    until("served by the new one", || ends(&new.metrics, End::Receiver, |ends| ends.streams.get()) > 50);
    old.end();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    clients.join().unwrap();
    assert_eq!(world.dropped(Dropped::ConnectFailed) + world.dropped(Dropped::EndpointReset), 0);
    Arc::into_inner(world).unwrap().end();
    new.end();
}

#[test]
fn a_node_that_is_revoked_loses_what_it_has_open_and_others_nothing() {
    let (world, receiver) = pair(&[echo()]);
    let mut client = world.connect();
    client.write_all(b"x").and_then(|()| client.read_exact(&mut [0; 1])).unwrap();
    receiver.plane.cut_tunnels(&NodeName::new("c").unwrap());
    client.write_all(b"x").and_then(|()| client.read_exact(&mut [0; 1])).unwrap();
    receiver.plane.cut_tunnels(&NodeName::new("a").unwrap());
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    until("counted", || receiver.failed(TunnelFailure::Revoked) > 0);
    let mut client = world.connect();
    client.write_all(b"x").and_then(|()| client.read_exact(&mut [0; 1])).unwrap();
    world.plane.cut_tunnels(&NodeName::new("b").unwrap());
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    until("counted", || world.dropped(Dropped::NodeRevoked) == 1);
    until("free", || world.listener.connections() + receiver.listener.connections() == 0);
    world.end();
    receiver.end();
}

#[test]
fn where_both_are_let_in_a_tunnel_that_cannot_be_had_fails_nobody() {
    let (authority, at) = (Authority::new(), echo());
    let receiver = Receiver::new(&authority, "b", &[at]);
    let settings = serde_json::json!({"mtls": "permissive"});
    let world = sender(Config::default(), &authority, &receiver, &[at], &settings);
    exchange(&world, b"by a tunnel");
    assert_eq!(ends(&receiver.metrics, End::Receiver, |ends| ends.streams.get()), 1);
    receiver.end();
    (0..3).for_each(|_| exchange(&world, b"directly"));
    let refuses = Receiver::new(&Authority::new(), "b", &[at]);
    let peer = TunnelPeer { node: NodeName::new("b").unwrap(), address: refuses.address() };
    world.plane.tunnels().set_ways(TunnelWays::new(MtlsMode::Off, None, [peer]));
    (0..3).for_each(|_| exchange(&world, b"directly"));
    // The port takes connections, and nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let peer = TunnelPeer { node: NodeName::new("b").unwrap(), address };
    world.plane.tunnels().set_ways(TunnelWays::new(MtlsMode::Off, None, [peer]));
    exchange(&world, b"directly, and late");
    let failures: u64 = world.balancer.endpoints().iter().map(|endpoint| endpoint.connect_failures()).sum();
    assert_eq!(failures, 0, "no endpoint's");
    world.plane.tunnels().set_ways(TunnelWays::default());
    exchange(&world, b"it takes none");
    world.end();
    refuses.end();
}

#[test]
fn a_node_without_a_tunnel_is_not_reached_where_nothing_else_may_be() {
    let (world, receiver) = pair(&[echo()]);
    exchange(&world, b"by a tunnel");
    world.plane.tunnels().set_ways(TunnelWays::new(MtlsMode::Strict, None, []));
    assert_eq!(world.connect().read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    until("counted", || world.dropped(Dropped::ConnectFailed) == 1);
    let own = NodeName::new("b").ok();
    world.plane.tunnels().set_ways(TunnelWays::new(MtlsMode::Strict, own, []));
    exchange(&world, b"its own");
    world.end();
    receiver.end();
}
