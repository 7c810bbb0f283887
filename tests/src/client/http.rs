//! HTTP requests whose failures say in which step: connecting, sending, receiving, or what was answered.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

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
    /// Why.
    pub why: String,
}

impl Failure {
    fn of(step: Step) -> impl FnOnce(io::Error) -> Self {
        move |error| Self { step, why: error.to_string() }
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
        let stream = TcpStream::connect_timeout(&address, PATIENCE).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        Ok(Self { address, stream: BufReader::new(stream.map_err(Failure::of(Step::Connect))?) })
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

    fn ask(&mut self, method: &str, path: &str) -> Result<Answer, Failure> {
        let host = self.address;
        let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).map_err(Failure::of(Step::Send))?;
        self.receive().map_err(Failure::of(Step::Receive))
    }

    fn receive(&mut self) -> io::Result<Answer> {
        let malformed = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
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
        let body = if chunked { self.chunks()? } else { self.bytes(length)? };
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
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
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the answer"));
        }
        Ok(line.trim_end().to_owned())
    }
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
