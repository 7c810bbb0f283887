//! One direction of a connection: bytes from a source to a sink, and at the end a FIN.
//!
//! Small exchanges go through the thread's one buffer, a read and a write each. When reads keep filling the buffer, it is a
//! stream, and its bytes go through a pipe by `splice(2)`. What the sink has not taken is held, at most one buffer or one
//! pipe; then the source is not read, and the kernel makes its sender wait. A flow that holds nothing owns nothing.

use rustix::io::Errno;

use super::io::Io;
use super::pipe::Pipe;
use super::poll::Subject;
use super::side::{Read, Side};

/// Rounds that one flow may do before the other connections of the thread get their turn.
const BURST: usize = 16;
/// Reads in a row that fill the buffer: from then on it is a stream.
const STREAK: u8 = 4;
/// A stream whose pipe is filled with less than this, so often in a row, is none.
const TRICKLE: usize = 16 * 1024;

/// The state of one direction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    held: Held,
    mode: Mode,
    /// The source's FIN was passed on.
    pub(super) ended: bool,
}

/// What was read and not yet written.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    Bytes(Box<Bytes>),
    Pipe(Box<Pipe>),
}

#[derive(Debug)]
struct Bytes {
    bytes: Box<[u8]>,
    written: usize,
    /// A FIN stands behind them.
    last: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Through the buffer; so many reads in a row filled it.
    Copy { streak: u8 },
    /// Through a pipe; so many fills in a row were small.
    Splice { trickles: u8 },
}

impl Default for Mode {
    fn default() -> Self {
        Self::Copy { streak: 0 }
    }
}

/// What a run of a flow did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Moved {
    /// Bytes that the sink took.
    pub(super) bytes: u64,
    /// There is more to do at once; others get their turn first.
    pub(super) more: bool,
}

/// Which socket ended a flow before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// Reading failed.
    Source,
    /// Writing failed.
    Sink,
}

impl Flow {
    /// Holds `bytes` for the sink; a FIN stands behind them if they are the `last`.
    pub(super) fn hold(&mut self, bytes: &[u8], last: bool) {
        self.held = Held::Bytes(Box::new(Bytes { bytes: bytes.into(), written: 0, last }));
    }

    /// What is held of octets that were read and not written.
    pub(super) fn held(&self) -> &[u8] {
        match &self.held {
            Held::Bytes(held) => &held.bytes[held.written..],
            Held::Nothing | Held::Pipe(_) => &[],
        }
    }

    /// What is held went another way. Tells how much that was.
    pub(super) fn release(&mut self) -> usize {
        let count = self.held().len();
        self.held = Held::Nothing;
        count
    }

    /// Is there something that the sink has not taken?
    pub(super) fn holds(&self) -> bool {
        !matches!(self.held, Held::Nothing)
    }

    /// Moves what can be moved. `close_follows`: the other direction has ended, so that this one's end is the connection's,
    /// and closing the sockets sends the FIN.
    pub(super) fn run(
        &mut self,
        source: &mut Side,
        sink: &mut Side,
        sink_subject: Subject,
        io: &mut Io,
        close_follows: bool,
    ) -> Result<Moved, Broken> {
        let mut moved = Moved::default();
        for _ in 0..BURST {
            if self.ended {
                return Ok(moved);
            }
            if self.holds() {
                if !sink.writable {
                    sink.watch_writing(&io.poller, sink_subject).map_err(|_| Broken::Sink)?;
                    return Ok(moved);
                }
                moved.bytes += self.write_held(sink, io)?;
                continue;
            }
            if !source.readable {
                return Ok(moved);
            }
            let last = match self.mode {
                Mode::Copy { streak } => self.copy(streak, source, sink, io, &mut moved)?,
                Mode::Splice { trickles } => self.splice(trickles, source, io)?,
            };
            if last && !self.holds() {
                self.end(sink, close_follows)?;
            }
        }
        moved.more = !self.ended && (self.holds() || source.readable);
        Ok(moved)
    }

    /// One read and, as a rule, one write. Tells whether it was the last.
    fn copy(
        &mut self,
        streak: u8,
        source: &mut Side,
        sink: &mut Side,
        io: &mut Io,
        moved: &mut Moved,
    ) -> Result<bool, Broken> {
        let Some(Read { count, last }) = source.read(&mut io.buffer).map_err(|_| Broken::Source)? else {
            return Ok(false);
        };
        let full = count == io.buffer.len();
        self.mode = match streak {
            _ if !full => Mode::default(),
            STREAK.. => Mode::Splice { trickles: 0 },
            _ => Mode::Copy { streak: streak + 1 },
        };
        if count == 0 {
            return Ok(true);
        }
        let written = sink.write(&io.buffer[..count], last).map_err(|_| Broken::Sink)?;
        moved.bytes += written as u64;
        if written < count {
            self.hold(&io.buffer[written..count], last);
            return Ok(false);
        }
        Ok(last)
    }

    /// Fills a pipe. Tells whether the source has ended.
    fn splice(&mut self, trickles: u8, source: &mut Side, io: &mut Io) -> Result<bool, Broken> {
        let Ok(mut pipe) = io.pipes.take() else {
            // Out of descriptors: it goes on through the buffer.
            self.mode = Mode::default();
            return Ok(false);
        };
        match pipe.fill(&*source) {
            Ok(0) => {
                io.pipes.give_back(pipe);
                Ok(true)
            }
            Ok(count) => {
                self.mode = match trickles {
                    _ if count >= TRICKLE => Mode::Splice { trickles: 0 },
                    STREAK.. => Mode::default(),
                    _ => Mode::Splice { trickles: trickles + 1 },
                };
                self.held = Held::Pipe(pipe);
                Ok(false)
            }
            Err(Errno::AGAIN) => {
                source.readable = false;
                io.pipes.give_back(pipe);
                Ok(false)
            }
            Err(Errno::INTR) => {
                io.pipes.give_back(pipe);
                Ok(false)
            }
            Err(_) => Err(Broken::Source),
        }
    }

    /// Writes what is held, as much as the sink takes.
    fn write_held(&mut self, sink: &mut Side, io: &mut Io) -> Result<u64, Broken> {
        match &mut self.held {
            Held::Nothing => Ok(0),
            Held::Bytes(held) => {
                let written = sink.write(&held.bytes[held.written..], held.last).map_err(|_| Broken::Sink)?;
                held.written += written;
                if held.written == held.bytes.len() {
                    let last = held.last;
                    self.held = Held::Nothing;
                    if last {
                        self.end(sink, false)?;
                    }
                }
                Ok(written as u64)
            }
            Held::Pipe(pipe) => {
                sink.before_write();
                let written = match pipe.drain(&*sink) {
                    Ok(written) => written,
                    Err(Errno::AGAIN) => {
                        sink.writable = false;
                        0
                    }
                    Err(Errno::INTR) => 0,
                    Err(_) => return Err(Broken::Sink),
                };
                if pipe.held() == 0
                    && let Held::Pipe(pipe) = std::mem::take(&mut self.held)
                {
                    io.pipes.give_back(pipe);
                }
                Ok(written as u64)
            }
        }
    }

    fn end(&mut self, sink: &Side, close_follows: bool) -> Result<(), Broken> {
        self.ended = true;
        if close_follows { Ok(()) } else { sink.finish_writing().map_err(|_| Broken::Sink) }
    }
}
