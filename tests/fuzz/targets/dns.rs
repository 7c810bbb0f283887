//! Whatever comes over UDP or TCP, the name server goes on: a question behind it is answered, what is said to it is a whole
//! message of no more than is allowed, and nothing panics. Both roads of a question are behind one socket: a server over loopback.

#![no_main]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mesh::dns::{Config, Metrics, Route, Upstreams, bind};
use mesh::drain;
use mesh::inherited::Inherited;
use synapse::catalog::{Catalog, Change, Freshness};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is asked behind each packet.
const CANARY: [u8; 2] = [0xca, 0x9a];

#[derive(Debug, Arbitrary)]
struct Script {
    by_tcp: bool,
    packet: Packet,
}

#[derive(Debug, Arbitrary)]
enum Packet {
    Raw(Vec<u8>),
    /// A question, and what else the octets have.
    Question {
        flags: u16,
        name: Name,
        kind: Kind,
        additionals: u8,
        rest: Vec<u8>,
    },
    /// A question with EDNS.
    Edns {
        flags: u16,
        name: Name,
        kind: Kind,
        payload: u16,
        version: u8,
        bits: u16,
        options: Vec<(u8, Vec<u8>)>,
    },
}

#[derive(Debug, Arbitrary)]
struct Name {
    labels: Vec<Label>,
    is_ours: bool,
}

#[derive(Debug, Arbitrary)]
enum Label {
    Web,
    Many,
    Node,
    Tcp,
    Service,
    Corp,
    Localhost,
    Other(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Kind {
    A,
    Aaaa,
    Srv,
    Soa,
    Any,
    Other(u16, u16),
}

fuzz_target!(|script: Script| {
    let octets = script.packet.octets();
    if octets.starts_with(&CANARY) || octets.len() > 60_000 {
        return;
    }
    if script.by_tcp { over_tcp(&octets) } else { over_udp(&octets) }
});

impl Packet {
    fn octets(&self) -> Vec<u8> {
        match self {
            Self::Raw(octets) => octets.clone(),
            Self::Question { flags, name, kind, additionals, rest } => {
                let mut octets = question(*flags, name, kind, *additionals);
                octets.extend(rest);
                octets
            }
            Self::Edns { flags, name, kind, payload, version, bits, options } => {
                let mut octets = question(*flags, name, kind, 1);
                let mut data = Vec::new();
                for (code, option) in options.iter().take(8) {
                    let option = &option[..option.len().min(64)];
                    data.extend([0, *code, 0, option.len() as u8]);
                    data.extend(option);
                }
                octets.extend([0, 0, 41]);
                octets.extend(payload.to_be_bytes());
                octets.extend([0, *version]);
                octets.extend(bits.to_be_bytes());
                octets.extend((data.len() as u16).to_be_bytes());
                octets.extend(data);
                octets
            }
        }
    }
}

fn question(flags: u16, name: &Name, kind: &Kind, additionals: u8) -> Vec<u8> {
    let mut octets = vec![0, 7];
    octets.extend(flags.to_be_bytes());
    octets.extend([0, 1, 0, 0, 0, 0, 0, additionals]);
    let ours: &[&[u8]] = if name.is_ours { &[b"mesh", b"internal"] } else { &[] };
    let labels = name.labels.iter().take(8).map(|label| match label {
        Label::Web => &b"web"[..],
        Label::Many => b"many",
        Label::Node => b"node",
        Label::Tcp => b"_tcp",
        Label::Service => b"service",
        Label::Corp => b"corp",
        Label::Localhost => b"localhost",
        Label::Other(label) => &label[..label.len().min(63)],
    });
    for label in labels.chain(ours.iter().copied()) {
        octets.push(label.len() as u8);
        octets.extend(label);
    }
    octets.push(0);
    let (kind, class) = match kind {
        Kind::A => (1, 1),
        Kind::Aaaa => (28, 1),
        Kind::Srv => (33, 1),
        Kind::Soa => (6, 1),
        Kind::Any => (255, 1),
        Kind::Other(kind, class) => (*kind, *class),
    };
    octets.extend(kind.to_be_bytes());
    octets.extend(u16::to_be_bytes(class));
    octets
}

fn canary() -> Vec<u8> {
    [&CANARY[..], b"\x01\0\0\x01\0\0\0\0\0\0\x03web\x04mesh\x08internal\0\0\x01\0\x01"].concat()
}

fn over_udp(octets: &[u8]) {
    thread_local! {
        static SOCKET: UdpSocket = {
            let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
            socket.connect(server()).expect("a way to the server");
            socket.set_read_timeout(Some(PATIENCE)).expect("a time");
            socket
        };
    }
    SOCKET.with(|socket| {
        socket.send(octets).expect("sent");
        socket.send(&canary()).expect("sent");
        let mut answer = [0; 65_535];
        loop {
            let length = socket.recv(&mut answer).expect("an answer to what was asked behind it");
            check(&answer[..length]);
            assert!(length <= 1232, "{length} octets over UDP");
            if answer.starts_with(&CANARY) {
                return;
            }
        }
    });
}

fn over_tcp(octets: &[u8]) {
    thread_local! {
        static STREAM: RefCell<Option<TcpStream>> = const { RefCell::new(None) };
    }
    let framed = |octets: &[u8]| [&(octets.len() as u16).to_be_bytes()[..], octets].concat();
    STREAM.with_borrow_mut(|kept| {
        let mut stream = kept.take().unwrap_or_else(|| {
            let stream = TcpStream::connect(server()).expect("a connection");
            stream.set_read_timeout(Some(PATIENCE)).expect("a time");
            stream
        });
        // One that was idle for too long was closed, as is one that says what is no question.
        if stream.write_all(&[framed(octets), framed(&canary())].concat()).is_err() {
            return;
        }
        loop {
            let mut length = [0; 2];
            match stream.read_exact(&mut length) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("neither an answer nor an end")
                }
                Err(_) => return,
            }
            let mut answer = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut answer).expect("a whole answer");
            check(&answer);
            if answer.starts_with(&CANARY) {
                break;
            }
        }
        *kept = Some(stream);
    });
}

/// A response whose records are all there, with nothing behind them.
fn check(answer: &[u8]) {
    let number = |at: usize| usize::from(answer[at]) << 8 | usize::from(answer[at + 1]);
    assert!(answer.len() >= 12 && answer[2] & 0x80 != 0, "no response: {answer:x?}");
    let name = |mut at: usize| loop {
        match answer[at] {
            0 => break at + 1,
            192.. => break at + 2,
            length => at += 1 + usize::from(length),
        }
    };
    let mut at = 12;
    for _ in 0..number(4) {
        at = name(at) + 4;
    }
    for _ in 0..number(6) + number(8) + number(10) {
        let fields = name(at);
        at = fields + 10 + number(fields + 8);
    }
    assert_eq!(at, answer.len(), "{answer:x?}");
}

fn server() -> SocketAddr {
    static SERVER: OnceLock<SocketAddr> = OnceLock::new();
    *SERVER.get_or_init(|| {
        let (catalog, mut writer) = Catalog::new();
        writer.set_freshness(Freshness::Live);
        let instances = (0..60).map(|n| {
            let json = serde_json::json!({
                "service": if n == 0 { "web" } else { "many" }, "id": n.to_string(), "node": "a",
                "address": format!("192.0.2.{n}"), "port": 80, "health": "passing", "tags": ["v1"], "zone": "east",
            });
            Change::PutInstance(Arc::new(serde_json::from_value(json).expect("an instance")))
        });
        writer.apply(instances);
        let config = Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            // Nobody listens there: what is asked of others fails at once, and is told so.
            upstreams: Upstreams::List(vec!["127.0.0.1:1".parse().expect("an upstream")]),
            routes: vec![Route { domain: "corp".parse().expect("a domain"), upstreams: Vec::new() }],
            ..Config::default()
        };
        let bound = bind(config, catalog, Inherited::default(), Arc::new(Metrics::default()));
        let address = bound.addresses()[0];
        let served = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let (_never, watcher) = drain::channel();
            runtime.block_on(bound.run(watcher));
            drop(writer);
        };
        std::thread::Builder::new().name("server".to_owned()).spawn(served).expect("a thread");
        address
    })
}
