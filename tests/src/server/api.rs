//! A server in the test itself that speaks an API as it is published: HTTP/1.1 on a machine of the world, a request a connection. What is
//! answered is a [`Speaks`]'; an outage is [`Api::stop`].

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::netns::Namespace;

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// `GET` and such.
    pub method: String,
    /// The path as it was sent.
    pub path: String,
    /// What stands behind its question mark, or nothing.
    pub query: String,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Asked {
    /// A header, or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// A parameter of the query or, of a form, of the body, as it was meant.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').chain(self.body.split('&'));
        pairs
            .filter_map(|pair| pair.split_once('='))
            .find(|(known, _)| *known == name)
            .map(|(_, value)| plain(value))
    }
}

/// Without its escapes.
fn plain(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits: String = rest.by_ref().take(2).map(char::from).collect();
            bytes.push(u8::from_str_radix(&digits, 16).expect("an escape of two digits"));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// An answer.
#[derive(Debug)]
pub enum Answer {
    /// A status and a body.
    Whole(u16, String),
    /// Status 200, and what comes, for as long as it comes.
    Stream(Receiver<String>),
}

/// What answers.
pub trait Speaks: Send + Sync + 'static {
    /// The answer to a request.
    fn answer(&self, asked: &Asked) -> Answer;
}

/// The server. Stopped when dropped.
#[derive(Debug)]
pub struct Api<S: Speaks> {
    speaks: Arc<S>,
    namespace: Namespace,
    address: SocketAddr,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    ends: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    accepts: JoinHandle<()>,
}

impl<S: Speaks> Api<S> {
    /// Starts it on the loopback address of a machine.
    ///
    /// # Panics
    /// The port is taken.
    #[must_use]
    pub fn start(namespace: &Namespace, port: u16, speaks: S) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let api = Self {
            speaks: Arc::new(speaks),
            namespace: namespace.clone(),
            address,
            running: Mutex::default(),
        };
        api.start_again();
        api
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What answers.
    #[must_use]
    pub fn speaks(&self) -> &S {
        &self.speaks
    }

    /// Closes its port and every connection.
    ///
    /// # Panics
    /// A thread of it has panicked.
    pub fn stop(&self) {
        let Some(running) = self.running().take() else { return };
        running.ends.store(true, Ordering::Release);
        let address = self.address;
        // Wakes whoever accepts.
        let _ = self.namespace.enter(move || TcpStream::connect(address));
        running.accepts.join().expect("whoever accepts does not panic");
        for connection in lock(&running.connections).drain(..) {
            // It may be closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Opens its port again.
    ///
    /// # Panics
    /// It is taken.
    pub fn start_again(&self) {
        let (address, speaks) = (self.address, Arc::clone(&self.speaks));
        let listener = self.namespace.enter(move || TcpListener::bind(address)).expect("a free port");
        let (ends, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (is_over, open) = (Arc::clone(&ends), Arc::clone(&connections));
        let accepts = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_over.load(Ordering::Acquire) {
                    return;
                }
                lock(&open).extend(stream.try_clone());
                let speaks = Arc::clone(&speaks);
                // One that breaks off is the client's business.
                thread::spawn(move || drop(serve(&stream, &*speaks)));
            }
        });
        *self.running() = Some(Running { ends, connections, accepts });
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        lock(&self.running)
    }
}

impl<S: Speaks> Drop for Api<S> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// For whoever speaks, too: nothing is left half-done by a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(stream: &TcpStream, speaks: &dyn Speaks) -> std::io::Result<()> {
    let asked = read(&mut BufReader::new(stream))?;
    let mut stream = stream;
    match speaks.answer(&asked) {
        Answer::Whole(status, body) => {
            let head =
                format!("HTTP/1.1 {status} S\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all(head.as_bytes())?;
            stream.write_all(body.as_bytes())?;
        }
        Answer::Stream(said) => {
            stream.write_all(b"HTTP/1.1 200 S\r\nconnection: close\r\n\r\n")?;
            for text in said {
                stream.write_all(text.as_bytes())?;
            }
        }
    }
    stream.shutdown(Shutdown::Both)
}

fn read(stream: &mut impl BufRead) -> std::io::Result<Asked> {
    let mut line = || -> std::io::Result<String> {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut asked = Asked {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        ..Asked::default()
    };
    loop {
        let header = line()?;
        let Some((name, value)) = header.split_once(':') else { break };
        asked.headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let mut body = vec![0; asked.header("content-length").parse().unwrap_or(0)];
    stream.read_exact(&mut body)?;
    asked.body = String::from_utf8(body).map_err(std::io::Error::other)?;
    Ok(asked)
}
