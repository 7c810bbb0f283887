//! Which sockets of a thread are ready: epoll, and what its 64 bits say.
//!
//! Sockets of connections are edge-triggered and registered once; each keeps what it was last told. Listening sockets are
//! level-triggered, so that a burst of accepts may leave some for later.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{Timespec, epoll::Event};

use super::arena::Key;

/// Events taken at once.
const EVENTS: usize = 512;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// The control plane has sent something.
    Inbox,
    /// A listening socket.
    Listener(Key),
    /// The client's socket of a connection.
    Client(Key),
    /// The endpoint's socket of a connection.
    Endpoint(Key),
    /// A UDP listening socket.
    UdpListener(Key),
    /// The endpoint's socket of a UDP session.
    UdpSession(Key),
    /// A socket that other nodes' tunnels come to.
    TunnelListener(Key),
    /// The socket of a tunnel.
    Tunnel(Key),
    /// The endpoint's socket of a stream that arrived by a tunnel.
    Target(Key),
}

impl Subject {
    const KIND_SHIFT: u32 = 60;

    fn data(self) -> EventData {
        let (kind, key) = match self {
            Self::Inbox => (0, 0),
            Self::Listener(key) => (1, key.to_bits()),
            Self::Client(key) => (2, key.to_bits()),
            Self::Endpoint(key) => (3, key.to_bits()),
            Self::UdpListener(key) => (4, key.to_bits()),
            Self::UdpSession(key) => (5, key.to_bits()),
            Self::TunnelListener(key) => (6, key.to_bits()),
            Self::Tunnel(key) => (7, key.to_bits()),
            Self::Target(key) => (8, key.to_bits()),
        };
        EventData::new_u64(kind << Self::KIND_SHIFT | key)
    }

    fn of(data: EventData) -> Self {
        let bits = data.u64();
        let key = Key::from_bits(bits);
        match bits >> Self::KIND_SHIFT {
            1 => Self::Listener(key),
            2 => Self::Client(key),
            3 => Self::Endpoint(key),
            4 => Self::UdpListener(key),
            5 => Self::UdpSession(key),
            6 => Self::TunnelListener(key),
            7 => Self::Tunnel(key),
            8 => Self::Target(key),
            _ => Self::Inbox,
        }
    }
}

/// What became of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Readiness(EventFlags);

impl Readiness {
    /// There is something to read: bytes, a FIN or an error.
    pub(super) fn readable(self) -> bool {
        self.0.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR)
    }

    /// It takes bytes, or says why not.
    pub(super) fn writable(self) -> bool {
        self.0.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR)
    }

    /// The peer's FIN has arrived, and all that was before it.
    pub(super) fn finished(self) -> bool {
        self.0.intersects(EventFlags::RDHUP | EventFlags::HUP)
    }

    /// It is broken, or could not be connected.
    pub(super) fn failed(self) -> bool {
        self.0.contains(EventFlags::ERR)
    }

    /// It has urgent data, at which a read stops short.
    pub(super) fn urgent(self) -> bool {
        self.0.contains(EventFlags::PRI)
    }
}

/// What a socket of a connection is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    /// Bytes, FIN, errors.
    Read,
    /// And that it takes bytes again.
    ReadAndWrite,
}

impl Interest {
    fn flags(self) -> EventFlags {
        let read = EventFlags::IN | EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET;
        match self {
            Self::Read => read,
            Self::ReadAndWrite => read | EventFlags::OUT,
        }
    }
}

/// One epoll instance.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
}

/// A buffer for events.
pub(super) struct Events(Vec<Event>);

impl Events {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(EVENTS))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Subject, Readiness)> {
        self.0.iter().map(|event| (Subject::of(event.data), Readiness(event.flags)))
    }
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Watches a socket of a connection. Closing it ends that.
    pub(super) fn add(&self, fd: impl AsFd, subject: Subject, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, subject.data(), interest.flags())?)
    }

    pub(super) fn change(&self, fd: impl AsFd, subject: Subject, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, subject.data(), interest.flags())?)
    }

    /// Watches a listening socket, or the inbox. Of the threads that share one, one is woken.
    pub(super) fn add_level(&self, fd: impl AsFd, subject: Subject) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, subject.data(), EventFlags::IN | EventFlags::EXCLUSIVE)?)
    }

    pub(super) fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits for events, at most for `timeout`; `None`: for as long as it takes.
    pub(super) fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.0.clear();
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        match epoll::wait(&self.epoll, spare_capacity(&mut events.0), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::arena::Arena;

    #[test]
    fn a_subject_survives_its_way_through_the_kernel() {
        let mut arena = Arena::default();
        for _ in 0..3 {
            let key = arena.insert(()).unwrap();
            for subject in [
                Subject::Inbox,
                Subject::Listener(key),
                Subject::Client(key),
                Subject::Endpoint(key),
                Subject::UdpListener(key),
                Subject::UdpSession(key),
                Subject::TunnelListener(key),
                Subject::Tunnel(key),
                Subject::Target(key),
            ] {
                assert_eq!(Subject::of(subject.data()), subject);
            }
            arena.remove(key);
        }
    }
}
