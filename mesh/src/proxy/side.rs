//! One socket of a connection, and what is known of it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

use super::poll::{Interest, Poller, Readiness, Subject};
use super::{TcpOptions, socket};

/// The client's socket or the endpoint's.
#[derive(Debug)]
pub(super) struct Side {
    fd: OwnedFd,
    /// It may have something to read; cleared when a read found the end of it.
    pub(super) readable: bool,
    /// It may take bytes; cleared when it would not.
    pub(super) writable: bool,
    /// The peer's FIN is known to stand behind what can be read.
    pub(super) finished: bool,
    /// It was reported broken.
    pub(super) failed: bool,
    /// Reads stop short at urgent data, and on unix sockets at descriptors that are passed along (unix(7)), so that a short
    /// read does not prove that there is no more.
    stops_short: bool,
    /// Something was sent already, and small writes do not wait for acknowledgements.
    nodelay: Delay,
    interest: Interest,
    is_unix: bool,
}

/// Whether Nagle's algorithm is off. It delays the second small write at the earliest, so many sockets never need the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delay {
    /// Nothing was sent yet.
    Untouched,
    /// One write was made.
    Once,
    /// It is off.
    Off,
}

impl Side {
    /// A socket that is not watched yet.
    pub(super) fn new(fd: OwnedFd, nodelay: Delay) -> Self {
        Self {
            fd,
            readable: false,
            writable: false,
            finished: false,
            failed: false,
            stops_short: false,
            nodelay,
            interest: Interest::Read,
            is_unix: false,
        }
    }

    /// A unix socket that is not watched yet.
    pub(super) fn unix(fd: OwnedFd) -> Self {
        Self { stops_short: true, is_unix: true, ..Self::new(fd, Delay::Off) }
    }

    /// Has it noticed when the peer vanishes without a word.
    pub(super) fn keep_alive(&self, options: &TcpOptions) {
        // A peer on the same kernel does not vanish so.
        if !self.is_unix {
            socket::set_keepalive(&self.fd, options);
        }
    }

    pub(super) fn watch(&mut self, poller: &Poller, subject: Subject, interest: Interest) -> io::Result<()> {
        self.interest = interest;
        poller.add(&self.fd, subject, interest)
    }

    /// Makes sure that it is told when it takes bytes again.
    pub(super) fn watch_writing(&mut self, poller: &Poller, subject: Subject) -> io::Result<()> {
        if self.interest == Interest::ReadAndWrite {
            return Ok(());
        }
        self.interest = Interest::ReadAndWrite;
        poller.change(&self.fd, subject, Interest::ReadAndWrite)
    }

    pub(super) fn note(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable();
        self.writable |= readiness.writable();
        self.finished |= readiness.finished();
        self.failed |= readiness.failed();
        self.stops_short |= readiness.urgent();
    }

    /// Reads once. `Ok(None)`: nothing now.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<Option<Read>, Errno> {
        loop {
            let space = buffer.len();
            let received =
                rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::empty()).map(|(_, count)| count);
            if received != Err(Errno::INTR) {
                return self.note_read(received, space);
            }
        }
    }

    /// The same, to several places that together have so much space.
    pub(super) fn read_into(
        &mut self,
        pieces: &mut [IoSliceMut<'_>],
        space: usize,
    ) -> Result<Option<Read>, Errno> {
        loop {
            let mut control = RecvAncillaryBuffer::default();
            let received = rustix::net::recvmsg(&self.fd, pieces, &mut control, RecvFlags::empty());
            let received = received.map(|message| message.bytes);
            if received != Err(Errno::INTR) {
                return self.note_read(received, space);
            }
        }
    }

    fn note_read(&mut self, received: Result<usize, Errno>, space: usize) -> Result<Option<Read>, Errno> {
        match received {
            Ok(0) => Ok(Some(Read { count: 0, last: true })),
            Ok(count) => {
                // A short read took all there was; what comes later is told by a new edge.
                let all = count < space && !self.stops_short;
                self.readable = !all;
                Ok(Some(Read { count, last: all && self.finished }))
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes once what it takes of `bytes`; 0 when it takes nothing now. With `last`, a FIN is to follow and goes out
    /// with them.
    pub(super) fn write(&mut self, bytes: &[u8], last: bool) -> Result<usize, Errno> {
        self.before_write();
        loop {
            let sent = rustix::net::send(&self.fd, bytes, sending(last));
            if sent != Err(Errno::INTR) {
                return self.note_write(sent, bytes.len());
            }
        }
    }

    /// The same with what stands in several places.
    pub(super) fn write_all_of(&mut self, pieces: &[IoSlice<'_>], last: bool) -> Result<usize, Errno> {
        self.before_write();
        let length = pieces.iter().map(|piece| piece.len()).sum();
        loop {
            let mut control = SendAncillaryBuffer::default();
            let sent = rustix::net::sendmsg(&self.fd, pieces, &mut control, sending(last));
            if sent != Err(Errno::INTR) {
                return self.note_write(sent, length);
            }
        }
    }

    fn note_write(&mut self, sent: Result<usize, Errno>, length: usize) -> Result<usize, Errno> {
        match sent {
            Ok(count) => {
                self.writable = count == length;
                Ok(count)
            }
            Err(Errno::AGAIN) => {
                self.writable = false;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// To be called before a write that does not go through [`Side::write`].
    pub(super) fn before_write(&mut self) {
        match self.nodelay {
            Delay::Untouched => self.nodelay = Delay::Once,
            Delay::Once => {
                socket::set_nodelay(&self.fd);
                self.nodelay = Delay::Off;
            }
            Delay::Off => {}
        }
    }

    /// Passes on the end of one direction.
    pub(super) fn finish_writing(&self) -> Result<(), Errno> {
        match rustix::net::shutdown(&self.fd, Shutdown::Write) {
            // The peer has gone altogether in the meantime; there is nobody to tell.
            Err(Errno::NOTCONN) => Ok(()),
            done => done,
        }
    }

    /// Ends by RST; a unix socket, which knows none, by its end.
    pub(super) fn reset(self) {
        socket::reset(self.fd);
    }
}

/// With `last`, a FIN is to follow.
fn sending(last: bool) -> SendFlags {
    if last { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL }
}

impl AsFd for Side {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Read {
    /// So many bytes.
    pub(super) count: usize,
    /// Nothing comes after them.
    pub(super) last: bool,
}
