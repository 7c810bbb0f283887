//! Whatever a client and an endpoint do to a connection, in whatever order, the other side gets the same: every byte, then the
//! same end. A script of steps is run against a data plane over loopback.

#![no_main]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mesh::balance::{self, Balancer, Place, Surroundings};
use mesh::proxy::{Config, DataPlane, Listener, ListenerSpec, Metrics, Sharing};
use nerve::model::ServiceName;
use nix::sys::signal::{SigSet, Signal};
use socket2::SockRef;
use synapse::catalog::{Catalog, Change};

/// Longer than anything here takes; whoever waits so long has lost something.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Step {
    by_client: bool,
    does: Act,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Act {
    /// Writes so many bytes, sixteen at a time.
    Send(u16),
    /// Reads at most so many.
    Receive(u16),
    /// Ends its direction.
    Finish,
    /// Breaks off.
    Reset,
    /// Lets the others run.
    Yield,
}

fuzz_target!(init: block_sigpipe(), |script: Vec<Step>| {
    // What more steps would find, fewer find sooner.
    run(&script[..script.len().min(64)]);
});

/// What is spliced into a broken connection is an error and not the end: Rust's own `main` ignores the signal, a fuzzer's does not.
/// Threads have it blocked as whoever starts them.
fn block_sigpipe() {
    SigSet::from(Signal::SIGPIPE).thread_block().expect("a signal can be blocked");
}

struct Plane {
    _plane: DataPlane,
    listener: Listener,
    endpoint: TcpListener,
}

fn plane() -> &'static Plane {
    static PLANE: OnceLock<Plane> = OnceLock::new();
    PLANE.get_or_init(|| {
        let endpoint = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = endpoint.local_addr().expect("an address");
        let (catalog, mut writer) = Catalog::new();
        let web = ServiceName::new("web").expect("a name");
        let instance = serde_json::json!({
            "service": "web", "id": "1", "node": "a", "address": at.ip(), "port": at.port(), "health": "passing",
        });
        let instance = serde_json::from_value(instance).expect("an instance");
        writer.apply([Change::PutInstance(Arc::new(instance))]);
        let config = Config { threads: NonZeroUsize::new(1), ..Config::default() };
        let plane = DataPlane::start(config, Metrics::new().expect("metrics")).expect("a plane");
        let surroundings = Surroundings {
            place: Place::default(),
            metrics: balance::Metrics::new().expect("metrics"),
            on_closing: plane.closer(),
        };
        let balancer = Arc::new(Balancer::new(web, None, &surroundings));
        balancer.update(catalog.service("web").as_deref());
        let address: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let spec = ListenerSpec { address, balancer, sharing: Sharing::PerThread, inherited: Vec::new(), overlaps: false };
        let listener = plane.open(spec).expect("a listener");
        Plane { _plane: plane, listener, endpoint }
    })
}

/// One end of the connection, and what it did.
struct End {
    socket: Option<TcpStream>,
    sent: usize,
    received: usize,
    finished: bool,
    /// It heard the other's end.
    heard_end: bool,
    /// It broke off, or was broken off.
    broken: bool,
}

fn run(script: &[Step]) {
    let plane = plane();
    let client = TcpStream::connect(plane.listener.address().ip().expect("an IP address")).expect("the balancer accepts");
    let (endpoint, _) = plane.endpoint.accept().expect("the endpoint is connected to");
    let mut ends = [End::new(client), End::new(endpoint)];
    for step in script {
        let end = &mut ends[usize::from(!step.by_client)];
        end.act(step.does, usize::from(!step.by_client));
    }
    // Both end in order, unless somebody broke off.
    ends.iter_mut().enumerate().for_each(|(at, end)| end.act(Act::Finish, at));
    let deadline = Instant::now() + PATIENCE;
    while ends.iter().any(|end| !end.heard_end && !end.broken) {
        ends.iter_mut().enumerate().for_each(|(at, end)| end.receive(at, usize::MAX));
        assert!(Instant::now() < deadline, "an end is not passed on");
        std::thread::yield_now();
    }
    let [client, endpoint] = &ends;
    if !client.broken && !endpoint.broken {
        assert_eq!((client.sent, endpoint.sent), (endpoint.received, client.received), "bytes are lost");
    }
    drop(ends);
    while plane.listener.connections() > 0 {
        assert!(Instant::now() < deadline, "a connection is left behind");
        std::thread::yield_now();
    }
}

impl End {
    fn new(socket: TcpStream) -> Self {
        socket.set_nonblocking(true).expect("non-blocking");
        socket.set_nodelay(true).expect("no delay");
        Self { socket: Some(socket), sent: 0, received: 0, finished: false, heard_end: false, broken: false }
    }

    fn act(&mut self, act: Act, at: usize) {
        match act {
            Act::Send(count) => self.send(at, usize::from(count) * 16),
            Act::Receive(count) => self.receive(at, usize::from(count)),
            Act::Finish => {
                if let Some(socket) = &self.socket
                    && !std::mem::replace(&mut self.finished, true)
                    && socket.shutdown(Shutdown::Write).is_err()
                {
                    self.broken = true;
                }
            }
            Act::Reset => {
                if let Some(socket) = self.socket.take() {
                    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).expect("linger");
                    self.broken = true;
                }
            }
            Act::Yield => std::thread::yield_now(),
        }
    }

    fn send(&mut self, at: usize, count: usize) {
        let Some(mut socket) = self.socket.as_ref().filter(|_| !self.finished && !self.broken) else { return };
        let bytes: Vec<u8> = (self.sent..self.sent + count).map(|position| byte(at, position)).collect();
        match socket.write(&bytes) {
            Ok(written) => self.sent += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.broken = true,
        }
    }

    fn receive(&mut self, at: usize, mut most: usize) {
        let mut buffer = [0; 16 * 1024];
        while let Some(mut socket) = self.socket.as_ref().filter(|_| !self.heard_end && most > 0) {
            let size = buffer.len().min(most);
            match socket.read(&mut buffer[..size]) {
                Ok(0) => self.heard_end = true,
                Ok(count) => {
                    for (offset, found) in buffer[..count].iter().enumerate() {
                        assert_eq!(*found, byte(1 - at, self.received + offset), "another byte than was sent");
                    }
                    self.received += count;
                    most -= count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
    }
}

/// What stands at a position of a direction.
fn byte(from: usize, position: usize) -> u8 {
    let mixed = (position as u64 ^ ((from as u64) << 40)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as u8
}
