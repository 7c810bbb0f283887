//! Sending a run of datagrams with few calls, and what becomes of those that the kernel does not take.
//!
//! Equally long datagrams to one receiver leave as one message with a segment size (`UDP_SEGMENT`): they pass the network stack
//! once. What the kernel has received as one (`UDP_GRO`) leaves as one.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use smallvec::SmallVec;

use super::socket::is_unreachable;
use crate::proxy::udp_metrics::{Lost, Tally, Traffic};
use crate::sys::control::Local;
use crate::sys::datagrams::{self, BATCH, Outgoing};

/// Datagrams that the kernel makes of one message (`UDP_MAX_SEGMENTS`).
const SEGMENTS: usize = 64;
/// The most that one message carries: what one datagram over IPv4 may.
const MESSAGE: usize = 65_507;
/// The longest datagrams that are put together: they must fit the way's MTU, which is seldom more.
const SEGMENT_V4: usize = 1472;
const SEGMENT_V6: usize = 1452;

/// A datagram to be sent, or several of `segment` bytes, the last of which may be shorter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) to: Option<SocketAddr>,
    pub(super) from: Option<Local>,
    pub(super) bytes: &'a [u8],
    pub(super) segment: usize,
}

/// How far a run has been sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    piece: usize,
    /// Bytes of that piece that are done with.
    offset: usize,
}

/// A socket, and where to count what goes out of it.
pub(super) struct Way<'a> {
    pub(super) socket: BorrowedFd<'a>,
    /// Errors may be those of an earlier datagram, and concern the one peer that it has.
    pub(super) is_connected: bool,
    pub(super) tally: &'a Tally,
    pub(super) traffic: &'a Traffic,
    /// The one peer's family, where it is connected.
    pub(super) is_ipv4: bool,
}

/// A message to be, and where the run goes on behind it.
struct Message {
    /// The piece that it begins with.
    piece: usize,
    slices: std::ops::Range<usize>,
    segment: Option<u16>,
    datagrams: usize,
    bytes: usize,
    after: Position,
}

impl Piece<'_> {
    fn datagrams(&self) -> usize {
        self.bytes.len().div_ceil(self.segment.max(1)).max(1)
    }
}

/// How many datagrams are left of a run.
pub(super) fn left(pieces: &[Piece<'_>], from: Position) -> u64 {
    let rest = pieces.iter().skip(from.piece).map(Piece::datagrams).sum::<usize>();
    let done = pieces.get(from.piece).map_or(0, |piece| from.offset / piece.segment.max(1));
    (rest - done.min(rest)) as u64
}

impl Way<'_> {
    /// Sends a run from `position` on, which moves along. What the kernel refuses for itself is counted and passed over; an error
    /// says that the peer of a connected socket cannot be reached, and the datagram at `position` is not sent.
    pub(super) fn send(&self, pieces: &[Piece<'_>], position: &mut Position) -> Result<(), Errno> {
        // Before this, datagrams leave one by one.
        let mut single_until = Position::default();
        let mut had_error = false;
        while position.piece < pieces.len() {
            let (slices, messages) = self.compose(pieces, *position, single_until);
            let outgoing: SmallVec<[Outgoing<'_>; BATCH]> = messages
                .iter()
                .map(|message| Outgoing {
                    to: pieces[message.piece].to,
                    from: pieces[message.piece].from,
                    pieces: &slices[message.slices.clone()],
                    segment: message.segment,
                })
                .collect();
            match datagrams::send(self.socket.as_fd(), &outgoing) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(sent) => {
                    had_error = false;
                    for message in messages.iter().take(sent) {
                        self.traffic.datagrams.add(message.datagrams as u64);
                        self.traffic.bytes.add(message.bytes as u64);
                        *position = message.after;
                    }
                }
                Err(error) => {
                    let Some(first) = messages.first() else { return Ok(()) };
                    if first.segment.is_some() && matches!(error, Errno::INVAL | Errno::MSGSIZE | Errno::IO) {
                        // Larger than this way's MTU, or a device without checksums: each for itself.
                        single_until = first.after;
                    } else if self.is_connected && is_unreachable(error) {
                        return Err(error);
                    } else if self.is_connected && !had_error && !is_full(error) {
                        // It may have been the report of what an earlier datagram met.
                        had_error = true;
                    } else {
                        self.tally.lost(reason(error), first.datagrams as u64);
                        *position = first.after;
                        had_error = false;
                    }
                }
            }
        }
        Ok(())
    }

    /// The next messages of a run, and the bytes that they are put together from.
    fn compose<'a>(
        &self,
        pieces: &[Piece<'a>],
        position: Position,
        single_until: Position,
    ) -> (SmallVec<[IoSlice<'a>; BATCH]>, SmallVec<[Message; BATCH]>) {
        let (mut slices, mut messages) = (SmallVec::new(), SmallVec::new());
        let mut at = position;
        while at.piece < pieces.len() && messages.len() < BATCH {
            let message = if at < single_until || at.offset > 0 || !self.may_join(&pieces[at.piece]) {
                self.single(pieces, at, &mut slices)
            } else {
                self.joined(pieces, at, &mut slices)
            };
            at = message.after;
            messages.push(message);
        }
        (slices, messages)
    }

    fn may_join(&self, piece: &Piece<'_>) -> bool {
        let is_ipv4 = piece.to.map_or(self.is_ipv4, |to| to.ip().to_canonical().is_ipv4());
        let longest = if is_ipv4 { SEGMENT_V4 } else { SEGMENT_V6 };
        (1..=longest).contains(&piece.segment)
    }

    /// One datagram.
    fn single<'a>(
        &self,
        pieces: &[Piece<'a>],
        at: Position,
        slices: &mut SmallVec<[IoSlice<'a>; BATCH]>,
    ) -> Message {
        let piece = &pieces[at.piece];
        let end = (at.offset + piece.segment).min(piece.bytes.len());
        let bytes = &piece.bytes[at.offset..end];
        slices.push(IoSlice::new(bytes));
        let after = if end < piece.bytes.len() {
            Position { piece: at.piece, offset: end }
        } else {
            Position { piece: at.piece + 1, offset: 0 }
        };
        Message {
            piece: at.piece,
            slices: slices.len() - 1..slices.len(),
            segment: None,
            datagrams: 1,
            bytes: bytes.len(),
            after,
        }
    }

    /// As many datagrams as one message takes.
    fn joined<'a>(
        &self,
        pieces: &[Piece<'a>],
        at: Position,
        slices: &mut SmallVec<[IoSlice<'a>; BATCH]>,
    ) -> Message {
        let first = &pieces[at.piece];
        let begin = slices.len();
        let (mut datagrams, mut bytes, mut next) = (0, 0, at.piece);
        while let Some(piece) = pieces.get(next) {
            let fits = datagrams == 0
                || ((piece.to, piece.from) == (first.to, first.from)
                    && bytes % first.segment == 0
                    && piece.segment <= first.segment
                    && (piece.segment == first.segment || piece.datagrams() == 1)
                    && !piece.bytes.is_empty()
                    && datagrams + piece.datagrams() <= SEGMENTS
                    && bytes + piece.bytes.len() <= MESSAGE);
            if !fits {
                break;
            }
            slices.push(IoSlice::new(piece.bytes));
            datagrams += piece.datagrams();
            bytes += piece.bytes.len();
            next += 1;
        }
        Message {
            piece: at.piece,
            slices: begin..slices.len(),
            segment: if datagrams > 1 { u16::try_from(first.segment).ok() } else { None },
            datagrams,
            bytes,
            after: Position { piece: next, offset: 0 },
        }
    }
}

fn is_full(error: Errno) -> bool {
    matches!(error, Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM)
}

fn reason(error: Errno) -> Lost {
    match error {
        error if is_full(error) => Lost::SendBufferFull,
        Errno::MSGSIZE => Lost::TooBig,
        _ => Lost::ClientUnreachable,
    }
}
