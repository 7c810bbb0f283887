//! Pipes for `splice(2)`: a stream's bytes go from socket to socket without being copied through this program.
//!
//! A pipe is lent to a direction while bytes are in it and comes back empty; an idle connection holds none.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// What a pipe is made to hold; unprivileged users may have it lowered by `fs.pipe-max-size`.
const CAPACITY: usize = 1024 * 1024;
/// Empty pipes that are kept for the next stream.
const SPARE: usize = 32;

/// Both ends of a pipe, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
    capacity: usize,
}

/// Empty pipes of a thread. Boxed, since a flow holds them by pointer: lending one out allocates nothing.
#[allow(clippy::vec_box, reason = "the boxes are what is lent out")]
#[derive(Debug, Default)]
pub(super) struct Pipes(Vec<Box<Pipe>>);

impl Pipes {
    /// An empty pipe.
    pub(super) fn take(&mut self) -> io::Result<Box<Pipe>> {
        self.0.pop().map_or_else(|| Pipe::new().map(Box::new), Ok)
    }

    /// Takes an empty pipe back; one that holds bytes is closed with them.
    pub(super) fn give_back(&mut self, pipe: Box<Pipe>) {
        if pipe.held == 0 && self.0.len() < SPARE {
            self.0.push(pipe);
        }
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // The default of 64 KiB works too, in smaller steps.
        let capacity = fcntl_setpipe_size(&write, CAPACITY).unwrap_or(64 * 1024);
        Ok(Self { read, write, held: 0, capacity })
    }

    /// Bytes in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves what `source` has into the pipe; 0 at its end.
    pub(super) fn fill(&mut self, source: impl AsFd) -> rustix::io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = splice(source, None, &self.write, None, self.capacity - self.held, flags)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves what the pipe holds into `sink`, as much as it takes.
    pub(super) fn drain(&mut self, sink: impl AsFd) -> rustix::io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = splice(&self.read, None, sink, None, self.held, flags)?;
        self.held -= moved;
        Ok(moved)
    }
}
