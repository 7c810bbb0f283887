//! The server on loopback sockets: real clients, real upstreams, and `dig` where it is installed.

mod aliases;
mod authoritative;
mod encrypted;
mod forwarding;
mod sockets;
mod upstreams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use nerve::tasks::Tasks;
use synapse::catalog::{Catalog, Change, Freshness, Writer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::dns::address::UpstreamAddress;
use crate::dns::config::{Limits, Upstreams};
use crate::drain::{self, DrainTrigger, Drained};

const PATIENCE: Duration = Duration::from_secs(10);

/// A running server, its catalog, and whom to tell that it is over.
struct World {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    handle: Handle,
    writer: Writer,
    drain: DrainTrigger,
    _tasks: Tasks,
}

/// A configuration for loopback: any port, no upstream, quick ticks.
fn config() -> Config {
    Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        upstreams: Upstreams::None,
        limits: Limits { retry: Duration::from_millis(20), ..Limits::default() },
        ..Config::default()
    }
}

fn forwarding_to(servers: &[SocketAddr]) -> Config {
    let servers = servers.iter().copied().map(UpstreamAddress::udp).collect();
    Config { upstreams: Upstreams::List(servers), ..config() }
}

/// Starts a server with three instances of `web`, of which two serve.
fn start(config: Config) -> World {
    let (catalog, mut writer) = Catalog::new();
    writer.set_freshness(Freshness::Live);
    writer.apply([
        instance("web", "1", "192.0.2.1", "passing"),
        instance("web", "2", "192.0.2.2", "passing"),
        instance("web", "3", "192.0.2.3", "critical"),
    ]);
    let metrics = Arc::new(Metrics::default());
    let bound = bind(config, catalog, Inherited::default(), Arc::clone(&metrics));
    let address = bound.addresses().first().copied().unwrap_or(([0, 0, 0, 0], 0).into());
    let (handle, (drain, watcher), tasks) = (bound.handle(), drain::channel(), Tasks::new());
    tasks.spawn("server under test", bound.run(watcher));
    World { address, metrics, handle, writer, drain, _tasks: tasks }
}

fn instance(service: &str, id: &str, address: &str, health: &str) -> Change {
    let json = serde_json::json!({
        "service": service, "id": id, "node": "a", "address": address, "port": 8080, "health": health,
    });
    Change::PutInstance(Arc::new(serde_json::from_value(json).unwrap()))
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.edns = Some(edns);
    message
}

async fn octets_over_udp(server: SocketAddr, octets: &[u8]) -> Option<Vec<u8>> {
    let any: SocketAddr =
        if server.is_ipv4() { ([127, 0, 0, 1], 0).into() } else { "[::1]:0".parse().unwrap() };
    let socket = UdpSocket::bind(any).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(octets).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.ok()?.unwrap();
    buffer.truncate(length);
    Some(buffer)
}

async fn udp(server: SocketAddr, query: &Message) -> Message {
    let octets = octets_over_udp(server, &query.to_vec().unwrap()).await.expect("an answer");
    let answer = Message::from_vec(&octets).unwrap();
    assert_eq!(answer.metadata.id, query.metadata.id);
    answer
}

async fn write_framed(stream: &mut (impl AsyncWrite + Unpin), query: &Message) {
    let octets = query.to_vec().unwrap();
    stream.write_u16(octets.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&octets).await.unwrap();
    stream.flush().await.unwrap();
}

async fn read_framed(stream: &mut (impl AsyncRead + Unpin)) -> Message {
    let read = async {
        let mut octets = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut octets).await.unwrap();
        Message::from_vec(&octets).unwrap()
    };
    timeout(PATIENCE, read).await.expect("an answer")
}

async fn tcp(server: SocketAddr, query: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    write_framed(&mut stream, query).await;
    let answer = read_framed(&mut stream).await;
    assert_eq!(answer.metadata.id, query.metadata.id);
    answer
}

fn addresses(message: &Message) -> Vec<String> {
    let mut all: Vec<_> = message.answers.iter().map(|record| record.data.to_string()).collect();
    all.sort();
    all
}

/// Waits for a condition that the server brings about.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within {PATIENCE:?}: {what}");
}

/// Runs dig; `None` where it is not installed.
async fn dig(server: SocketAddr, arguments: &[&str]) -> Option<String> {
    let mut command = tokio::process::Command::new("dig");
    command.arg(format!("@{}", server.ip())).arg("-p").arg(server.port().to_string());
    match command.args(["+time=5", "+tries=1"]).args(arguments).output().await {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => {
            eprintln!("skipped: dig cannot be run ({error}); install bind9-dnsutils");
            None
        }
    }
}
