//! Readiness by epoll, straight from the system call: a runtime's bookkeeping would be charged to the balancer under test,
//! which shares the processors with the generator.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData};
use rustix::event::{Timespec, epoll::Event};

pub(crate) use rustix::event::epoll::EventFlags as Ready;

/// Events taken at a time.
const BATCH: usize = 512;

/// What readiness is asked of, with a token each.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::with_capacity(BATCH) })
    }

    /// Tells of `socket` by `token` from now on, until it is closed.
    pub(crate) fn add(&self, socket: impl AsFd, token: usize, ready: Ready) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token as u64), ready)?)
    }

    /// Waits for events at most so long; fills `found` with tokens and what they are ready for.
    ///
    /// A descriptor is there at most once, so whoever closes the one that it is told of meets no stale event.
    pub(crate) fn wait(&mut self, found: &mut Vec<(usize, Ready)>, within: Duration) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(within.subsec_nanos()),
        };
        found.clear();
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        found.extend(self.events.iter().map(|event| {
            let (data, flags) = (event.data, event.flags);
            (usize::try_from(data.u64()).unwrap_or(usize::MAX), flags)
        }));
        Ok(())
    }
}
