//! Unix sockets on either side: what holds for TCP holds for them.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nerve::model::UnixPath;

use super::*;
use crate::proxy::UnixListenerSpec;
use crate::socket_file::Access;

/// Sockets of one test, and the directory that goes with it.
struct Sockets(tempfile::TempDir);

impl Sockets {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An endpoint that does `serve` with each connection in turn.
    fn endpoint(&self, name: &str, serve: impl Fn(UnixStream) + Send + 'static) -> PathBuf {
        let listener = UnixListener::bind(self.path(name)).unwrap();
        std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
        self.path(name)
    }
}

/// A port that leads to endpoints on unix sockets.
fn on_sockets(endpoints: &[PathBuf], settings: &serde_json::Value) -> World {
    let mut world = world_with(Config::default(), &[], settings, Sharing::PerThread);
    let instances = endpoints.iter().enumerate().map(|(id, socket)| {
        let json = serde_json::json!({
            "service": "web", "id": id.to_string(), "node": "a", "address": "192.0.2.1", "port": 9, "socket": socket,
            "socket_only": {},
        });
        Change::PutInstance(Arc::new(serde_json::from_value(json).unwrap()))
    });
    world.writer.apply(instances);
    world.balancer.update(world.catalog.service("web").as_deref());
    world
}

/// A unix socket that leads to where the world's port does.
fn listen(world: &World, path: &std::path::Path) -> Listener {
    let path = UnixPath::new(path.to_str().unwrap()).unwrap();
    let (access, balancer) = (Access::default(), Arc::clone(&world.balancer));
    let spec = UnixListenerSpec { path, access, balancer, inherited: Vec::new(), is_lent: false };
    world.plane.open_unix(spec).unwrap()
}

fn connect(path: &std::path::Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn none() -> serde_json::Value {
    serde_json::json!({})
}

#[test]
fn either_side_may_finish_sending_first() {
    let sockets = Sockets::new();
    let asked = sockets.endpoint("asked", |mut stream| {
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        stream.write_all(format!("heard {question}").as_bytes()).unwrap();
    });
    let world = on_sockets(&[asked], &none());
    let mut answer = String::new();
    let mut client = world.connect();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "heard hello");
    // And from a unix socket to a unix socket.
    let listener = listen(&world, &sockets.path("web"));
    let mut client = connect(&sockets.path("web"));
    client.write_all(b"there").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    answer.clear();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "heard there");
    drop(listener);
    world.end();
}

#[test]
fn an_endpoint_that_has_finished_sending_still_hears_a_unix_client() {
    let (heard, hears) = std::sync::mpsc::channel();
    let at = endpoint(move |mut stream| {
        stream.write_all(b"welcome").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        heard.send(rest).unwrap();
    });
    let (sockets, world) = (Sockets::new(), world(Config::default(), &[at]));
    let listener = listen(&world, &sockets.path("web"));
    let mut client = connect(&sockets.path("web"));
    let mut welcome = String::new();
    client.read_to_string(&mut welcome).unwrap();
    client.write_all(b"thanks").unwrap();
    drop(client);
    assert_eq!((welcome.as_str(), hears.recv_timeout(PATIENCE).unwrap().as_str()), ("welcome", "thanks"));
    drop(listener);
    world.end();
}

#[test]
fn streams_both_ways_at_once_arrive_whole_past_a_slow_reader() {
    let sockets = Sockets::new();
    let busy = sockets.endpoint("busy", move |mut stream| {
        let mut sending = stream.try_clone().unwrap();
        let sender = in_background(move || {
            sending.write_all(&pattern()).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        let (mut received, mut chunk) = (Vec::new(), [0; 1500]);
        while let Ok(n @ 1..) = stream.read(&mut chunk) {
            received.extend_from_slice(&chunk[..n]);
        }
        assert!(received == pattern());
        sender.join().unwrap();
    });
    let world = on_sockets(&[busy], &none());
    let listener = listen(&world, &sockets.path("web"));
    let mut client = connect(&sockets.path("web"));
    let mut sending = client.try_clone().unwrap();
    let sender = in_background(move || {
        sending.write_all(&pattern()).unwrap();
        sending.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == pattern());
    until("ended", || listener.connections() == 0);
    drop(listener);
    world.end();
}

#[test]
fn a_socket_that_is_gone_or_that_nobody_listens_on_is_passed_over_for_another() {
    let sockets = Sockets::new();
    let alive = sockets.endpoint("alive", |mut stream| stream.write_all(b"ok").unwrap());
    drop(UnixListener::bind(sockets.path("dead")).unwrap());
    let world = on_sockets(&[sockets.path("gone"), alive, sockets.path("dead")], &none());
    for _ in 0..20 {
        let mut answer = String::new();
        world.connect().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "ok");
    }
    assert!(world.balancer.endpoints()[0].connect_failures() > 0);
    world.end();
}

#[test]
fn a_full_backlog_is_waited_for_and_not_held_against_the_endpoint() {
    let sockets = Sockets::new();
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(sockets.path("busy")).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let listener: UnixListener = socket.into();
    // A backlog of 0 is a place for one.
    let _first = UnixStream::connect(sockets.path("busy")).unwrap();
    let world = on_sockets(&[sockets.path("busy")], &none());
    let mut client = world.connect();
    client.write_all(b"hello").unwrap();
    until("it is asked for", || world.balancer.endpoints()[0].in_flight() == 1);
    let serving = in_background(move || {
        drop(listener.accept().unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = [0; 5];
        stream.read_exact(&mut question).unwrap();
        stream.write_all(&question).unwrap();
    });
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    assert_eq!(world.balancer.endpoints()[0].connect_failures(), 0);
    serving.join().unwrap();
    world.end();
}

#[test]
fn an_endpoint_is_told_that_a_unix_client_has_no_address() {
    for (setting, header) in
        [("proxy_v1", &b"PROXY UNKNOWN\r\n"[..]), ("proxy_v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")]
    {
        let length = header.len() + 5;
        let (heard, hears) = std::sync::mpsc::channel();
        let at = endpoint(move |mut stream| {
            let mut bytes = vec![0; length];
            stream.read_exact(&mut bytes).unwrap();
            heard.send(bytes).unwrap();
        });
        let settings = serde_json::json!({"client_address": setting});
        let (sockets, world) =
            (Sockets::new(), world_with(Config::default(), &[at], &settings, Sharing::PerThread));
        let listener = listen(&world, &sockets.path("web"));
        connect(&sockets.path("web")).write_all(b"hello").unwrap();
        assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), [header, b"hello"].concat());
        drop(listener);
        world.end();
    }
}

#[test]
fn a_proxy_on_a_unix_socket_is_believed_where_that_is_configured_and_only_there() {
    const HEADER: &[u8] = b"PROXY TCP4 198.51.100.7 203.0.113.9 4711 443\r\n";
    for (trusted, told) in [
        (&["unix"][..], HEADER),
        (&["127.0.0.0/8", "::/0"], b"PROXY UNKNOWN\r\nPROXY TCP4 198.51.100.7 203.0.113.9 4711 443\r\n"),
    ] {
        let length = told.len() + 5;
        let (heard, hears) = std::sync::mpsc::channel();
        let at = endpoint(move |mut stream| {
            let mut bytes = vec![0; length];
            stream.read_exact(&mut bytes).unwrap();
            heard.send(bytes).unwrap();
        });
        let trusted_proxies = trusted.iter().map(|trusted| trusted.parse().unwrap()).collect();
        let config = Config { trusted_proxies, ..Config::default() };
        let settings = serde_json::json!({"client_address": "proxy_v1"});
        let (sockets, world) = (Sockets::new(), world_with(config, &[at], &settings, Sharing::PerThread));
        let listener = listen(&world, &sockets.path("web"));
        let mut proxy = connect(&sockets.path("web"));
        for byte in [HEADER, b"hello"].concat() {
            proxy.write_all(&[byte]).unwrap();
        }
        assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), [told, b"hello"].concat());
        drop(listener);
        world.end();
    }
}

#[test]
fn whoever_says_nothing_of_the_kind_by_a_trusted_unix_socket_is_closed_and_counted() {
    let config = Config { trusted_proxies: Arc::new(["unix".parse().unwrap()]), ..Config::default() };
    let (sockets, world) = (Sockets::new(), world(config, &[nobody()]));
    let listener = listen(&world, &sockets.path("web"));
    let mut client = connect(&sockets.path("web"));
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // What it said was not read, which a unix socket tells as a reset.
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(connect(&sockets.path("web")));
    until("counted", || world.dropped(Dropped::ProxyHeader) == 2);
    drop(listener);
    world.end();
}

#[test]
fn unix_clients_are_one_client_to_limits_and_hashing() {
    let sockets = Sockets::new();
    let serve = |name: &'static str| {
        sockets.endpoint(name, move |mut stream| {
            let _ = stream.write_all(name.as_bytes());
            let _ = in_background(move || drop(stream.read(&mut [0; 1])));
        })
    };
    let endpoints = ["a", "b", "c"].map(serve);
    let settings = serde_json::json!({"balance": {"policy": "maglev"}, "limits": {"client_connections": 8}});
    let world = on_sockets(&endpoints, &settings);
    let listener = listen(&world, &sockets.path("web"));
    let mut clients: Vec<_> = (0..8).map(|_| connect(&sockets.path("web"))).collect();
    let mut served_by = clients.iter_mut().map(|client| {
        let mut name = [0; 1];
        client.read_exact(&mut name).unwrap();
        name[0]
    });
    let first = served_by.next().unwrap();
    assert!(served_by.all(|name| name == first));
    assert_eq!(connect(&sockets.path("web")).read(&mut [0; 1]).unwrap_or(0), 0);
    until("counted", || world.dropped(Dropped::AtLimit) == 1);
    drop(listener);
    world.end();
}

#[test]
fn descriptors_that_a_client_passes_along_stop_nothing() {
    let (heard, hears) = std::sync::mpsc::channel();
    let at = endpoint(move |mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        heard.send(bytes).unwrap();
    });
    let (sockets, world) = (Sockets::new(), world(Config::default(), &[at]));
    let listener = listen(&world, &sockets.path("web"));
    let client = connect(&sockets.path("web"));
    let mut expected = Vec::new();
    // Each read ends at one of them, whatever stands behind.
    for part in [&b"one"[..], b"two", b"three"] {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut along = rustix::net::SendAncillaryBuffer::new(&mut space);
        let descriptors = [client.as_fd()];
        assert!(along.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
        let flags = rustix::net::SendFlags::empty();
        rustix::net::sendmsg(&client, &[std::io::IoSlice::new(part)], &mut along, flags).unwrap();
        expected.extend_from_slice(part);
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), expected);
    drop(listener);
    world.end();
}

#[test]
fn another_plane_goes_on_with_the_socket_and_the_last_one_takes_its_file_away() {
    let (sockets, one) =
        (Sockets::new(), world(Config::default(), &[endpoint(|mut stream| stream.write_all(b"x").unwrap())]));
    let path = sockets.path("web");
    let first = listen(&one, &path);
    let copies = first.sockets().into_iter().map(|socket| Arc::new(socket.try_clone().unwrap()));
    let spec = UnixListenerSpec {
        path: UnixPath::new(path.to_str().unwrap()).unwrap(),
        access: Access::default(),
        balancer: Arc::clone(&one.balancer),
        inherited: copies.collect(),
        is_lent: false,
    };
    let next = DataPlane::start(Config::default(), one.metrics.clone()).unwrap();
    let failing = next.open_unix(spec.clone()).unwrap();
    drop(failing);
    assert!(path.exists(), "who fails to take over takes nothing away");
    let second = next.open_unix(spec).unwrap();
    first.hand_over();
    until("the first lets go", || first.sockets().is_empty());
    for _ in 0..20 {
        connect(&path).read_exact(&mut [0; 1]).unwrap();
    }
    drop(first);
    assert!(path.exists());
    second.stop_accepting();
    assert!(!path.exists());
    drop(second);
    next.shutdown();
    one.end();
}
