//! What streams carry: a file in memory sent round and round, so that the sender copies nothing and the receiver knows each
//! byte by its position.
//!
//! The receiver lets the kernel drop what has arrived (`MSG_TRUNC`) and looks closely at one read of [`SAMPLE`]. Its length
//! is no power of two: a pipe's content that is lost, doubled or swapped shifts all that follows, and the next look sees it.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Bytes in a round.
const ROUND: usize = 257 * 4096;
/// At most as many are sent or received by one call.
const STEP: usize = 512 * 1024;
/// One read of so many is compared with what it must be.
const SAMPLE: u64 = 16;

/// The bytes, in memory and as a file.
#[derive(Debug)]
pub(crate) struct Pattern {
    bytes: Vec<u8>,
    file: std::fs::File,
    /// Where reads end: compared or never looked at.
    scratch: Vec<u8>,
}

/// How a step of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes.
    Moved(usize),
    /// Not ready.
    Blocked,
    /// The other side has finished.
    Ended,
    /// The other side has reset it, or it failed otherwise.
    Broken,
    /// The bytes are not those of this position.
    Wrong,
}

/// One end of a stream.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Position {
    /// Bytes so far.
    pub(crate) bytes: u64,
    /// Calls that moved some.
    pub(crate) steps: u64,
}

impl Pattern {
    pub(crate) fn new() -> io::Result<Self> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .flatten()
        .take(ROUND)
        .collect();
        let mut file = std::fs::File::from(memfd_create("pattern", MemfdFlags::CLOEXEC)?);
        file.write_all(&bytes)?;
        Ok(Self { bytes, file, scratch: vec![0; STEP] })
    }

    /// Sends the next bytes.
    pub(crate) fn send(&self, socket: impl AsFd, position: &mut Position) -> Step {
        let start = offset(position.bytes);
        let (mut from, count) = (start as u64, STEP.min(ROUND - start));
        match sendfile(socket, &self.file, Some(&mut from), count) {
            Ok(0) => Step::Broken,
            Ok(sent) => {
                position.bytes += sent as u64;
                position.steps += 1;
                Step::Moved(sent)
            }
            Err(Errno::AGAIN) => Step::Blocked,
            Err(_) => Step::Broken,
        }
    }

    /// Receives the next bytes.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>, position: &mut Position) -> Step {
        let looks = position.steps.is_multiple_of(SAMPLE);
        let flags = if looks { RecvFlags::empty() } else { RecvFlags::TRUNC };
        match recv(socket, &mut self.scratch[..], flags) {
            Ok((_, 0)) => Step::Ended,
            Ok((_, received)) => {
                if looks && !self.is_at(offset(position.bytes), received) {
                    return Step::Wrong;
                }
                position.bytes += received as u64;
                position.steps += 1;
                Step::Moved(received)
            }
            Err(Errno::AGAIN) => Step::Blocked,
            Err(_) => Step::Broken,
        }
    }

    fn is_at(&self, start: usize, received: usize) -> bool {
        let received = &self.scratch[..received];
        let (before, after) = received.split_at(received.len().min(ROUND - start));
        *before == self.bytes[start..start + before.len()] && *after == self.bytes[..after.len()]
    }
}

fn offset(position: u64) -> usize {
    // Less than ROUND, which is a usize.
    usize::try_from(position % ROUND as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_sent_is_what_is_expected_through_many_rounds() {
        let mut pattern = Pattern::new().unwrap();
        let (sender, receiver) = UnixStream::pair().unwrap();
        sender.set_nonblocking(true).unwrap();
        let (mut sent, mut received) = (Position::default(), Position::default());
        while received.bytes < 3 * ROUND as u64 {
            assert!(matches!(pattern.send(&sender, &mut sent), Step::Moved(_) | Step::Blocked));
            while received.bytes < sent.bytes {
                // Every read is looked at: unix sockets know no MSG_TRUNC for streams.
                received.steps = 0;
                assert!(matches!(pattern.receive(receiver.as_fd(), &mut received), Step::Moved(_)));
            }
        }
    }

    #[test]
    fn a_missing_byte_is_seen() {
        let mut pattern = Pattern::new().unwrap();
        let (mut sender, receiver) = UnixStream::pair().unwrap();
        sender.write_all(&pattern.bytes[1..100]).unwrap();
        assert_eq!(pattern.receive(receiver.as_fd(), &mut Position::default()), Step::Wrong);
    }
}
