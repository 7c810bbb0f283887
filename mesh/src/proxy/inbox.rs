//! Messages from the control plane to a data-plane thread.
//!
//! A queue and an eventfd that the thread's poller watches: a thread that has nothing to do sleeps, and one that is busy
//! looks at its inbox only when the poller says so.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// Messages that wait. More than this means that the thread hangs.
const CAPACITY: usize = 65_536;

#[derive(Debug)]
pub(super) struct Inbox<T> {
    queue: Mutex<Queue<T>>,
    bell: OwnedFd,
}

#[derive(Debug)]
struct Queue<T> {
    messages: VecDeque<T>,
    closed: bool,
}

/// The thread does not take the message.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the data-plane thread has ended; restart the agent")]
    Closed,
    #[error("{CAPACITY} messages wait for the data-plane thread: it hangs; restart the agent")]
    Full,
}

impl<T> Inbox<T> {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::new(Queue { messages: VecDeque::new(), closed: false }),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        // A queue is whole between any two calls.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn send(&self, message: T) -> Result<(), SendError> {
        self.offer(message).map_err(|(error, _)| error)
    }

    /// The same; the message comes back if it is not taken.
    pub(super) fn offer(&self, message: T) -> Result<(), (SendError, T)> {
        {
            let mut queue = self.lock();
            if queue.closed {
                return Err((SendError::Closed, message));
            }
            if queue.messages.len() >= CAPACITY {
                return Err((SendError::Full, message));
            }
            queue.messages.push_back(message);
        }
        // Fails only when the counter is at its limit, and then it rings anyway.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        Ok(())
    }

    /// Everything that waits. For the thread that owns it, when its poller says so.
    pub(super) fn take(&self) -> VecDeque<T> {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        std::mem::take(&mut self.lock().messages)
    }

    /// Nothing is taken from now on; what waited is dropped.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.messages.clear();
    }
}

impl<T> AsFd for Inbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
