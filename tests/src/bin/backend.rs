//! The backend of the tests: HTTP/1.1 on one address, a thread a connection; and UDP there, where any datagram is answered with
//! what `GET anything` is, and its first 64 bytes in hexadecimal digits as `question`. An address `unix:/path` is a unix socket, and
//! has no UDP; whatever stands there is replaced.
//!
//! ```text
//! plexus-test-backend ADDRESS SERVICE INSTANCE NODE
//! GET  /healthz    200, or 503 after POST /fail and before POST /recover
//! GET  /seen       when the first failed probe was answered, when the newest client connection was accepted
//! GET  /slow/MS    answers after so many milliseconds
//! GET  /content/N  N blocks of what `plexus_tests::content` is
//! POST /content    takes the same; 409 where it is something else
//! GET  /metrics    how many connections of clients there were, as Prometheus reads it
//! GET  /client     who asks, as its address is seen here; over UDP, `/client` does
//! GET  anything    {"service": …, "instance": …, "node": …}
//! ```
//!
//! Connections whose first request is for `/healthz`, `/fail`, `/recover` or `/seen` are the tests' and the checks'; all others clients'.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use plexus_tests::content::{BLOCK, block};

/// Counted before the first answer, in microseconds since the start plus one; 0 for never.
struct State {
    start: Instant,
    identity: String,
    failing: AtomicBool,
    first_failed_probe: AtomicU64,
    last_connection: AtomicU64,
    connections: AtomicU64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, service, instance, node] = arguments.as_slice() else {
        return Err("usage: plexus-test-backend ADDRESS SERVICE INSTANCE NODE".into());
    };
    let state: &'static State = Box::leak(Box::new(State {
        start: Instant::now(),
        identity: serde_json::json!({ "service": service, "instance": instance, "node": node }).to_string(),
        failing: AtomicBool::new(false),
        first_failed_probe: AtomicU64::new(0),
        last_connection: AtomicU64::new(0),
        connections: AtomicU64::new(0),
    }));
    if let Some(path) = address.strip_prefix("unix:") {
        let _ = std::fs::remove_file(path);
        for stream in UnixListener::bind(path)?.incoming() {
            let stream = stream?;
            spawn(state, "unix".to_owned(), stream.try_clone()?, stream)?;
        }
        return Ok(());
    }
    let datagrams = UdpSocket::bind(address)?;
    thread::Builder::new().stack_size(128 * 1024).spawn(move || {
        // Errors here are those of clients that have gone.
        let mut question = [0; 2048];
        loop {
            if let Ok((length, client)) = datagrams.recv_from(&mut question) {
                let answer = match &question[..length] {
                    b"/client" => client.to_string(),
                    question => state.answer_to(&question[..question.len().min(64)]),
                };
                let _ = datagrams.send_to(answer.as_bytes(), client);
            }
        }
    })?;
    for stream in TcpListener::bind(address)?.incoming() {
        let stream = stream?;
        // Whoever only looks whether somebody listens may have reset it by now.
        let Ok(peer) = stream.set_nodelay(true).and_then(|()| stream.peer_addr()) else { continue };
        spawn(state, peer.to_string(), stream.try_clone()?, stream)?;
    }
    Ok(())
}

/// Serves a connection, whose two handles these are.
fn spawn(
    state: &'static State,
    client: String,
    reader: impl Read + Send + 'static,
    writer: impl Write + Send + 'static,
) -> io::Result<()> {
    let accepted = state.now();
    thread::Builder::new().stack_size(128 * 1024).spawn(move || {
        // A connection that its client gave up is no failure of ours.
        let _ = serve(state, &client, BufReader::new(reader), writer, accepted);
    })?;
    Ok(())
}

impl State {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX) + 1
    }

    /// Who this is, and what was asked, so that a late answer is not taken for another.
    fn answer_to(&self, question: &[u8]) -> String {
        let question: String = question.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{},\"question\":\"{question}\"}}", self.identity.trim_end_matches('}'))
    }

    fn answer(&self, method: &str, path: &str) -> (u16, String) {
        match (method, path) {
            ("GET", "/healthz") if self.failing.load(Ordering::SeqCst) => {
                let first = &self.first_failed_probe;
                let _ = first.compare_exchange(0, self.now(), Ordering::SeqCst, Ordering::SeqCst);
                (503, "failing, as told".to_owned())
            }
            ("POST", "/fail") => {
                self.failing.store(true, Ordering::SeqCst);
                (200, String::new())
            }
            ("POST", "/recover") => {
                self.failing.store(false, Ordering::SeqCst);
                self.first_failed_probe.store(0, Ordering::SeqCst);
                (200, String::new())
            }
            ("GET", "/seen") => {
                let time = |at: &AtomicU64| Some(at.load(Ordering::SeqCst)).filter(|at| *at > 0);
                let seen = serde_json::json!({
                    "first_failed_probe_us": time(&self.first_failed_probe),
                    "last_connection_us": time(&self.last_connection),
                    "connections": self.connections.load(Ordering::SeqCst),
                });
                (200, seen.to_string())
            }
            ("GET", "/metrics") => {
                let connections = self.connections.load(Ordering::SeqCst);
                (200, format!("plexus_test_connections_total {connections}\n"))
            }
            ("GET", path) => {
                if let Some(wait) = path.strip_prefix("/slow/").and_then(|ms| ms.parse().ok()) {
                    // A channel that nothing is sent on: the wait is its timeout.
                    let (_nobody, silence) = mpsc::channel::<()>();
                    let _ = silence.recv_timeout(Duration::from_millis(wait));
                }
                (200, self.identity.clone())
            }
            _ => (405, String::new()),
        }
    }
}

fn serve(
    state: &State,
    client: &str,
    mut reader: impl BufRead,
    mut writer: impl Write,
    accepted: u64,
) -> io::Result<()> {
    let mut first = true;
    while let Some(Request { method, path, length }) = read_request(&mut reader)? {
        let is_ours = matches!(path.as_str(), "/healthz" | "/fail" | "/recover" | "/seen");
        if first && !is_ours {
            state.last_connection.fetch_max(accepted, Ordering::SeqCst);
            state.connections.fetch_add(1, Ordering::SeqCst);
        }
        first = false;
        if let Some(blocks) = path.strip_prefix("/content/").and_then(|blocks| blocks.parse::<u64>().ok()) {
            write!(writer, "HTTP/1.1 200 -\r\ncontent-length: {}\r\n\r\n", blocks * BLOCK as u64)?;
            (0..blocks).try_for_each(|number| writer.write_all(&block(number)))?;
            continue;
        }
        let (status, body) = match (method.as_str(), path.as_str()) {
            ("POST", "/content") => (if is_content(&mut reader, length)? { 200 } else { 409 }, String::new()),
            (_, "/client") => (200, client.to_owned()),
            _ => state.answer(&method, &path),
        };
        write!(writer, "HTTP/1.1 {status} -\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

/// Does a body of this length consist of the blocks that it should?
fn is_content(reader: &mut impl Read, length: u64) -> io::Result<bool> {
    let mut received = [0; BLOCK];
    let mut good = length.is_multiple_of(BLOCK as u64);
    for number in 0..length / BLOCK as u64 {
        reader.read_exact(&mut received)?;
        good &= received == block(number);
    }
    Ok(good)
}

/// What is read of a request.
struct Request {
    method: String,
    path: String,
    length: u64,
}

/// The next request, up to its body.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let Some((method, path)) = words.next().zip(words.next()) else { return Ok(None) };
    let mut length = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header == "\r\n" {
            return Ok(Some(Request { method, path, length }));
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
}
