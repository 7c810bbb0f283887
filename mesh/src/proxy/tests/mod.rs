//! What a connection's two ends see, over real sockets on loopback.

mod connecting;
mod services;
mod sockets;
mod tunnel;
mod unix;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nerve::model::{Instance, NodeName, ServiceName, ServiceSettings};
use socket2::SockRef;
use synapse::catalog::{Catalog, Change, Writer};

use super::{Config, DataPlane, Dropped, Listener, ListenerSpec, Metrics, Sharing, proxy_protocol};
use crate::balance::{self, Balancer, Place, Surroundings};

/// Longer than anything that is waited for: the longest is a doomed connection's five quiet seconds.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    plane: DataPlane,
    listener: Listener,
    metrics: Metrics,
    catalog: Catalog,
    writer: Writer,
    balancer: Arc<Balancer>,
}

/// A port that leads to `endpoints`.
fn world(config: Config, endpoints: &[SocketAddr]) -> World {
    world_with(config, endpoints, &serde_json::json!({}), Sharing::PerThread)
}

/// The same for a service with settings.
fn world_with(
    config: Config,
    endpoints: &[SocketAddr],
    settings: &serde_json::Value,
    sharing: Sharing,
) -> World {
    let (catalog, mut writer) = Catalog::new();
    let web = ServiceName::new("web").unwrap();
    let settings = serde_json::from_value::<ServiceSettings>(settings.clone()).unwrap();
    let instances =
        endpoints.iter().enumerate().map(|(id, at)| Change::PutInstance(instance(id, *at, "passing")));
    writer.apply(instances.chain([Change::PutSettings(web.clone(), Arc::new(settings))]));
    let metrics = Metrics::new().unwrap();
    let config = Config { threads: NonZeroUsize::new(2), ..config };
    let plane = DataPlane::start(config, metrics.clone()).unwrap();
    let surroundings = Surroundings {
        place: Place { node: Some(NodeName::new("a").unwrap()), ..Place::default() },
        metrics: balance::Metrics::new().unwrap(),
        on_closing: plane.closer(),
    };
    let balancer = Arc::new(Balancer::new(web, None, &surroundings));
    balancer.update(catalog.service("web").as_deref());
    let address = "127.0.0.1:0".parse().unwrap();
    let spec = ListenerSpec {
        address,
        balancer: Arc::clone(&balancer),
        sharing,
        inherited: Vec::new(),
        overlaps: false,
    };
    let listener = plane.open(spec).unwrap();
    World { plane, listener, metrics, catalog, writer, balancer }
}

fn instance(id: usize, at: SocketAddr, health: &str) -> Arc<Instance> {
    let json = serde_json::json!({
        "service": "web", "id": id.to_string(), "node": "a", "address": at.ip(), "port": at.port(), "health": health,
    });
    Arc::new(serde_json::from_value(json).unwrap())
}

impl World {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.listener.address().ip().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The first endpoint is said to be so.
    fn health(&mut self, at: SocketAddr, health: &str) {
        self.writer.apply([Change::PutInstance(instance(0, at, health))]);
        self.balancer.update(self.catalog.service("web").as_deref());
    }

    fn dropped(&self, reason: Dropped) -> u64 {
        self.metrics.dropped_so_far("web", reason)
    }

    fn end(self) {
        drop(self.listener);
        self.plane.shutdown();
    }
}

/// An endpoint that does `serve` with each connection in turn.
fn endpoint(serve: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
    address
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// Some 8 MiB in which no two places that a buffer's size lies between look alike.
fn pattern() -> Vec<u8> {
    (0..=250_u8).collect::<Vec<_>>().repeat(33_000)
}

fn in_background(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(work)
}

#[test]
fn a_client_that_has_finished_sending_still_gets_its_answer() {
    let world = world(
        Config::default(),
        &[endpoint(|mut stream| {
            let mut question = String::new();
            stream.read_to_string(&mut question).unwrap();
            stream.write_all(format!("heard {question}").as_bytes()).unwrap();
        })],
    );
    let mut client = world.connect();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "heard hello");
    world.end();
}

#[test]
fn an_endpoint_that_has_finished_sending_still_hears_the_client() {
    let (heard, hears) = std::sync::mpsc::channel();
    let world = world(
        Config::default(),
        &[endpoint(move |mut stream| {
            stream.write_all(b"welcome").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            heard.send(rest).unwrap();
        })],
    );
    let mut client = world.connect();
    let mut welcome = String::new();
    client.read_to_string(&mut welcome).unwrap();
    client.write_all(b"thanks").unwrap();
    drop(client);
    assert_eq!((welcome.as_str(), hears.recv_timeout(PATIENCE).unwrap().as_str()), ("welcome", "thanks"));
    world.end();
}

#[test]
fn a_reset_by_the_endpoint_reaches_the_client_as_a_reset() {
    let world = world(
        Config::default(),
        &[endpoint(|mut stream| {
            stream.read_exact(&mut [0; 1]).unwrap();
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        })],
    );
    let mut client = world.connect();
    client.write_all(b"x").unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    until("counted", || world.dropped(Dropped::EndpointReset) == 1);
    world.end();
}

#[test]
fn a_reset_by_the_client_reaches_the_endpoint_as_a_reset() {
    let (ended, ends) = std::sync::mpsc::channel();
    let world = world(
        Config::default(),
        &[endpoint(move |mut stream| {
            stream.write_all(b"x").unwrap();
            ended.send(stream.read(&mut [0; 1]).map_err(|error| error.kind())).unwrap();
        })],
    );
    let mut client = world.connect();
    client.read_exact(&mut [0; 1]).unwrap();
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
    world.end();
}

#[test]
fn a_connection_that_one_endpoint_refuses_is_made_at_another() {
    let alive = endpoint(|mut stream| stream.write_all(b"ok").unwrap());
    let world = world(Config::default(), &[nobody(), alive, nobody()]);
    for _ in 0..20 {
        let mut answer = String::new();
        world.connect().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "ok");
    }
    world.end();
}

#[test]
fn a_client_that_nobody_can_serve_is_reset_and_counted() {
    for (endpoints, reason) in [(vec![], Dropped::NoEndpoint), (vec![nobody()], Dropped::ConnectFailed)] {
        let world = world(Config::default(), &endpoints);
        assert_eq!(world.connect().read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        until("counted", || world.dropped(reason) == 1);
        world.end();
    }
}

#[test]
fn streams_both_ways_at_once_arrive_whole_past_a_slow_reader() {
    let world = world(
        Config::default(),
        &[endpoint(move |mut stream| {
            let mut sending = stream.try_clone().unwrap();
            let sender = in_background(move || {
                sending.write_all(&pattern()).unwrap();
                sending.shutdown(Shutdown::Write).unwrap();
            });
            let mut received = Vec::new();
            // Small reads: the sender must be held back, and nothing may be lost for it.
            let mut chunk = [0; 1500];
            while let Ok(n @ 1..) = stream.read(&mut chunk) {
                received.extend_from_slice(&chunk[..n]);
            }
            assert!(received == pattern());
            sender.join().unwrap();
        })],
    );
    let mut client = world.connect();
    let mut sending = client.try_clone().unwrap();
    let sender = in_background(move || {
        sending.write_all(&pattern()).unwrap();
        sending.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == pattern());
    until("ended", || world.listener.connections() == 0);
    world.end();
}

#[test]
fn connections_that_stay_are_spread_over_the_threads() {
    let echo = || {
        endpoint(|mut stream| {
            std::thread::spawn(move || {
                stream.try_clone().and_then(|mut back| std::io::copy(&mut stream, &mut back))
            });
        })
    };
    for sharing in [Sharing::PerThread, Sharing::One] {
        let world = world_with(Config::default(), &[echo()], &serde_json::json!({}), sharing);
        let mut clients: Vec<_> = (0..40).map(|_| world.connect()).collect();
        for client in &mut clients {
            client.write_all(b"x").and_then(|()| client.read_exact(&mut [0; 1])).unwrap();
        }
        let on_threads: Vec<_> = world.listener.open.iter().map(|open| open.count()).collect();
        assert!(on_threads.iter().all(|count| (17..=23).contains(count)), "{on_threads:?}");
        drop(clients);
        until("ended", || world.listener.connections() == 0);
        world.end();
    }
}

#[test]
fn more_connections_than_allowed_are_reset_and_counted() {
    let quiet = endpoint(|mut stream| drop(stream.read(&mut [0; 1])));
    let world = world(Config { max_connections: NonZeroU32::new(1), ..Config::default() }, &[quiet]);
    let first = world.connect();
    until("open", || world.listener.connections() == 1);
    assert_eq!(world.connect().read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.dropped(Dropped::Limit), 1);
    drop(first);
    until("free again", || world.listener.connections() == 0);
    world.end();
}

#[test]
fn a_connection_on_which_nothing_moves_ends_at_the_idle_timeout_alone() {
    let quiet = endpoint(|mut stream| drop(stream.read(&mut [0; 1])));
    let config = |idle| Config { idle_timeout: Some(Duration::from_millis(idle)), ..Config::default() };
    // The node's word, and that of a service that is less patient.
    for (config, settings) in [(config(100), "{}"), (config(60_000), r#"{"timeouts": {"idle": "100ms"}}"#)] {
        let world =
            world_with(config, &[quiet], &serde_json::from_str(settings).unwrap(), Sharing::PerThread);
        let begun = Instant::now();
        assert_eq!(world.connect().read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(begun.elapsed() >= Duration::from_millis(100));
        until("counted", || world.dropped(Dropped::Idle) == 1);
        world.end();
    }
}

#[tokio::test]
async fn a_drain_lets_connections_finish_and_takes_no_new_ones() {
    let echo = endpoint(|mut stream| {
        let mut byte = [0; 1];
        while let Ok(1) = stream.read(&mut byte) {
            stream.write_all(&byte).unwrap();
        }
    });
    let World { plane, listener, metrics, .. } = world(Config::default(), &[echo]);
    let address = listener.address().ip().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let mut echoes = move || {
        let mut byte = [0; 1];
        client.write_all(b"x").and_then(|()| client.read_exact(&mut byte)).unwrap();
    };
    echoes();
    let is_closed =
        move || TcpStream::connect(address).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
    let finishing = in_background(move || {
        until("closed to new ones", is_closed);
        echoes();
    });
    assert_eq!(listener.drain(PATIENCE).await, 0);
    finishing.join().unwrap();
    assert_eq!(metrics.dropped_so_far("web", Dropped::Drain), 0);
    plane.shutdown();
}

#[tokio::test]
async fn clients_who_keep_coming_hold_up_no_drain() {
    let (serve, served) = std::sync::mpsc::channel();
    let quick = endpoint(move |stream| drop((stream, serve.send(()))));
    let World { plane, listener, .. } = world(Config::default(), &[quick]);
    let address = listener.address().ip().unwrap();
    // More of them than one thread can accept and serve, so that somebody waits at any moment.
    let coming: Vec<_> = (0..4)
        .map(|_| in_background(move || until("refused", || TcpStream::connect(address).is_err())))
        .collect();
    assert_eq!(served.iter().take(100).count(), 100);
    listener.stop_accepting();
    for client in coming {
        client.join().unwrap();
    }
    assert_eq!(listener.drain(PATIENCE).await, 0);
    plane.shutdown();
}

#[tokio::test]
async fn a_drain_resets_what_is_open_at_its_deadline() {
    let quiet = endpoint(|mut stream| drop(stream.read(&mut [0; 1])));
    let World { plane, listener, metrics, .. } = world(Config::default(), &[quiet]);
    let mut client = TcpStream::connect(listener.address().ip().unwrap()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    until("open", || listener.connections() == 1);
    assert_eq!(listener.drain(Duration::from_millis(100)).await, 1);
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    until("counted", || metrics.dropped_so_far("web", Dropped::Drain) == 1);
    plane.shutdown();
}
