//! A steady load of DNS questions, over UDP, over TCP with a connection each, and over one TCP connection that is kept.
//!
//! Each is asked once: a question without an answer is a failure, and so is a kept connection that ends while an answer is
//! awaited. One that ends between two questions is made anew, as RFC 7766 section 6.2.3 wants of clients.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::netns::Namespace;
use crate::wait::pause;

/// Longer than any pause that a test tolerates.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions on a kept connection; then another is made. One that was kept for ever would keep for ever what it leads to.
const KEPT: u32 = 100;
/// Between two questions of one thread.
const PACE: Duration = Duration::from_millis(5);

/// Questions that go on; stopped when dropped.
#[derive(Debug)]
pub struct Names {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What they have seen.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Answers, with at least one address each: over UDP, TCP, kept TCP.
    pub answered: [u64; 3],
    /// What failed.
    pub failed: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    query: Vec<u8>,
    stop: AtomicBool,
    asked: Mutex<Asked>,
}

impl Names {
    /// Asks `server` for the addresses of `name` from inside a namespace.
    ///
    /// # Panics
    /// Its threads cannot be made.
    #[must_use]
    pub fn start(from: &Namespace, server: IpAddr, name: &str) -> Self {
        let shared = Arc::new(Shared {
            server: SocketAddr::new(server, 53),
            query: query(name),
            stop: AtomicBool::new(false),
            asked: Mutex::default(),
        });
        let ways = [Shared::udp, Shared::tcp, Shared::kept];
        let threads = ways.map(|way| {
            let shared = Arc::clone(&shared);
            from.spawn("names", move || way(&shared)).expect("a thread inside the namespace")
        });
        Self { shared, threads: threads.into() }
    }

    /// Waits until each way has had `count` more answers.
    #[track_caller]
    pub fn wait_for(&self, count: u64) {
        let enough = self.shared.asked().answered.map(|answered| answered + count);
        crate::eventually!(Duration::from_secs(60), self.shared.asked().answered, |seen| {
            seen.iter().zip(enough).all(|(seen, enough)| *seen >= enough)
        });
    }

    /// Ends it and returns what it has seen.
    #[must_use]
    pub fn stop(mut self) -> Asked {
        self.end();
        self.shared.asked()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.end();
    }
}

impl Asked {
    /// Panics when a question had no answer, or one of the ways was not asked.
    #[track_caller]
    pub fn assert_unharmed(&self) {
        assert!(self.failed.is_empty() && !self.answered.contains(&0), "{self}");
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered: [udp, tcp, kept], failed } = self;
        write!(
            f,
            "{} questions failed; answered: {udp} over UDP, {tcp} over TCP, {kept} over a kept connection",
            failed.len()
        )?;
        failed.iter().take(10).try_for_each(|why| write!(f, "\n  {why}"))
    }
}

impl Shared {
    fn asked(&self) -> Asked {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, way: usize, result: io::Result<()>) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => asked.answered[way] += 1,
            Err(error) => asked.failed.push(format!("{}: {error}", ["UDP", "TCP", "kept TCP"][way])),
        }
    }

    fn goes_on(&self) -> bool {
        pause(PACE);
        !self.stop.load(Ordering::SeqCst)
    }

    fn udp(&self) {
        while self.goes_on() {
            self.note(0, self.ask_udp());
        }
    }

    fn ask_udp(&self) -> io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(self.server)?;
        socket.send(&self.query)?;
        let mut answer = [0; 1500];
        let length = socket.recv(&mut answer)?;
        good(&answer[..length])
    }

    fn tcp(&self) {
        while self.goes_on() {
            self.note(1, self.connect().and_then(|mut stream| self.ask_tcp(&mut stream)));
        }
    }

    fn kept(&self) {
        let mut stream: Option<(TcpStream, u32)> = None;
        while self.goes_on() {
            let kept = stream.take().filter(|(kept, questions)| *questions < KEPT && !has_ended(kept));
            let kept = kept.map_or_else(|| self.connect().map(|fresh| (fresh, 0)), Ok);
            let asked = kept.and_then(|(mut kept, questions)| {
                self.ask_tcp(&mut kept)?;
                stream = Some((kept, questions + 1));
                Ok(())
            });
            self.note(2, asked);
        }
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.server, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    fn ask_tcp(&self, stream: &mut TcpStream) -> io::Result<()> {
        let length = u16::try_from(self.query.len()).expect("a short name");
        stream.write_all(&[&length.to_be_bytes()[..], &self.query].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        good(&answer)
    }
}

/// Has the server closed it, though nothing is awaited?
fn has_ended(stream: &TcpStream) -> bool {
    let _ = stream.set_nonblocking(true);
    let ended = matches!(stream.peek(&mut [0]), Ok(0));
    let _ = stream.set_nonblocking(false);
    ended
}

/// RFC 1035 section 4.1: one question of type A.
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        query.push(u8::try_from(label.len()).expect("a label"));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// No error, and an answer: the code and the count of answers in the header.
fn good(answer: &[u8]) -> io::Result<()> {
    match answer {
        [0x12, 0x34, _, code, _, _, high, low, ..] if code & 0x0f == 0 && (*high, *low) != (0, 0) => Ok(()),
        _ => Err(io::Error::other(format!("not the answer: {:x?}", &answer[..answer.len().min(12)]))),
    }
}
