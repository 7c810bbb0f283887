//! A tunnel: a TLS connection between two nodes, once its handshake is done. Records in and out, and what the two nodes say to
//! each other at the beginning and at the end of a stream; `stream` moves what is between.
//!
//! One stream is on it at a time. What is read is opened where it was read to, in the thread's buffer; what is not
//! needed at once, or not taken, is copied out and held. A tunnel that holds nothing is its keys and a socket.

use std::fmt;

use rustix::io::Errno;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;

use super::backlog::Backlog;
use super::frame::{self, Frame, Kind};
use super::header::{self, Header};
use super::home::Place;
use super::record::{self, BadRecord, CONTENT, Content, FULL, Protection, TAIL};
use crate::proxy::TcpOptions;
use crate::proxy::arena::Key;
use crate::proxy::io::Io;
use crate::proxy::poll::{Poller, Readiness, Subject};
use crate::proxy::side::{Read, Side};
use crate::proxy::tunnel_refusal::Refusal;

/// Octets of a stream in a record that is full.
pub(super) const DATA: usize = CONTENT - frame::HEAD;
/// What may be held for a peer that does not read, beside octets of a stream.
const UNSENT: usize = 256 * 1024;
/// What may come of a stream that was refused: its sender waits for the answer with no more than the client's first words.
const REFUSED: usize = 256 * 1024;
/// New keys and sessions that a peer may send during a stream.
const MESSAGES: u8 = 32;
/// Messages of a handshake that may come after it (RFC 8446, section 4).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// A TLS connection to another node, or from one.
pub(in crate::proxy) struct Tunnel {
    pub(super) place: Place<Box<Self>>,
    pub(super) socket: Side,
    sealer: Protection,
    opener: Protection,
    renewal: Renewal,
    /// Records that the socket has not taken.
    pub(super) unsent: Backlog,
    /// Records, or the beginning of one, that were read and not opened.
    input: Backlog,
    /// Octets of the stream that were opened and not taken.
    pub(super) undelivered: Backlog,
    /// The peer's FIN stands behind what was read.
    has_ended: bool,
    /// What came is nothing that may come.
    is_faulty: bool,
    pub(super) stream: Stream,
}

/// How far the stream is that is on a tunnel.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stream {
    /// The last octets were sealed here.
    pub(super) said_last: bool,
    /// The last octets were opened here.
    pub(super) heard_last: bool,
    /// It was refused here, and what comes is of nobody until its sender has noticed.
    is_refused: bool,
    /// So much has come of it since.
    passed_over: usize,
    /// New keys and sessions that have come.
    messages: u8,
    /// The last read of what it carries filled a record.
    pub(super) is_large: bool,
}

/// rustls's part of a connection after its handshake: new keys, and sessions to be resumed.
pub(super) enum Renewal {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

/// What a handshake has made.
pub(super) struct Established {
    pub(super) socket: Side,
    pub(super) sealer: Protection,
    pub(super) opener: Protection,
    pub(super) renewal: Renewal,
    pub(super) unsent: Backlog,
    pub(super) input: Backlog,
}

/// What the receiver says to a stream that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Answer {
    /// The endpoint is connected to.
    Connected,
    /// It is not.
    Refused(Refusal),
}

/// Why a tunnel can be used no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Fault {
    /// The peer has said that it takes no more streams; it has not looked at one that was opened meanwhile.
    Closed,
    /// It ended or broke.
    Broken(Errno),
    /// What came is nothing that may come.
    Protocol,
}

impl Fault {
    /// What connecting oneself would have said.
    pub(in crate::proxy) fn errno(self) -> Errno {
        match self {
            Self::Closed => Errno::CONNRESET,
            Self::Broken(error) => error,
            Self::Protocol => Errno::PROTO,
        }
    }
}

impl From<BadRecord> for Fault {
    fn from(_: BadRecord) -> Self {
        Self::Protocol
    }
}

impl From<frame::BadFrame> for Fault {
    fn from(_: frame::BadFrame) -> Self {
        Self::Protocol
    }
}

/// What stood where a record may be.
pub(super) enum Opened {
    /// Not all of one.
    Incomplete,
    /// Content from here to there, and the record's end.
    Content(usize, usize, usize),
    /// Something between the two ends of TLS, and the record's end.
    Other(usize),
}

impl Tunnel {
    pub(super) fn new(place: Place<Box<Self>>, established: Established) -> Self {
        let Established { socket, sealer, opener, renewal, unsent, input } = established;
        Self {
            place,
            socket,
            sealer,
            opener,
            renewal,
            unsent,
            input,
            undelivered: Backlog::default(),
            has_ended: false,
            is_faulty: false,
            stream: Stream::default(),
        }
    }

    pub(super) fn key(&self) -> Key {
        self.place.key()
    }

    /// Its socket has something to say.
    pub(in crate::proxy) fn note(&mut self, readiness: Readiness) {
        self.socket.note(readiness);
    }

    /// It was reported broken.
    pub(in crate::proxy) fn has_failed(&self) -> bool {
        self.socket.failed
    }

    /// Has it noticed when the peer vanishes without a word.
    pub(super) fn keep_alive(&self, options: &TcpOptions) {
        self.socket.keep_alive(options);
    }

    /// Did the peer send what nobody sends?
    pub(super) fn is_faulty(&self) -> bool {
        self.is_faulty
    }

    /// Notes what a stream is broken by.
    pub(super) fn note_fault(&mut self, fault: Fault) {
        self.is_faulty |= fault == Fault::Protocol;
    }

    /// Is there something that the one side or the other has not taken?
    pub(in crate::proxy) fn holds(&self) -> bool {
        !self.unsent.is_empty() || !self.undelivered.is_empty()
    }

    /// Did both sides say their last, and did both take it?
    pub(in crate::proxy) fn is_over(&self) -> bool {
        self.stream.said_last && self.stream.heard_last && !self.holds()
    }

    /// Its stream is over, or was refused, and the next one may have it.
    pub(in crate::proxy) fn give_back(self: Box<Self>) {
        self.place.home().give_back(self);
    }

    /// Ends it by RST: to the peer, that is the end of the stream.
    pub(in crate::proxy) fn reset(self: Box<Self>) {
        let Self { socket, .. } = *self;
        socket.reset();
    }

    /// Begins a stream: what the receiver is to know, and the client's first octets right behind.
    pub(in crate::proxy) fn open(
        &mut self,
        header: &Header<'_>,
        early: &[u8],
        io: &mut Io,
    ) -> Result<(), Fault> {
        let written = header::write(header).ok_or(Fault::Protocol)?;
        let written = written.as_ref();
        self.stream = Stream::default();
        let records = &mut io.records[..];
        let mut length = fill(records, 0, 0, &[&frame::head(Kind::Open, written.len()), written]);
        let (first, rest) = early.split_at(early.len().min(CONTENT - length - frame::HEAD));
        if !first.is_empty() {
            length = fill(records, 0, length, &[&frame::head(Kind::Data, first.len()), first]);
        }
        let mut end = self.seal(records, 0, length, Content::Data)?;
        for data in rest.chunks(DATA) {
            if end + FULL > records.len() {
                self.put(&records[..end])?;
                end = 0;
            }
            let length = fill(records, end, 0, &[&frame::head(Kind::Data, data.len()), data]);
            end = self.seal(records, end, length, Content::Data)?;
        }
        self.put(&records[..end])
    }

    /// What the receiver has answered; `None`: nothing yet.
    pub(in crate::proxy) fn answer(&mut self, io: &mut Io) -> Result<Option<Answer>, Fault> {
        self.flush(&io.poller)?;
        let Some((from, to)) = self.next_content(&mut io.records)? else { return Ok(None) };
        let content = &io.records[from..to];
        match frame::read(content, 0)? {
            Some((Frame::Connected, end)) => {
                self.hold_frames(content, end)?;
                Ok(Some(Answer::Connected))
            }
            Some((Frame::Refused(reason), end)) if end == content.len() => Ok(Some(Answer::Refused(reason))),
            // Nobody sends empty records either.
            Some(_) | None => Err(Fault::Protocol),
        }
    }

    /// The stream was refused, and its sender says no more in it.
    pub(in crate::proxy) fn abort(&mut self) -> Result<(), Fault> {
        self.say(&frame::head(Kind::Abort, 0))
    }

    /// The endpoint is connected to.
    pub(super) fn say_connected(&mut self) -> Result<(), Fault> {
        self.say(&frame::head(Kind::Connected, 0))
    }

    /// It is not, and what the sender still says of this stream is passed over.
    pub(super) fn refuse(&mut self, reason: Refusal) -> Result<(), Fault> {
        self.stream.is_refused = !self.stream.heard_last;
        self.stream.passed_over = 0;
        self.undelivered.clear();
        let [kind, high, low] = frame::head(Kind::Refused, 1);
        self.say(&[kind, high, low, reason as u8])
    }

    /// What the next stream is to be, as `decide` reads its header; `None`: there is none yet.
    pub(super) fn next_stream<R>(
        &mut self,
        io: &mut Io,
        decide: impl Fn(Result<Header<'_>, Refusal>) -> R,
    ) -> Result<Option<R>, Fault> {
        self.flush(&io.poller)?;
        while let Some((from, to)) = self.next_content(&mut io.records)? {
            let content = &io.records[from..to];
            self.stream.passed_over += content.len();
            if content.is_empty() || self.stream.passed_over > REFUSED {
                return Err(Fault::Protocol);
            }
            let mut at = 0;
            while let Some((frame, end)) = frame::read(content, at)? {
                match frame {
                    Frame::Open(body) if !self.stream.is_refused => {
                        self.stream = Stream::default();
                        let decided = decide(frame::header(body));
                        self.hold_frames(content, end)?;
                        return Ok(Some(decided));
                    }
                    Frame::Data { last, .. } if self.stream.is_refused => self.stream.is_refused = !last,
                    Frame::Abort if self.stream.is_refused => self.stream.is_refused = false,
                    _ => return Err(Fault::Protocol),
                }
                at = end;
            }
        }
        Ok(None)
    }

    /// Nothing is to come on a tunnel that waits for a stream of ours; what comes nevertheless is between the ends of TLS.
    pub(super) fn look(&mut self, io: &mut Io) -> Result<(), Fault> {
        self.flush(&io.poller)?;
        match self.next_content(&mut io.records)? {
            None => Ok(()),
            Some(_) => Err(Fault::Protocol),
        }
    }

    /// Says that no stream will be opened or taken any more. What the peer does not take of it, it learns by the end.
    pub(super) fn close(mut self) {
        /// Level and description of `close_notify`.
        const CLOSE_NOTIFY: [u8; 2] = [1, 0];
        let _ = self.send_record(&CLOSE_NOTIFY, Content::Alert);
    }

    /// A small record of ours.
    fn say(&mut self, content: &[u8]) -> Result<(), Fault> {
        self.send_record(content, Content::Data)
    }

    fn send_record(&mut self, content: &[u8], kind: Content) -> Result<(), Fault> {
        const ROOM: usize = record::HEAD + 8 + TAIL;
        let mut bytes = [0; ROOM];
        if content.len() > ROOM - record::HEAD - TAIL {
            return Err(Fault::Protocol);
        }
        let length = fill(&mut bytes, 0, 0, &[content]);
        let end = self.seal(&mut bytes, 0, length, kind)?;
        self.put(&bytes[..end])
    }

    /// Makes a record of `length` octets of content that stand in it. Tells where it ends.
    pub(super) fn seal(
        &mut self,
        records: &mut [u8],
        at: usize,
        length: usize,
        kind: Content,
    ) -> Result<usize, Fault> {
        let end = at + record::HEAD + length + TAIL;
        self.sealer.seal(&mut records[at..end], kind)?;
        Ok(end)
    }

    /// Has other keys protect what is sent, once these have protected enough. Before records are sealed, not between.
    pub(super) fn renew_if_worn(&mut self) -> Result<(), Fault> {
        if self.sealer.is_worn() { self.renew() } else { Ok(()) }
    }

    fn renew(&mut self) -> Result<(), Fault> {
        // The peer's own keys are its business.
        self.send_record(&[KEY_UPDATE, 0, 0, 1, 0], Content::Handshake)?;
        let secrets = match &mut self.renewal {
            Renewal::Client(connection) => connection.update_tx_secret(),
            Renewal::Server(connection) => connection.update_tx_secret(),
        };
        self.sealer = Protection::new(secrets.map_err(|_| Fault::Protocol)?).ok_or(Fault::Protocol)?;
        Ok(())
    }

    /// Sends sealed records; what the socket does not take is held.
    pub(super) fn put(&mut self, records: &[u8]) -> Result<(), Fault> {
        if !self.unsent.is_empty() {
            if self.unsent.len() > UNSENT {
                return Err(Fault::Protocol);
            }
            self.unsent.push(records);
            return self.send_unsent();
        }
        let written = self.socket.write(records, false).map_err(Fault::Broken)?;
        if written < records.len() {
            self.unsent.push(&records[written..]);
        }
        Ok(())
    }

    fn send_unsent(&mut self) -> Result<(), Fault> {
        let written = self.socket.write(self.unsent.rest(), false).map_err(Fault::Broken)?;
        self.unsent.take(written);
        Ok(())
    }

    /// Sends what is held, as far as the socket takes it, and sees to it that the rest is sent when it does.
    pub(super) fn flush(&mut self, poller: &Poller) -> Result<(), Fault> {
        if !self.unsent.is_empty() && self.socket.writable {
            self.send_unsent()?;
        }
        if !self.unsent.is_empty() {
            let subject = Subject::Tunnel(self.key());
            self.socket.watch_writing(poller, subject).map_err(|_| Fault::Broken(Errno::NOMEM))?;
        }
        Ok(())
    }

    /// Puts what was read already, and what can be read now, at the beginning of the buffer. Tells how much that is; `None`:
    /// there is nothing new, and no whole record.
    pub(super) fn intake(&mut self, records: &mut [u8]) -> Result<Option<usize>, Fault> {
        let kept = self.input.len();
        let missing = match record::announced(self.input.rest())? {
            Some(length) => length.saturating_sub(kept),
            None if kept == 0 => 0,
            None => FULL - kept,
        };
        if kept > 0 && missing == 0 {
            self.take_input(records);
            return Ok(Some(kept));
        }
        if !self.socket.readable {
            return if self.has_ended { Err(Fault::Broken(Errno::CONNRESET)) } else { Ok(None) };
        }
        // As many full records as there is room for: then the last one is whole as well, and nothing is copied.
        let room = kept + missing + (records.len() - kept - missing) / FULL * FULL;
        match self.socket.read(&mut records[kept..room]).map_err(Fault::Broken)? {
            None => Ok(None),
            Some(Read { count: 0, .. }) => Err(Fault::Broken(Errno::CONNRESET)),
            Some(Read { count, last }) => {
                self.has_ended |= last;
                self.take_input(records);
                Ok(Some(kept + count))
            }
        }
    }

    fn take_input(&mut self, records: &mut [u8]) {
        records[..self.input.len()].copy_from_slice(self.input.rest());
        self.input.clear();
    }

    /// Is there a whole record, or part of one, that was read already?
    pub(super) fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// What was read and is not opened now.
    pub(super) fn keep(&mut self, records: &[u8]) {
        self.input.push(records);
    }

    /// Opens the record that begins at `at`, if all of it is there.
    pub(super) fn open_record(&mut self, received: &mut [u8], at: usize) -> Result<Opened, Fault> {
        let Some(length) = record::complete(&received[at..])? else { return Ok(Opened::Incomplete) };
        let (content, count) = self.opener.open(&mut received[at..at + length])?;
        let from = at + record::HEAD;
        match content {
            Content::Data => return Ok(Opened::Content(from, from + count, at + length)),
            Content::Alert => return Err(alert(&received[from..from + count])),
            Content::Handshake => self.handshake_message(&received[from..from + count])?,
        }
        Ok(Opened::Other(at + length))
    }

    /// The content of the next record that has some of a stream, in the buffer; `None`: there is none yet.
    fn next_content(&mut self, records: &mut [u8]) -> Result<Option<(usize, usize)>, Fault> {
        while let Some(filled) = self.intake(records)? {
            let mut at = 0;
            loop {
                match self.open_record(&mut records[..filled], at)? {
                    Opened::Incomplete => {
                        self.keep(&records[at..filled]);
                        break;
                    }
                    Opened::Content(from, to, end) => {
                        self.keep(&records[end..filled]);
                        return Ok(Some((from, to)));
                    }
                    Opened::Other(end) => at = end,
                }
            }
        }
        Ok(None)
    }

    /// Holds what stands in a record behind the frame that was looked for.
    fn hold_frames(&mut self, content: &[u8], mut at: usize) -> Result<(), Fault> {
        while let Some((frame, end)) = frame::read(content, at)? {
            let Frame::Data { from, to, last } = frame else { return Err(Fault::Protocol) };
            self.hear(last)?;
            self.undelivered.push(&content[from..to]);
            at = end;
        }
        Ok(())
    }

    /// Octets of the stream have come, maybe the last.
    pub(super) fn hear(&mut self, last: bool) -> Result<(), Fault> {
        if self.stream.heard_last {
            return Err(Fault::Protocol);
        }
        self.stream.heard_last = last;
        Ok(())
    }

    fn handshake_message(&mut self, mut content: &[u8]) -> Result<(), Fault> {
        while let [kind, high, middle, low, rest @ ..] = content {
            self.stream.messages += 1;
            if self.stream.messages > MESSAGES {
                return Err(Fault::Protocol);
            }
            let length = u32::from_be_bytes([0, *high, *middle, *low]);
            let length = usize::try_from(length).map_err(|_| Fault::Protocol)?;
            let (body, after) = rest.split_at_checked(length).ok_or(Fault::Protocol)?;
            content = after;
            match (*kind, body, &mut self.renewal) {
                (NEW_SESSION_TICKET, body, Renewal::Client(connection)) => {
                    connection.handle_new_session_ticket(body).map_err(|_| Fault::Protocol)?;
                }
                (KEY_UPDATE, [is_requested @ (0 | 1)], renewal) => {
                    let secrets = match renewal {
                        Renewal::Client(connection) => connection.update_rx_secret(),
                        Renewal::Server(connection) => connection.update_rx_secret(),
                    };
                    let secrets = secrets.map_err(|_| Fault::Protocol)?;
                    self.opener = Protection::new(secrets).ok_or(Fault::Protocol)?;
                    if *is_requested == 1 {
                        self.renew()?;
                    }
                }
                _ => return Err(Fault::Protocol),
            }
        }
        if content.is_empty() { Ok(()) } else { Err(Fault::Protocol) }
    }
}

/// Writes content into a record that begins at `at` and has so much already. Tells how much it has then.
fn fill(records: &mut [u8], at: usize, has: usize, pieces: &[&[u8]]) -> usize {
    let begin = at + record::HEAD;
    pieces.iter().fold(has, |has, piece| {
        records[begin + has..begin + has + piece.len()].copy_from_slice(piece);
        has + piece.len()
    })
}

/// The peer says that it goes, or what is wrong.
fn alert(content: &[u8]) -> Fault {
    match content {
        [_, 0] => Fault::Closed,
        [_, _] => Fault::Broken(Errno::CONNRESET),
        _ => Fault::Protocol,
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("socket", &self.socket)
            .field("stream", &self.stream)
            .field("unsent", &self.unsent.len())
            .field("undelivered", &self.undelivered.len())
            .finish_non_exhaustive()
    }
}
