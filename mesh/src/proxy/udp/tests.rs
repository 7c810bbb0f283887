//! What clients and endpoints see of UDP, over real sockets on loopback.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nerve::model::{Instance, NodeName, ServiceName};
use serde_json::json;
use synapse::catalog::{Catalog, Change, Writer};

use super::{Limits, Udp};
use crate::balance::{self, Balancer, Place, Surroundings};
use crate::proxy::Lost;
use crate::proxy::inbox::Inbox;
use crate::proxy::io::Io;
use crate::proxy::limit::ConnectionLimit;
use crate::proxy::route::ListenerId;
use crate::proxy::udp_route::Route;
use crate::proxy::{Config, DataPlane, Listener, ListenerSpec, Metrics, Sharing, UdpOptions};

const PATIENCE: Duration = Duration::from_secs(20);
/// The largest datagram that IPv4 carries.
const LARGEST: usize = 65_507;

struct World {
    plane: DataPlane,
    listener: Listener,
    metrics: Metrics,
    catalog: Catalog,
    writer: Writer,
    balancer: Arc<Balancer>,
}

fn config(idle_timeout: Duration, max_sessions: Option<u32>) -> Config {
    let udp = UdpOptions { idle_timeout, max_sessions: max_sessions.and_then(NonZeroU32::new) };
    // One thread where the bound is looked at, since it is divided among them.
    let threads = NonZeroUsize::new(if max_sessions.is_some() { 1 } else { 2 });
    Config { threads, udp, ..Config::default() }
}

fn usual() -> Config {
    config(Duration::from_secs(60), None)
}

fn instance(id: usize, at: SocketAddr, more: &serde_json::Value) -> Change {
    let mut json = json!({
        "service": "dns", "id": id.to_string(), "node": "a", "address": at.ip(), "port": at.port(),
    });
    json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Change::PutInstance(Arc::new(serde_json::from_value::<Instance>(json).unwrap()))
}

fn new_balancer(plane: &DataPlane) -> Arc<Balancer> {
    let surroundings = Surroundings {
        place: Place { node: Some(NodeName::new("a").unwrap()), ..Place::default() },
        metrics: balance::Metrics::new().unwrap(),
        on_closing: plane.closer(),
    };
    Arc::new(Balancer::new(ServiceName::new("dns").unwrap(), None, &surroundings))
}

fn world_at(address: &str, config: Config, endpoints: &[SocketAddr]) -> World {
    let (catalog, mut writer) = Catalog::new();
    writer.apply(endpoints.iter().enumerate().map(|(id, at)| instance(id, *at, &json!({}))));
    let metrics = Metrics::new().unwrap();
    let plane = DataPlane::start(config, metrics.clone()).unwrap();
    let balancer = new_balancer(&plane);
    balancer.update(catalog.service("dns").as_deref());
    let listener = plane.open_udp(spec(address.parse().unwrap(), &balancer)).unwrap();
    World { plane, listener, metrics, catalog, writer, balancer }
}

fn world(config: Config, endpoints: &[SocketAddr]) -> World {
    world_at("127.0.0.1:0", config, endpoints)
}

fn spec(address: SocketAddr, balancer: &Arc<Balancer>) -> ListenerSpec {
    ListenerSpec {
        address,
        balancer: Arc::clone(balancer),
        sharing: Sharing::PerThread,
        inherited: Vec::new(),
        overlaps: false,
    }
}

impl World {
    fn client(&self) -> UdpSocket {
        client(self.listener.address().ip().unwrap())
    }

    fn change(&mut self, change: Change) {
        self.writer.apply([change]);
        self.balancer.update(self.catalog.service("dns").as_deref());
    }

    fn lost(&self, reason: Lost) -> u64 {
        self.metrics.udp.lost_so_far("dns", reason)
    }

    fn end(self) {
        drop(self.listener);
        self.plane.shutdown();
    }
}

/// A client that talks to `to` alone.
fn client(to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let client = UdpSocket::bind(any).unwrap();
    client.connect(to).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn ask(client: &UdpSocket, question: &[u8]) -> Vec<u8> {
    client.send(question).unwrap();
    let mut answer = vec![0; LARGEST + 1];
    let length = client.recv(&mut answer).unwrap();
    answer.truncate(length);
    answer
}

/// An endpoint that answers with its mark and what it was sent.
fn echo(mark: &'static str) -> SocketAddr {
    echo_at("127.0.0.1:0", mark)
}

fn echo_at(address: &str, mark: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind(address).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; LARGEST + 1];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let answer = [mark.as_bytes(), &buffer[..length]].concat();
            let _ = socket.send_to(&answer[..answer.len().min(LARGEST)], from);
        }
    });
    address
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn an_answer_comes_from_the_address_that_was_asked() {
    for (listen, asked) in [
        ("0.0.0.0:0", &["127.0.0.1", "127.0.0.2", "127.3.2.1"][..]),
        ("[::]:0", &["127.0.0.1", "127.0.0.2", "::1"][..]),
        ("[::1]:0", &["::1"][..]),
    ] {
        let world = world_at(listen, usual(), &[echo("")]);
        for ip in asked {
            // A connected socket hears nobody but the one that it asked.
            let client =
                client(SocketAddr::new(ip.parse().unwrap(), world.listener.address().ip().unwrap().port()));
            assert_eq!(ask(&client, b"hello"), b"hello", "{ip} on {listen}");
        }
        assert_eq!(world.listener.connections() as usize, asked.len());
        world.end();
    }
}

#[test]
fn either_side_may_be_of_either_family() {
    for endpoint in [echo("four "), echo_at("[::1]:0", "six ")] {
        let world = world_at("[::]:0", usual(), &[endpoint]);
        for ip in ["127.0.0.1", "::1"] {
            let client =
                client(SocketAddr::new(ip.parse().unwrap(), world.listener.address().ip().unwrap().port()));
            assert!(ask(&client, b"hello").ends_with(b" hello"));
        }
        world.end();
    }
}

#[test]
fn an_instance_on_a_unix_socket_alone_gets_no_datagram_and_costs_none() {
    let mut world = world(usual(), &[echo("")]);
    let only = json!({ "socket": "/run/app.sock", "socket_only": {} });
    for id in 1..4 {
        world.change(instance(id, "192.0.2.1:9".parse().unwrap(), &only));
    }
    for _ in 0..20 {
        assert_eq!(ask(&world.client(), b"hello"), b"hello");
    }
    assert_eq!(world.lost(Lost::NoEndpoint) + world.lost(Lost::EndpointUnreachable), 0);
    world.end();
}

#[test]
fn a_client_keeps_its_endpoint_and_clients_take_turns() {
    let world = world(usual(), &[echo("1"), echo("2")]);
    let clients = [world.client(), world.client()];
    let marks = clients.each_ref().map(|client| ask(client, b""));
    assert_ne!(marks[0], marks[1]);
    for _ in 0..5 {
        assert_eq!(clients.each_ref().map(|client| ask(client, b"")), marks);
    }
    world.end();
}

#[test]
fn what_a_closed_port_was_asked_is_asked_elsewhere_without_the_clients_help() {
    let world = world(usual(), &[nobody(), echo("ok "), nobody()]);
    for _ in 0..20 {
        assert_eq!(ask(&world.client(), b"once"), b"ok once");
    }
    assert!(world.metrics.udp.sum("dns", |tally| tally.moved.get()) > 0);
    assert_eq!(world.lost(Lost::EndpointUnreachable), 0);
    world.end();
}

#[test]
fn a_client_that_nobody_can_serve_costs_no_session_and_is_counted() {
    for (endpoints, reason) in [(vec![], Lost::NoEndpoint), (vec![nobody()], Lost::EndpointUnreachable)] {
        let world = world(usual(), &endpoints);
        world.client().send(b"hello?").unwrap();
        until("counted", || world.lost(reason) == 1);
        until("without a session", || world.listener.connections() == 0);
        world.end();
    }
}

#[test]
fn an_endpoint_that_dies_after_an_answer_is_left_with_the_next_datagram() {
    let mortal = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut world = world(usual(), &[mortal.local_addr().unwrap()]);
    let client = world.client();
    client.send(b"1").unwrap();
    let (_, session) = mortal.recv_from(&mut [0; 8]).unwrap();
    mortal.send_to(b"yes", session).unwrap();
    assert_eq!(client.recv(&mut [0; 8]).unwrap(), 3);
    world.change(instance(1, echo("2 "), &json!({})));
    drop(mortal);
    client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut answer = [0; 8];
    until("answered by another", || {
        client.send(b"again").unwrap();
        matches!(client.recv(&mut answer), Ok(length) if &answer[..length] == b"2 again")
    });
    world.end();
}

#[test]
fn a_session_of_an_endpoint_that_is_gone_moves_with_its_next_datagram() {
    let endpoints = [echo("1"), echo("2")];
    let mut world = world(usual(), &endpoints);
    let client = world.client();
    let first = usize::from(ask(&client, b"") == b"2");
    // It would answer still; the catalog says that it is not to.
    world.change(instance(first, endpoints[first], &json!({"health": "critical"})));
    let other = ["2", "1"][first].as_bytes();
    assert_eq!(ask(&client, b""), other);
    assert_eq!(world.listener.connections(), 1);
    let moved = world.metrics.udp.sum("dns", |tally| tally.moved.get());
    assert_eq!(moved, 1);
    world.end();
}

#[test]
fn a_session_of_an_endpoint_that_is_being_drained_stays() {
    let endpoints = [echo("1"), echo("2")];
    let mut world = world(usual(), &endpoints);
    let client = world.client();
    let mark = ask(&client, b"");
    let first = usize::from(mark == b"2");
    world.change(instance(first, endpoints[first], &json!({"draining": true})));
    assert_eq!(ask(&client, b""), mark);
    assert_ne!(ask(&world.client(), b""), mark);
    world.end();
}

#[test]
fn a_session_on_which_nothing_moves_ends() {
    let idle = Duration::from_millis(150);
    let world = world(config(idle, None), &[echo("")]);
    let begun = Instant::now();
    assert_eq!(ask(&world.client(), b"x"), b"x");
    assert_eq!(world.listener.connections(), 1);
    until("ended", || world.listener.connections() == 0);
    assert!(begun.elapsed() >= idle, "{:?}", begun.elapsed());
    world.end();
}

#[test]
fn of_too_many_sessions_those_go_that_may_be_inventions_and_are_counted() {
    let world = world(config(Duration::from_secs(60), Some(3)), &[echo("")]);
    let steady = world.client();
    // The second question shows that the answer to the first arrived.
    for question in [b"1", b"2"] {
        assert_eq!(ask(&steady, question), question);
    }
    let flood: Vec<UdpSocket> = (0..20).map(|_| world.client()).collect();
    for client in &flood {
        client.send(b"x").unwrap();
    }
    until("evicted", || world.lost(Lost::Evicted) == 18);
    until("three are left", || world.listener.connections() == 3);
    assert_eq!(ask(&steady, b"3"), b"3");
    assert_eq!(world.lost(Lost::Evicted), 18, "the steady one was not among them");
    world.end();
}

#[test]
fn sessions_count_as_connections_and_a_full_house_takes_no_more() {
    let config = Config { max_connections: NonZeroU32::new(1), ..config(Duration::from_secs(60), Some(8)) };
    let world = world(config, &[echo("")]);
    assert_eq!(ask(&world.client(), b"first"), b"first");
    // The place of the only session is all there is to have.
    assert_eq!(ask(&world.client(), b"second"), b"second");
    assert_eq!((world.listener.connections(), world.lost(Lost::Evicted)), (1, 1));
    world.end();
}

#[test]
fn datagrams_of_every_size_pass_whole_and_the_largest_too() {
    let world = world(usual(), &[echo("")]);
    let client = world.client();
    for size in [0, 1, 512, 1472, 1473, 9000, 40_000, LARGEST] {
        let datagram: Vec<u8> = (0..=250_u8).cycle().take(size).collect();
        assert!(ask(&client, &datagram) == datagram, "{size}");
    }
    assert_eq!(world.lost(Lost::TooBig), 0);
    world.end();
}

#[test]
fn ten_thousand_datagrams_of_64_clients_arrive_unharmed() {
    const CLIENTS: usize = 64;
    const EACH: usize = 160;
    /// Under way at once: more than a batch in all, less than the sockets hold.
    const WINDOW: usize = 4;
    // Several, so that what is under way fits their sockets.
    let world = world(usual(), &[""; 8].map(echo));
    let address = world.listener.address().ip().unwrap();
    let work = |number: usize| {
        let client = client(address);
        let datagram = |n: usize| {
            // Sizes that repeat for a while, as those of bulk do, and then do not.
            let size = 8 + (n / 8 * 131 + number) % 1400;
            let mut bytes = vec![u8::try_from(n % 251).unwrap(); size];
            bytes[..4].copy_from_slice(&u32::try_from(n).unwrap().to_be_bytes());
            bytes[4..8].copy_from_slice(&u32::try_from(number).unwrap().to_be_bytes());
            bytes
        };
        let mut buffer = [0; 2048];
        for n in 0..EACH + WINDOW {
            if n < EACH {
                client.send(&datagram(n)).unwrap();
            }
            if n >= WINDOW {
                let length = client.recv(&mut buffer).unwrap();
                assert!(buffer[..length] == datagram(n - WINDOW), "datagram {} of {number}", n - WINDOW);
            }
        }
    };
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            scope.spawn(move || work(number));
        }
    });
    let sum = |count: fn(&crate::proxy::udp_metrics::Tally) -> u64| world.metrics.udp.sum("dns", count);
    until("counted", || sum(|t| t.to_client.datagrams.get()) == (CLIENTS * EACH) as u64);
    assert_eq!(sum(|t| t.to_endpoint.datagrams.get()), (CLIENTS * EACH) as u64);
    assert_eq!(sum(|t| t.begun.get()), CLIENTS as u64);
    world.end();
}

#[tokio::test]
async fn a_drain_serves_the_sessions_that_there_are_until_they_are_quiet() {
    let World { plane, listener, metrics, .. } = world(config(Duration::from_millis(300), None), &[echo("")]);
    let address = listener.address().ip().unwrap();
    let known = client(address);
    assert_eq!(ask(&known, b"before"), b"before");
    let talking = std::thread::spawn(move || {
        until("closed to new ones", || {
            client(address).send(b"?").unwrap();
            assert_eq!(ask(&known, b"during"), b"during");
            metrics.udp.lost_so_far("dns", Lost::Drain) > 0
        });
    });
    let begun = Instant::now();
    assert_eq!(listener.drain(PATIENCE).await, 0);
    assert!(begun.elapsed() < PATIENCE);
    talking.join().unwrap();
    // The port is free for anyone.
    drop(UdpSocket::bind(address).unwrap());
    plane.shutdown();
}

#[tokio::test]
async fn a_drain_ends_what_still_talks_at_its_deadline() {
    let World { plane, listener, .. } = world(usual(), &[echo("")]);
    let address = listener.address().ip().unwrap();
    let known = client(address);
    assert_eq!(ask(&known, b"before"), b"before");
    assert_eq!(listener.drain(Duration::from_millis(50)).await, 1);
    until("closed", || UdpSocket::bind(address).is_ok());
    plane.shutdown();
}

#[test]
fn a_listener_that_has_stopped_gives_way_to_the_next_one_on_its_address() {
    let World { plane, listener, balancer, .. } = world(usual(), &[echo("old")]);
    let address = listener.address().ip().unwrap();
    let client = client(address);
    assert_eq!(ask(&client, b""), b"old");
    assert!(plane.open_udp(spec(address, &balancer)).is_err(), "it is in use");
    listener.stop_accepting();
    let (catalog, mut writer) = Catalog::new();
    writer.apply([instance(7, echo("new"), &json!({}))]);
    let other = new_balancer(&plane);
    other.update(catalog.service("dns").as_deref());
    let next = plane.open_udp(spec(address, &other)).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    until("the client is the new one's", || {
        client.send(b"").unwrap();
        let mut answer = [0; 8];
        client.recv(&mut answer).is_ok() && &answer[..3] == b"new"
    });
    drop((listener, next));
    plane.shutdown();
}

#[test]
fn a_port_that_is_taken_is_refused_with_what_to_do() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let world = world(usual(), &[]);
    let error = world.plane.open_udp(spec(taken.local_addr().unwrap(), &world.balancer)).unwrap_err();
    assert_eq!(error.source.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains("/udp") && error.to_string().contains("ss -lntup"), "{error}");
    world.end();
}

#[test]
fn a_listener_of_one_socket_serves_every_client() {
    let world = world(usual(), &[echo("")]);
    let one = ListenerSpec { sharing: Sharing::One, ..spec("127.0.0.1:0".parse().unwrap(), &world.balancer) };
    let listeners: Vec<Listener> = (0..3).map(|_| world.plane.open_udp(one.clone()).unwrap()).collect();
    for listener in &listeners {
        for _ in 0..8 {
            assert_eq!(ask(&client(listener.address().ip().unwrap()), b"x"), b"x");
        }
        assert_eq!(listener.connections(), 8);
    }
    drop(listeners);
    world.end();
}

#[test]
fn a_socket_that_was_handed_over_is_read_no_more_though_the_poller_had_told_of_it() {
    let world = world(usual(), &[echo("a")]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let (address, next) = (socket.local_addr().unwrap(), socket.try_clone().unwrap());
    let id = ListenerId::new(1);
    let route = Route {
        listener: id,
        open: Arc::default(),
        balancer: Arc::clone(&world.balancer),
        config: Arc::new(usual()),
        steering: Arc::default(),
        tunnels: Arc::default(),
        access: Arc::default(),
        tally: world.metrics.udp.tally("dns", 0),
    };
    let io = Io::new(Arc::new(Inbox::new().unwrap())).unwrap();
    let limits = Limits { sessions: 10, idle_timeout: PATIENCE };
    let mut udp = Udp::new(limits, Arc::new(ConnectionLimit::new(10)));
    udp.open(Arc::new(socket.into()), route, &io);
    let key = udp.listeners.iter().next().unwrap().0;
    // With a session that is to be finished it stays for that one's answers.
    client(address).send(b"before").unwrap();
    until("a session", || {
        udp.listener_ready(key, &io);
        udp.sessions.len() == 1
    });
    client(address).send(b"after").unwrap();
    udp.hand_over(id, &io);
    assert!(!udp.listener_ready(key, &io));
    let mut left = [0; 10];
    until("what came after is the next process's", || next.recv(&mut left).is_ok_and(|length| length == 5));
    assert_eq!((&left[..5], world.lost(Lost::Drain)), (&b"after"[..], 0));
    world.end();
}
