//! What all connections of a thread share.

use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::arena::Key;
use super::command::{Caller, Command};
use super::inbox::Inbox;
use super::pipe::Pipes;
use super::poll::Poller;
use super::timers::Timers;

/// Small enough to stay in the processor's second-level cache beside the packets, large enough that what is no stream yet
/// costs few calls.
const BUFFER_BYTES: usize = 64 * 1024;

/// Eight records of TLS that are full, in which streams of tunnels are sealed and opened.
pub(super) const RECORDS: usize = 8 * 16_406;

/// A thread's poller, timers, buffer, pipes and clock.
#[derive(Debug)]
pub(super) struct Io {
    pub(super) poller: Poller,
    pub(super) timers: Timers,
    /// Holds nothing between two calls: what is not written at once is copied out of it.
    pub(super) buffer: Box<[u8]>,
    /// The same for tunnels.
    pub(super) records: Box<[u8]>,
    pub(super) pipes: Pipes,
    inbox: Arc<Inbox<Command>>,
    /// When the thread last woke; read once for all that is done then.
    pub(super) now: Instant,
}

impl Io {
    pub(super) fn new(inbox: Arc<Inbox<Command>>) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            poller: Poller::new()?,
            timers: Timers::new(now),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            // Memory that is never touched is none.
            records: vec![0; RECORDS].into_boxed_slice(),
            pipes: Pipes::default(),
            inbox,
            now,
        })
    }

    /// Calls a connection of this thread when a place is free.
    pub(super) fn waker(&self, key: Key) -> Waker {
        Arc::new(Caller { inbox: Arc::clone(&self.inbox), key }).into()
    }
}
