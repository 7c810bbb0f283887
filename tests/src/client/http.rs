//! HTTP requests whose failures say in which step: connecting, sending, receiving, or what was answered.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::content::{BLOCK, block};
use rustix::net::{AddressFamily, SocketType};

/// Longer than any bound that a test asserts, so that a hang is told from a slow answer by the test, not by this.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// The step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Making the TCP connection.
    Connect,
    /// Sending the request.
    Send,
    /// Receiving the answer.
    Receive,
    /// The answer came and is not a 200.
    Status,
}

/// Why a request failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// In which step.
    pub step: Step,
    /// Of which kind; `Other` where an answer came.
    pub kind: io::ErrorKind,
    /// Why.
    pub why: String,
}

impl Failure {
    fn of(step: Step) -> impl FnOnce(io::Error) -> Self {
        move |error| Self { step, kind: error.kind(), why: error.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.step, self.why)
    }
}

impl Answer {
    /// The instance that a [`Backend`](crate::server::backend::Backend) says it is.
    #[must_use]
    pub fn instance(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_str(&self.body).ok()?;
        Some(body["instance"].as_str()?.to_owned())
    }
}

/// What an answer begins with.
struct Head {
    status: u16,
    length: usize,
    chunked: bool,
}

/// A connection that stays open between requests.
#[derive(Debug)]
pub struct Held {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Held {
    /// Connects.
    ///
    /// # Errors
    /// What failed.
    pub fn open(address: SocketAddr) -> Result<Self, Failure> {
        Self::open_patiently(address, PATIENCE)
    }

    /// Connects; connecting, and each receiving and sending, may take so long.
    ///
    /// # Errors
    /// What failed.
    pub fn open_patiently(address: SocketAddr, patience: Duration) -> Result<Self, Failure> {
        let stream = TcpStream::connect_timeout(&address, patience);
        let held = stream.and_then(|stream| Self::new(address, stream, patience));
        held.map_err(Failure::of(Step::Connect))
    }

    /// Connects from an address and port, which others of its kind may have towards other servers.
    ///
    /// # Errors
    /// What failed.
    pub fn open_from(own: SocketAddr, address: SocketAddr) -> Result<Self, Failure> {
        let family = if own.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let connect = || {
            let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &own)?;
            rustix::net::connect(&socket, &address)?;
            Self::new(address, TcpStream::from(socket), PATIENCE)
        };
        connect().map_err(Failure::of(Step::Connect))
    }

    fn new(address: SocketAddr, stream: TcpStream, patience: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { address, stream: BufReader::new(stream) })
    }

    /// Where it comes from.
    ///
    /// # Panics
    /// It has no socket any more.
    #[must_use]
    pub fn own_address(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().expect("a socket")
    }

    /// `GET path` on this connection.
    ///
    /// # Errors
    /// What failed, in which step.
    pub fn get(&mut self, path: &str) -> Result<Answer, Failure> {
        self.ask("GET", path)
    }

    /// A request with this text as its body, which is JSON.
    ///
    /// # Errors
    /// What failed, in which step.
    pub fn change(&mut self, method: &str, path: &str, json: &str) -> Result<Answer, Failure> {
        let sent = self.send(method, path, json.len());
        sent.and_then(|()| self.stream.get_mut().write_all(json.as_bytes()))
            .map_err(Failure::of(Step::Send))?;
        self.receive().map_err(Failure::of(Step::Receive))
    }

    /// Has `blocks` blocks of [content](crate::content) sent by a backend, and looks at every byte.
    ///
    /// # Errors
    /// What failed; `InvalidData` where other bytes came.
    pub fn download(&mut self, blocks: u64) -> Result<(), Failure> {
        self.send("GET", &format!("/content/{blocks}"), 0).map_err(Failure::of(Step::Send))?;
        let received = (|| {
            let head = self.head()?;
            if (head.status, head.length) != (200, usize::try_from(blocks).unwrap_or(0) * BLOCK) {
                return Err(malformed(&format!("{} with {} bytes", head.status, head.length)));
            }
            let mut bytes = [0; BLOCK];
            (0..blocks).try_for_each(|number| {
                self.stream.read_exact(&mut bytes)?;
                if bytes == block(number) { Ok(()) } else { Err(malformed("not what was sent")) }
            })
        })();
        received.map_err(Failure::of(Step::Receive))
    }

    /// Sends a backend `blocks` blocks of [content](crate::content), which looks at every byte.
    ///
    /// # Errors
    /// What failed.
    pub fn upload(&mut self, blocks: u64) -> Result<Answer, Failure> {
        let sent = (|| {
            self.send("POST", "/content", usize::try_from(blocks).unwrap_or(0) * BLOCK)?;
            (0..blocks).try_for_each(|number| self.stream.get_mut().write_all(&block(number)))
        })();
        sent.map_err(Failure::of(Step::Send))?;
        self.receive().map_err(Failure::of(Step::Receive))
    }

    /// Has the other side closed it, though nothing is awaited?
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let stream = self.stream.get_ref();
        let _ = stream.set_nonblocking(true);
        let ended = match stream.peek(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        let _ = stream.set_nonblocking(false);
        ended
    }

    fn ask(&mut self, method: &str, path: &str) -> Result<Answer, Failure> {
        self.send(method, path, 0).map_err(Failure::of(Step::Send))?;
        self.receive().map_err(Failure::of(Step::Receive))
    }

    fn send(&mut self, method: &str, path: &str, length: usize) -> io::Result<()> {
        let host = self.address;
        let kind = if length > 0 { "content-type: application/json\r\n" } else { "" };
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{kind}content-length: {length}\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())
    }

    fn receive(&mut self) -> io::Result<Answer> {
        let Head { status, length, chunked } = self.head()?;
        let body = if chunked { self.chunks()? } else { self.bytes(length)? };
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    }

    fn head(&mut self) -> io::Result<Head> {
        let head = self.line()?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| malformed(&format!("no status line: {head:?}")))?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let header = self.line()?.to_ascii_lowercase();
            match header.split_once(':') {
                Some(("content-length", value)) => {
                    length = value.trim().parse().map_err(|_| malformed("content-length is no number"))?;
                }
                Some(("transfer-encoding", value)) => chunked = value.contains("chunked"),
                Some(_) => {}
                None => break,
            }
        }
        Ok(Head { status, length, chunked })
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line()?, 16).unwrap_or(0);
            body.extend(self.bytes(size)?);
            self.line()?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        // Half a line is no line that says something wrong: whoever wrote it was ended.
        if !line.ends_with('\n') {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the end of the answer"));
        }
        Ok(line.trim_end().to_owned())
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// One request on a connection of its own.
///
/// # Errors
/// What failed, in which step.
pub fn ask(address: SocketAddr, method: &str, path: &str) -> Result<Answer, Failure> {
    Held::open(address)?.ask(method, path)
}

/// `GET path` on a connection of its own.
///
/// # Errors
/// What failed, in which step.
pub fn get(address: SocketAddr, path: &str) -> Result<Answer, Failure> {
    ask(address, "GET", path)
}

/// Can a TCP connection be made within a second?
#[must_use]
pub fn can_connect(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}
