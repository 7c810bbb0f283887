//! A stream's octets: from a socket here into records, and out of records to the socket.
//!
//! Octets are read to where the record that carries them is sealed, and records are opened where they were read to and
//! written from there; nothing is copied but what a socket does not take. Small exchanges read for one record; when that was
//! full, for as many as the buffer has room for, which are sent by one call.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;

use smallvec::SmallVec;

use super::connection::{DATA, Fault, Opened, Tunnel};
use super::frame::{self, Frame, Kind};
use super::record::{self, Content, FULL, TAIL};
use crate::proxy::flow::{Broken, Moved};
use crate::proxy::io::{Io, RECORDS};
use crate::proxy::poll::Subject;
use crate::proxy::side::{Read, Side};

/// Rounds of one direction before others get their turn; a round is up to a whole buffer.
const BURST: usize = 8;
/// Records that fit into the thread's buffer.
const SLOTS: usize = RECORDS / FULL;
/// Where octets of a stream begin in a record that has nothing but them.
const LEAD: usize = record::HEAD + frame::HEAD;

impl Tunnel {
    /// Moves what can be moved from the socket here into the tunnel.
    pub(in crate::proxy) fn send(&mut self, near: &mut Side, io: &mut Io) -> Result<Moved, Broken> {
        let mut moved = Moved::default();
        for _ in 0..BURST {
            self.flush(&io.poller).map_err(|_| Broken::Sink)?;
            if !self.unsent.is_empty() || self.stream.said_last || !near.readable {
                return Ok(moved);
            }
            let slots = if self.stream.is_large { SLOTS } else { 1 };
            let read = read_slots(near, &mut io.records, slots).map_err(|_| Broken::Source)?;
            let Some(Read { count, last }) = read else { return Ok(moved) };
            self.stream.is_large = count == slots * DATA;
            let last = last || count == 0;
            let end = self.seal_slots(&mut io.records, count, last).map_err(|_| Broken::Sink)?;
            self.stream.said_last = last;
            moved.bytes += count as u64;
            self.put(&io.records[..end]).map_err(|_| Broken::Sink)?;
        }
        moved.more = !self.stream.said_last && near.readable;
        Ok(moved)
    }

    /// Makes records of what was read into their places. Tells where the last one ends.
    fn seal_slots(&mut self, records: &mut [u8], count: usize, last: bool) -> Result<usize, Fault> {
        self.renew_if_worn()?;
        let (mut at, mut left) = (0, count);
        loop {
            let data = left.min(DATA);
            left -= data;
            let kind = if last && left == 0 { Kind::Last } else { Kind::Data };
            records[at + record::HEAD..at + LEAD].copy_from_slice(&frame::head(kind, data));
            at = self.seal(records, at, frame::HEAD + data, Content::Data)?;
            if left == 0 {
                return Ok(at);
            }
        }
    }

    /// Moves what can be moved from the tunnel to the socket here, and at the end its FIN.
    pub(in crate::proxy) fn receive(
        &mut self,
        near: &mut Side,
        near_subject: Subject,
        io: &mut Io,
    ) -> Result<Moved, Broken> {
        let mut moved = Moved::default();
        for _ in 0..BURST {
            if !self.undelivered.is_empty() {
                if !near.writable {
                    near.watch_writing(&io.poller, near_subject).map_err(|_| Broken::Sink)?;
                    return Ok(moved);
                }
                let last = self.stream.heard_last;
                let written = near.write(self.undelivered.rest(), last).map_err(|_| Broken::Sink)?;
                moved.bytes += written as u64;
                self.undelivered.take(written);
                if self.undelivered.is_empty() && last {
                    self.end(near)?;
                }
                continue;
            }
            if self.stream.heard_last {
                return Ok(moved);
            }
            let filled = self.intake(&mut io.records).map_err(|fault| self.broken(fault))?;
            let Some(filled) = filled else { return Ok(moved) };
            let data = self.open_all(&mut io.records[..filled]).map_err(|fault| self.broken(fault))?;
            moved.bytes += self.deliver(near, &io.records, &data)?;
        }
        moved.more = !self.undelivered.is_empty() && near.writable
            || !self.stream.heard_last && (self.socket.readable || self.has_input());
        Ok(moved)
    }

    fn broken(&mut self, fault: Fault) -> Broken {
        self.note_fault(fault);
        Broken::Source
    }

    /// Opens the whole records of what was received, up to the stream's end. Tells where its octets stand.
    fn open_all(&mut self, received: &mut [u8]) -> Result<SmallVec<[Range<usize>; SLOTS]>, Fault> {
        let (mut at, mut data) = (0, SmallVec::new());
        while !self.stream.heard_last {
            match self.open_record(received, at)? {
                Opened::Incomplete => break,
                Opened::Other(end) => at = end,
                Opened::Content(from, to, end) => {
                    let (content, mut next) = (&received[from..to], 0);
                    while let Some((frame, after)) = frame::read(content, next)? {
                        let Frame::Data { from: begin, to: end, last } = frame else {
                            return Err(Fault::Protocol);
                        };
                        self.hear(last)?;
                        if begin < end {
                            data.push(from + begin..from + end);
                        }
                        next = after;
                    }
                    at = end;
                }
            }
        }
        self.keep(&received[at..]);
        Ok(data)
    }

    /// Writes octets of the stream with one call, and holds what is not taken.
    fn deliver(&mut self, near: &mut Side, records: &[u8], data: &[Range<usize>]) -> Result<u64, Broken> {
        let last = self.stream.heard_last;
        let mut written = 0;
        if let [only] = data {
            written = near.write(&records[only.clone()], last).map_err(|_| Broken::Sink)?;
        } else if !data.is_empty() {
            let pieces: SmallVec<[IoSlice<'_>; SLOTS]> =
                data.iter().map(|range| IoSlice::new(&records[range.clone()])).collect();
            written = near.write_all_of(&pieces, last).map_err(|_| Broken::Sink)?;
        }
        let mut taken = written;
        for range in data {
            let here = taken.min(range.len());
            taken -= here;
            self.undelivered.push(&records[range.start + here..range.end]);
        }
        if last && self.undelivered.is_empty() {
            self.end(near)?;
        }
        Ok(written as u64)
    }

    /// Passes the end on, unless closing the socket does.
    fn end(&self, near: &Side) -> Result<(), Broken> {
        if self.stream.said_last { Ok(()) } else { near.finish_writing().map_err(|_| Broken::Sink) }
    }
}

/// Reads once, to where records have their content.
fn read_slots(near: &mut Side, records: &mut [u8], slots: usize) -> Result<Option<Read>, rustix::io::Errno> {
    if slots == 1 {
        return near.read(&mut records[LEAD..LEAD + DATA]);
    }
    let mut pieces: SmallVec<[IoSliceMut<'_>; SLOTS]> = records
        .chunks_exact_mut(FULL)
        .take(slots)
        .map(|slot| IoSliceMut::new(&mut slot[LEAD..FULL - TAIL]))
        .collect();
    near.read_into(&mut pieces, slots * DATA)
}
