//! The server behind the balancers: one thread, one loop; what a port does is its [`Role`].
//!
//! It answers on every address that is routed to it, so that a thousand endpoints are a thousand addresses and not a
//! thousand sockets. A line on its input is answered with what it has [`Served`]; the end of its input ends it.

use std::io::{self, BufRead as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_reuseaddr, set_tcp_nodelay};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, ipproto, listen, recv,
    recvfrom, send, sendto, socket_with,
};

use super::message::{self, LENGTH, Message};
use super::pattern::{Pattern, Position, Step};
use super::plan::Served;
use super::poller::{Poller, Ready};

/// Connections that wait to be accepted; the kernel's own limit is 4096.
const BACKLOG: i32 = 4096;
/// Accepted, or stepped on, in one turn.
const TURN: usize = 16;

/// What a port of the backend does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Answers one request and closes.
    Close,
    /// Answers requests until the client closes.
    Keep,
    /// Receives a stream.
    Sink,
    /// Sends a stream.
    Source,
}

impl Role {
    const ALL: [Self; 4] = [Self::Close, Self::Keep, Self::Sink, Self::Source];

    /// The port of this role; that of [`Role::Keep`] also takes datagrams.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Close => 9001,
            Self::Keep => 9002,
            Self::Sink => 9003,
            Self::Source => 9004,
        }
    }
}

/// Every so many responses are wrong or left out, and so many steps of a stream leave something out; for the runner to be
/// tested by.
pub const FAULT_EVERY: u64 = 1000;

/// Serves until its input ends.
///
/// # Errors
/// A port is taken, or the loop failed.
pub fn run(datagrams: &[Ipv4Addr], faulty: bool) -> anyhow::Result<()> {
    let served = Arc::new(Mutex::new(Served::default()));
    let (opened, is_open) = sync_channel(1);
    let (datagrams, shared) = (datagrams.to_vec(), Arc::clone(&served));
    // Opened by the thread that serves: what epoll fills in does not leave it.
    let worker = std::thread::Builder::new().name("backend".to_owned()).spawn(move || {
        let mut server = Server::open(&datagrams, faulty, shared)?;
        // Whoever waits for it is there, or the program is over.
        let _ = opened.send(());
        server.serve()
    })?;
    if is_open.recv().is_err() {
        return worker.join().map_err(|_| anyhow::anyhow!("the loop panicked"))?;
    }
    println_flushed("ready")?;
    for _ in io::stdin().lock().lines().map_while(Result::ok) {
        if worker.is_finished() {
            break;
        }
        let served = *served.lock().unwrap_or_else(PoisonError::into_inner);
        println_flushed(&serde_json::to_string(&served)?)?;
    }
    if worker.is_finished() {
        worker.join().map_err(|_| anyhow::anyhow!("the loop panicked"))??;
    }
    Ok(())
}

fn println_flushed(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// A socket, by its token.
enum Socket {
    Listener(OwnedFd, Role),
    Datagrams(OwnedFd),
    Connection(Connection),
}

struct Connection {
    socket: OwnedFd,
    role: Role,
    /// Of a request, what has come.
    request: Message,
    received: usize,
    position: Position,
}

/// Whether a connection stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Ends,
}

struct Server {
    poller: Poller,
    pattern: Pattern,
    sockets: Vec<Option<Socket>>,
    free: Vec<usize>,
    faulty: bool,
    now: Served,
    shared: Arc<Mutex<Served>>,
}

impl Server {
    fn open(datagrams: &[Ipv4Addr], faulty: bool, shared: Arc<Mutex<Served>>) -> anyhow::Result<Self> {
        let mut server = Self {
            poller: Poller::new()?,
            pattern: Pattern::new()?,
            sockets: Vec::new(),
            free: Vec::new(),
            faulty,
            now: Served::default(),
            shared,
        };
        for role in Role::ALL {
            let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, role.port());
            let socket =
                bound(address, SocketType::STREAM).with_context(|| format!("listen on {address}"))?;
            listen(&socket, BACKLOG)?;
            server.insert(Socket::Listener(socket, role), Ready::IN)?;
        }
        // On addresses one by one: a datagram is answered from the address that was asked.
        for &address in datagrams {
            let address = SocketAddrV4::new(address, Role::Keep.port());
            let socket = bound(address, SocketType::DGRAM).with_context(|| format!("bind {address}"))?;
            server.insert(Socket::Datagrams(socket), Ready::IN)?;
        }
        Ok(server)
    }

    fn insert(&mut self, socket: Socket, ready: Ready) -> io::Result<()> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.sockets.push(None);
            self.sockets.len() - 1
        });
        let descriptor = match &socket {
            Socket::Listener(socket, _) | Socket::Datagrams(socket) => socket,
            Socket::Connection(connection) => &connection.socket,
        };
        self.poller.add(descriptor, index, ready)?;
        self.sockets[index] = Some(socket);
        Ok(())
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        let mut found = Vec::new();
        loop {
            self.poller.wait(&mut found, Duration::from_secs(60))?;
            for &(index, ready) in &found {
                // Taken out while it is served, and put back unless it ended.
                let Some(mut socket) = self.sockets[index].take() else { continue };
                let fate = match &mut socket {
                    Socket::Listener(listener, role) => self.accept(listener, *role)?,
                    Socket::Datagrams(socket) => self.answer_datagrams(socket),
                    Socket::Connection(connection) => self.step(connection, ready),
                };
                match fate {
                    Fate::Stays => self.sockets[index] = Some(socket),
                    Fate::Ends => self.free.push(index),
                }
            }
            *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = self.now;
        }
    }

    fn accept(&mut self, listener: &OwnedFd, role: Role) -> io::Result<Fate> {
        for _ in 0..TURN {
            let socket = match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => break,
                Err(Errno::CONNABORTED | Errno::MFILE) => {
                    self.now.errors.connect += 1;
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let (request, position) = ([0; LENGTH], Position::default());
            let mut connection = Connection { socket, role, request, received: 0, position };
            // The request is often there already, and then nothing needs to be registered.
            let exchanges = matches!(role, Role::Close | Role::Keep);
            if exchanges && self.exchange(&mut connection, false) == Fate::Ends {
                continue;
            }
            let ready = match role {
                Role::Close | Role::Keep => Ready::IN | Ready::RDHUP | Ready::ET,
                Role::Sink => Ready::IN,
                Role::Source => {
                    set_tcp_nodelay(&connection.socket, true)?;
                    Ready::OUT
                }
            };
            self.insert(Socket::Connection(connection), ready)?;
        }
        Ok(Fate::Stays)
    }

    fn step(&mut self, connection: &mut Connection, ready: Ready) -> Fate {
        match connection.role {
            Role::Close | Role::Keep => {
                self.exchange(connection, ready.intersects(Ready::RDHUP | Ready::HUP | Ready::ERR))
            }
            Role::Sink => self.sink(connection),
            Role::Source => self.source(connection),
        }
    }

    /// Answers what has come. `ends`: nothing will come after that, so it is read to the end.
    fn exchange(&mut self, connection: &mut Connection, ends: bool) -> Fate {
        loop {
            let room = &mut connection.request[connection.received..];
            match recv(&connection.socket, room, RecvFlags::empty()) {
                Ok((_, 0)) => {
                    // A request that was begun, or a connection that asked for nothing where one is to.
                    self.now.errors.closed += u64::from(connection.received > 0);
                    return Fate::Ends;
                }
                Ok((_, received)) => connection.received += received,
                Err(Errno::AGAIN) => return Fate::Stays,
                Err(_) => {
                    self.now.errors.broken += 1;
                    return Fate::Ends;
                }
            }
            if connection.received < LENGTH {
                continue;
            }
            connection.received = 0;
            if !self.answer(connection) || connection.role == Role::Close {
                return Fate::Ends;
            }
            if !ends {
                // The client asks next when it has been answered; the edge tells.
                return Fate::Stays;
            }
        }
    }

    fn answer(&mut self, connection: &Connection) -> bool {
        let Some(response) = self.response(&connection.request) else { return false };
        let sent = send(&connection.socket, &response, SendFlags::NOSIGNAL) == Ok(LENGTH);
        self.now.errors.broken += u64::from(!sent);
        sent
    }

    /// The response, or none where the request is wrong (counted) or a fault is asked for.
    fn response(&mut self, request: &Message) -> Option<Message> {
        let Some(mut response) = message::response_to(request) else {
            self.now.errors.content += 1;
            return None;
        };
        self.now.exchanges += 1;
        if self.faulty && self.now.exchanges.is_multiple_of(FAULT_EVERY) {
            response[LENGTH - 1] ^= 1;
            // One wrong, one left out.
            return self.now.exchanges.is_multiple_of(2 * FAULT_EVERY).then_some(response);
        }
        Some(response)
    }

    fn answer_datagrams(&mut self, socket: &OwnedFd) -> Fate {
        for _ in 0..TURN {
            let mut request = [0; LENGTH];
            let Ok((_, length, Some(client))) = recvfrom(socket, &mut request[..], RecvFlags::TRUNC) else {
                break;
            };
            if length != LENGTH {
                self.now.errors.content += 1;
                continue;
            }
            if let Some(response) = self.response(&request) {
                let sent = sendto(socket, &response, SendFlags::NOSIGNAL, &client);
                self.now.errors.broken += u64::from(sent.is_err());
            }
        }
        Fate::Stays
    }

    fn sink(&mut self, connection: &mut Connection) -> Fate {
        for _ in 0..TURN {
            match self.pattern.receive(connection.socket.as_fd(), &mut connection.position) {
                Step::Moved(bytes) => self.now.bytes += bytes as u64,
                Step::Blocked => return Fate::Stays,
                Step::Ended => return Fate::Ends,
                Step::Broken => {
                    self.now.errors.broken += 1;
                    return Fate::Ends;
                }
                Step::Wrong => {
                    self.now.errors.content += 1;
                    return Fate::Ends;
                }
            }
        }
        Fate::Stays
    }

    fn source(&mut self, connection: &mut Connection) -> Fate {
        for _ in 0..TURN {
            match self.pattern.send(&connection.socket, &mut connection.position) {
                Step::Moved(_) if self.faulty && connection.position.steps.is_multiple_of(FAULT_EVERY) => {
                    // As if a pipe's content had been lost.
                    connection.position.bytes += 65_536;
                }
                Step::Moved(_) => {}
                Step::Blocked => return Fate::Stays,
                // The client has had enough: it ends a stream by leaving.
                Step::Ended | Step::Broken | Step::Wrong => return Fate::Ends,
            }
        }
        Fate::Stays
    }
}

fn bound(address: SocketAddrV4, kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let protocol = if kind == SocketType::DGRAM { ipproto::UDP } else { ipproto::TCP };
    let socket = socket_with(AddressFamily::INET, kind, flags, Some(protocol))?;
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    Ok(socket)
}
