//! The handshake of a tunnel, by rustls, over a socket that nobody waits for.
//!
//! rustls is given one record after the other, never one behind the end of the handshake: what follows is opened with the keys
//! that are taken over then. A step of it is bounded: some 64 KiB of input at the most in all, and one signature made and one chain
//! verified.

use std::sync::Arc;
use std::time::Instant;

use nerve::model::NodeName;
use rustix::io::Errno;
use rustls::HandshakeKind;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};

use super::backlog::Backlog;
use super::connection::{Established, Renewal};
use super::record::{self, Protection};
use crate::proxy::io::Io;
use crate::proxy::poll::{Interest, Readiness, Subject};
use crate::proxy::side::{Delay, Read, Side};
use crate::proxy::tunnel_metrics::TunnelFailure;
use crate::proxy::tunnel_table::{TunnelCredentials, TunnelPeer};
use crate::proxy::{TcpOptions, arena::Key, socket};

/// What a peer may send before the handshake has ended: certificates, and nothing that is longer.
const LONGEST: usize = 64 * 1024;
/// The types of records that a handshake may have, from here
const FIRST_TYPE: u8 = 20;
/// to here.
const LAST_TYPE: u8 = 23;

/// A handshake under way.
pub(super) struct Handshake {
    socket: Side,
    tls: Tls,
    credentials: Arc<TunnelCredentials>,
    input: Vec<u8>,
    /// How much of the input rustls has seen already, which was not enough for it.
    given: usize,
    output: Backlog,
    pub(super) deadline: Instant,
    /// Somebody knows that it can go on.
    is_due: bool,
}

enum Tls {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// Why a handshake failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) why: TunnelFailure,
    /// What connecting oneself would have said.
    pub(super) errno: Errno,
    /// For the log.
    pub(super) said: String,
}

impl Failed {
    pub(super) fn new(why: TunnelFailure, errno: Errno, said: impl ToString) -> Self {
        Self { why, errno, said: said.to_string() }
    }

    fn tls(error: &rustls::Error) -> Self {
        Self::new(TunnelFailure::Handshake, Errno::PROTO, error)
    }
}

/// A handshake that has ended well.
pub(super) struct Done {
    pub(super) established: Established,
    /// Whose certificate the peer has shown.
    pub(super) node: NodeName,
    pub(super) resumed: bool,
}

/// What is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// There may be more to do at once.
    More,
    /// More input is needed.
    Blocked,
    Done,
}

/// A step of rustls's, whichever end it is.
macro_rules! drive {
    ($tls:expr, $records:expr, $output:expr) => {{
        let UnbufferedStatus { discard, state, .. } = $tls.process_tls_records($records);
        let progress = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let mut bytes = Vec::new();
                let mut encoded = data.encode(&mut bytes);
                if let Err(EncodeError::InsufficientSize(size)) = encoded {
                    bytes.resize(size.required_size, 0);
                    encoded = data.encode(&mut bytes);
                }
                match encoded {
                    Ok(length) => {
                        $output.push(&bytes[..length]);
                        Ok(Progress::More)
                    }
                    Err(error) => Err(rustls::Error::General(error.to_string())),
                }
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Progress::More)
            }
            Ok(ConnectionState::WriteTraffic(_)) => Ok(Progress::Done),
            Ok(ConnectionState::BlockedHandshake) => Ok(Progress::Blocked),
            Ok(_) => Err(rustls::Error::General(
                "the peer closed the connection, or sent data too early".to_owned(),
            )),
            Err(error) => Err(error),
        };
        (discard, progress)
    }};
}

impl Handshake {
    /// Connects to a node and begins.
    pub(super) fn connect(
        peer: &TunnelPeer,
        credentials: Arc<TunnelCredentials>,
        key: Key,
        deadline: Instant,
        io: &mut Io,
        options: &TcpOptions,
    ) -> Result<Self, Failed> {
        let name = ServerName::try_from(peer.node.as_str().to_owned())
            .map_err(|error| Failed::new(TunnelFailure::Identity, Errno::INVAL, error))?;
        let tls = UnbufferedClientConnection::new(Arc::clone(credentials.client()), name)
            .map_err(|error| Failed::tls(&error))?;
        let socket = socket::connect(peer.address, None, true, options).map_err(could_not_connect)?;
        let socket = Side::new(socket, Delay::Untouched);
        Self::begin(socket, Tls::Client(Box::new(tls)), credentials, key, deadline, io)
    }

    /// Takes up what another node has begun.
    pub(super) fn accept(
        socket: Side,
        credentials: Arc<TunnelCredentials>,
        key: Key,
        deadline: Instant,
        io: &mut Io,
    ) -> Result<Self, Failed> {
        let tls = UnbufferedServerConnection::new(Arc::clone(credentials.server()))
            .map_err(|error| Failed::tls(&error))?;
        Self::begin(socket, Tls::Server(Box::new(tls)), credentials, key, deadline, io)
    }

    fn begin(
        mut socket: Side,
        tls: Tls,
        credentials: Arc<TunnelCredentials>,
        key: Key,
        deadline: Instant,
        io: &mut Io,
    ) -> Result<Self, Failed> {
        socket
            .watch(&io.poller, Subject::Tunnel(key), Interest::ReadAndWrite)
            .map_err(|error| Failed::new(TunnelFailure::Limit, Errno::NOMEM, error))?;
        let (input, output) = (Vec::new(), Backlog::default());
        Ok(Self { socket, tls, credentials, input, given: 0, output, deadline, is_due: true })
    }

    /// Its socket has something to say. Tells whether nobody knows yet that it can go on.
    pub(super) fn note(&mut self, readiness: Readiness) -> bool {
        self.socket.note(readiness);
        !std::mem::replace(&mut self.is_due, true)
    }

    /// Goes on as far as it can. Tells whether it has ended well.
    pub(super) fn advance(&mut self, io: &mut Io) -> Result<bool, Failed> {
        self.is_due = false;
        if self.socket.failed {
            return Err(could_not_connect(socket::error(&self.socket)));
        }
        loop {
            let is_done = self.process()?;
            if is_done {
                return Ok(true);
            }
            self.send()?;
            if !self.socket.readable || !self.receive(io)? {
                return Ok(false);
            }
        }
    }

    fn send(&mut self) -> Result<(), Failed> {
        if !self.output.is_empty() && self.socket.writable {
            let written = self.socket.write(self.output.rest(), false).map_err(broke)?;
            self.output.take(written);
        }
        Ok(())
    }

    /// Reads once. Tells whether there was something.
    fn receive(&mut self, io: &mut Io) -> Result<bool, Failed> {
        let room = (LONGEST - self.input.len()).min(io.buffer.len());
        if room == 0 {
            return Err(Failed::new(TunnelFailure::Handshake, Errno::PROTO, "its handshake is too long"));
        }
        match self.socket.read(&mut io.buffer[..room]).map_err(broke)? {
            None => Ok(false),
            Some(Read { count: 0, .. }) => Err(broke(Errno::CONNRESET)),
            Some(Read { count, .. }) => {
                self.input.extend_from_slice(&io.buffer[..count]);
                Ok(true)
            }
        }
    }

    /// Has rustls look at one record after the other, as far as they are here.
    fn process(&mut self) -> Result<bool, Failed> {
        loop {
            let records = &mut self.input[..self.given];
            let (discard, progress) = match &mut self.tls {
                Tls::Client(tls) => drive!(tls, records, self.output),
                Tls::Server(tls) => drive!(tls, records, self.output),
            };
            let progress = progress.map_err(|error| {
                self.say_why();
                Failed::tls(&error)
            })?;
            self.input.drain(..discard);
            self.given = self.given.saturating_sub(discard);
            match progress {
                Progress::More => {}
                Progress::Done if !self.is_handshaking() => return Ok(true),
                Progress::Done | Progress::Blocked => {
                    if !self.give_record()? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// One more record for rustls. Tells whether there is one.
    fn give_record(&mut self) -> Result<bool, Failed> {
        let next = &self.input[self.given..];
        let no_tls = |_| Failed::new(TunnelFailure::Handshake, Errno::PROTO, "it does not speak TLS");
        if next.first().is_some_and(|kind| !(FIRST_TYPE..=LAST_TYPE).contains(kind)) {
            return Err(no_tls(record::BadRecord));
        }
        let length = record::complete(next).map_err(no_tls)?;
        self.given += length.unwrap_or_default();
        Ok(length.is_some())
    }

    /// Tells the peer what is wrong, where rustls has a word for it.
    fn say_why(&mut self) {
        let (_, progress) = match &mut self.tls {
            Tls::Client(tls) => drive!(tls, &mut [], self.output),
            Tls::Server(tls) => drive!(tls, &mut [], self.output),
        };
        if progress.is_ok() {
            let _ = self.send();
        }
    }

    fn is_handshaking(&self) -> bool {
        match &self.tls {
            Tls::Client(tls) => tls.is_handshaking(),
            Tls::Server(tls) => tls.is_handshaking(),
        }
    }

    /// Asks whose certificate it was that the peer has shown, and takes the keys over.
    pub(super) fn finish(self) -> Result<Done, Failed> {
        let common: &rustls::CommonState = match &self.tls {
            Tls::Client(tls) => tls,
            Tls::Server(tls) => tls,
        };
        let resumed = common.handshake_kind() == Some(HandshakeKind::Resumed);
        let shown = common.peer_certificates().and_then(<[_]>::first);
        let node = shown.and_then(|certificate| self.credentials.identify(certificate));
        let node = node.ok_or_else(|| {
            Failed::new(
                TunnelFailure::Identity,
                Errno::ACCESS,
                "its certificate is no node's that may be here",
            )
        })?;
        let (secrets, renewal) = match self.tls {
            Tls::Client(tls) => {
                let (secrets, rest) =
                    tls.dangerous_into_kernel_connection().map_err(|error| Failed::tls(&error))?;
                (secrets, Renewal::Client(Box::new(rest)))
            }
            Tls::Server(tls) => {
                let (secrets, rest) =
                    tls.dangerous_into_kernel_connection().map_err(|error| Failed::tls(&error))?;
                (secrets, Renewal::Server(Box::new(rest)))
            }
        };
        let unknown = || Failed::new(TunnelFailure::Handshake, Errno::PROTO, "its cipher is not known here");
        let established = Established {
            socket: self.socket,
            sealer: Protection::new(secrets.tx).ok_or_else(unknown)?,
            opener: Protection::new(secrets.rx).ok_or_else(unknown)?,
            renewal,
            unsent: self.output,
            input: self.input.into(),
        };
        Ok(Done { established, node, resumed })
    }
}

fn could_not_connect(errno: Errno) -> Failed {
    Failed::new(TunnelFailure::Connect, errno, std::io::Error::from(errno))
}

fn broke(errno: Errno) -> Failed {
    Failed::new(TunnelFailure::Handshake, errno, std::io::Error::from(errno))
}
